"""The store is opened by one process alone, with a schema that it knows, and inserts each batch once."""

import orjson
import pytest

from ledger.destination import InsertFailed
from ledger.migrations import Migration, SchemaRefused, migrate, shipped
from ledger.store import Store, StoreLocked, StoreUnsupported, chdb_path
from ledger.tables import BY_KIND, IN_ORDER

SIGNAL = BY_KIND["signal"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One engine for the whole file."""
    opened = Store(f"chdb://{tmp_path_factory.mktemp('store')}/ledger")
    yield opened
    opened.close()


def signals(writer, seqs, ts_us=1_763_596_800_000_000):
    """JSON lines of `signal` rows."""
    return b"\n".join(
        orjson.dumps({"ts_us": ts_us, "event_id": f"e{seq}", "writer": writer, "seq": seq, "name": "overage"})
        for seq in seqs
    )


def test_migrations_run_once_in_order(store):
    assert store.migrated == [migration.name for migration in shipped()]
    assert migrate(store, shipped()) == []
    rows = store.select("SELECT version, name FROM schema_migrations ORDER BY version")
    assert [row[0] for row in rows] == list(range(1, len(rows) + 1))


def test_a_migration_cut_before_it_was_remembered_runs_again(store):
    number = len(shipped()) + 1
    again = Migration(number, "again", "CREATE TABLE IF NOT EXISTS again (a Int8) ENGINE = MergeTree ORDER BY a")
    store.execute(again.sql)
    assert migrate(store, [*shipped(), again]) == ["again"]
    store.execute("DROP TABLE again SYNC")
    store.execute(f"ALTER TABLE schema_migrations DELETE WHERE version = {number} SETTINGS mutations_sync = 2")


def test_a_schema_from_the_future_or_of_another_past_is_refused_and_left_alone(store):
    with pytest.raises(SchemaRefused, match="newer than this Bursar"):
        migrate(store, shipped()[:-1])
    changed = [*shipped()[:-1], shipped()[-1]._replace(sql="SELECT 1")]
    with pytest.raises(SchemaRefused, match="another"):
        migrate(store, changed)
    assert migrate(store, shipped()) == []


def test_every_column_that_an_insert_names_exists(store):
    for table in IN_ORDER:
        columns = {row[0] for row in store.select(f"DESCRIBE TABLE {table.name}")}
        assert columns ^ set(table.columns) == {"ts"}


def test_a_second_opener_is_told_who_has_it(store):
    with pytest.raises(StoreLocked, match=r"is open in process \d+"):
        Store(f"chdb://{store.path}")


@pytest.mark.parametrize("url", ["redis://x", "chdb://", "chdb://host/path", "clickhouse://host:8123/db", "/path"])
def test_other_urls_are_refused(url):
    with pytest.raises(StoreUnsupported, match="chdb:///path"):
        chdb_path(url)


def test_the_same_batch_is_inserted_once(store):
    for _ in range(3):
        store.insert(SIGNAL, signals("once", range(1, 101)), "once:1-100:signal")
    assert store.select("SELECT count(), uniqExact(seq) FROM signal WHERE writer = 'once'") == [(100, 100)]
    assert store.watermarks("once")["signal"] == 100


def test_a_batch_becomes_one_part_or_none(store):
    store.insert(SIGNAL, signals("part", range(1, 10_001)), "part:1-10000:signal")
    parts = store.select("SELECT uniqExact(_part) FROM signal WHERE writer = 'part'")
    assert parts == [(1,)]
    two_months = signals("months", [1]) + b"\n" + signals("months", [2], ts_us=1_766_188_800_000_000)
    with pytest.raises(InsertFailed) as error:
        store.insert(SIGNAL, two_months, "months:1-2:signal")
    assert error.value.spans_partitions
    assert store.watermarks("months")["signal"] == 0


def test_a_row_that_does_not_fit_its_table_is_an_error_not_a_loss(store):
    with pytest.raises(InsertFailed) as error:
        store.insert(SIGNAL, b'{"writer":"bad","seq":"many"}', "bad:1-1:signal")
    assert not error.value.spans_partitions
    assert store.watermarks("bad")["signal"] == 0


def test_missing_keys_default_and_unknown_ones_are_ignored(store):
    store.insert(SIGNAL, b'{"ts_us":1763596800000001,"writer":"few","seq":1,"new_key":{"a":[1]}}', "few:1-1:signal")
    rows = store.select("SELECT toString(ts), name, value, detail FROM signal WHERE writer = 'few'")
    assert rows == [("2025-11-20 00:00:00.000001", "", 0, "")]
