"""What a store lost since it was shipped is found by its own gaps and filled from the journal, while that has it."""

import logging
import os
import time

import pytest

from ledger.segments import segment_paths
from ledger.shipper import Shipper
from ledger.store import Store
from ledger.tables import BY_KIND, EVENTS, IN_ORDER

USAGE = BY_KIND["usage"]


@pytest.fixture
def store(tmp_path):
    opened = Store(f"chdb://{tmp_path}/ledger")
    yield opened
    opened.close()


@pytest.fixture
def shipped(make_journal, usage_row, store, tmp_path):
    """A journal of several segments, all of it in the store: 300 requests with their holds."""
    journal = make_journal()
    for _ in range(300):
        journal.append("hold", {"action": "opened"})
        journal.append("usage", usage_row())
    journal.append("signal", {"name": "overage"})
    Shipper(tmp_path / "journal", store).round()
    assert is_whole(store, journal)
    return journal


def is_whole(store, journal):
    """Every record once in its table and in `events`, and the rollups as they ought to be."""
    events = store.select("SELECT count(), uniqExact(seq), min(seq), max(seq) FROM events")
    kinds = dict(store.select("SELECT kind, toInt64(groupBitXor(seq)) FROM events GROUP BY kind"))
    tables = {
        name: store.select(f"SELECT toInt64(groupBitXor(seq)), count() = uniqExact(seq) FROM {name}")  # noqa: S608
        for name in ("usage", "hold", "signal")
    }
    rolled_up = store.select("SELECT sum(rows) FROM usage_by_day") == [(store.row_counts()["usage"],)]
    expected = {name: [(kinds[name], 1)] for name in tables}
    return rolled_up and events == [(journal.tail_seq,) * 2 + (1, journal.tail_seq)] and tables == expected


def restart(store, tmp_path):
    shipper = Shipper(tmp_path / "journal", store)
    shipper.round()
    assert shipper.stalled() == {}


@pytest.mark.parametrize("table", ["usage", "hold", "signal", "events"])
@pytest.mark.parametrize("lost", ["seq BETWEEN 100 AND 200", "seq % 7 = 3", "seq < 50", "1"])
def test_rows_lost_of_a_table_come_back_once(shipped, store, tmp_path, table, lost):
    store.execute(f"ALTER TABLE {table} DELETE WHERE {lost} SETTINGS mutations_sync = 2")
    for _ in range(2):
        restart(store, tmp_path)
        assert is_whole(store, shipped)


def test_a_table_dropped_and_made_anew_is_filled(shipped, store, tmp_path, caplog):
    store.execute("TRUNCATE TABLE usage")
    with caplog.at_level(logging.WARNING):
        restart(store, tmp_path)
    assert "usage lacked 300 records of gateway-0: filled from the journal" in caplog.messages
    assert is_whole(store, shipped)


def test_what_came_since_and_what_was_lost_both_arrive(shipped, usage_row, store, tmp_path):
    store.execute("ALTER TABLE usage DELETE WHERE seq > 400 SETTINGS mutations_sync = 2")
    for _ in range(50):
        shipped.append("usage", usage_row())
    restart(store, tmp_path)
    assert is_whole(store, shipped)


def test_losing_the_same_rows_again_within_the_window_of_tokens_fills_them_again(shipped, store, tmp_path):
    for _ in range(3):
        store.execute("ALTER TABLE usage DELETE WHERE seq < 300 SETTINGS mutations_sync = 2")
        restart(store, tmp_path)
        assert is_whole(store, shipped)


def test_what_the_journal_has_no_more_is_said_in_one_line(shipped, store, tmp_path, caplog):
    paths = segment_paths(shipped.directory)
    assert len(paths) > 1
    kept_from = int(paths[1].stem)
    paths[0].unlink()
    store.execute("TRUNCATE TABLE usage")
    with caplog.at_level(logging.WARNING):
        restart(store, tmp_path)
    [(lost,)] = store.select(f"SELECT count() FROM events WHERE kind = 'usage' AND seq < {kept_from}")  # noqa: S608
    assert 0 < lost < 300
    assert f"usage lacks {lost} records of gateway-0 that the journal has no more: restore a copy" in caplog.messages
    assert store.row_counts()["usage"] == 300 - lost


@pytest.mark.parametrize("lost", ["seq <= 20", "1"])
@pytest.mark.parametrize("table", ["events", "usage"])
def test_a_store_that_goes_back_while_it_is_shipped_to_gets_all_again_before_a_segment_goes(
    shipped, usage_row, store, tmp_path, table, lost
):
    shipper = Shipper(tmp_path / "journal", store, retention_s=0)
    with_age = segment_paths(shipped.directory)
    for path in with_age:
        os.utime(path, (0, time.time() + 1000))
    shipper.round()
    store.execute(f"ALTER TABLE {table} DELETE WHERE {lost} SETTINGS mutations_sync = 2")
    for path in with_age:
        os.utime(path, (0, 0))
    shipped.append("usage", usage_row())
    shipper.round()
    assert segment_paths(shipped.directory) == with_age
    shipper.round()
    assert shipper.stalled() == {}
    assert is_whole(store, shipped)
    assert segment_paths(shipped.directory) == with_age[-1:]


def test_what_neither_store_nor_journal_has_keeps_no_segment(shipped, store, tmp_path):
    paths = segment_paths(shipped.directory)
    paths[0].unlink()
    store.execute("TRUNCATE TABLE usage")
    Shipper(tmp_path / "journal", store, retention_s=-1).round()
    assert segment_paths(shipped.directory) == paths[-1:]


def test_a_store_from_a_copy_older_than_the_journal_goes_on_and_what_it_lacks_is_said(
    shipped, usage_row, store, tmp_path, caplog
):
    paths = segment_paths(shipped.directory)
    kept_from = int(paths[1].stem)
    paths[0].unlink()
    for table in ("events", "usage", "hold", "signal"):
        store.execute(f"ALTER TABLE {table} DELETE WHERE seq > 51 SETTINGS mutations_sync = 2")
    with caplog.at_level(logging.WARNING):
        restart(store, tmp_path)
    said = f"the store lacks records 52 to {kept_from - 1} of gateway-0, which the journal has no more"
    assert caplog.messages[0].startswith(said)
    found = store.select("SELECT min(seq), count(), max(seq) FROM events WHERE seq > 51")
    assert found == [(kept_from, shipped.tail_seq - kept_from + 1, shipped.tail_seq)]


def test_rows_that_are_there_twice_are_said_and_left(shipped, store, tmp_path, caplog):
    store.execute("INSERT INTO signal SELECT * FROM signal")
    with caplog.at_level(logging.WARNING):
        restart(store, tmp_path)
    assert caplog.messages == ["signal has 1 records of gateway-0 twice: see docs/ledger.md"]
    assert store.row_counts()["signal"] == 2


def test_nothing_is_said_of_a_store_that_is_whole(shipped, store, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        restart(store, tmp_path)
    assert caplog.messages == []
    assert [store.gaps(table, "gateway-0", shipped.tail_seq) for table in IN_ORDER] == [[]] * len(IN_ORDER)


@pytest.mark.parametrize(
    ("lost", "found"),
    [
        ([1], [(1, 1)]),
        ([32_768], [(32_768, 1)]),
        ([5, 40_000], [(1, 1), (32_768, 1)]),
        ([70_000], [(65_536, 1)]),
        ([], []),
    ],
)
def test_each_block_says_how_much_it_lacks(store, lost, found):
    without = f" WHERE number NOT IN ({', '.join(map(str, lost))})" if lost else ""
    numbers = "SELECT 1, 'usage', 'w', number FROM numbers(1, 70000)"
    store.execute(f"INSERT INTO events (ts_us, kind, writer, seq) {numbers}")
    store.execute(f"INSERT INTO usage (ts_us, status, writer, seq) {numbers}{without}")
    assert [(gap.first_seq, gap.missing) for gap in store.gaps(USAGE, "w", 70_000)] == found
    store.execute("TRUNCATE TABLE events")
    store.execute(f"INSERT INTO events (ts_us, kind, writer, seq) {numbers}{without}")
    assert [(gap.first_seq, gap.missing) for gap in store.gaps(EVENTS, "w", 70_000)] == found
    for gap in store.gaps(EVENTS, "w", 70_000):
        assert set(range(gap.first_seq, gap.last_seq + 1)) - store.present(EVENTS, "w", gap) == {
            seq for seq in lost if gap.first_seq <= seq <= gap.last_seq
        }
