"""What `usage` adds up to by minute, hour and day equals `usage`, whatever is killed, retried or lost in between."""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from ledger.journal import Journal
from ledger.rollups import DIMENSIONS, LEVELS, SUMS, mend
from ledger.shipper import Shipper
from ledger.store import Store
from ledger.tables import ADJUSTED, BY_KIND

USAGE = BY_KIND["usage"]
NOON_US = 1_763_640_000_000_000
KILLS = 8
ROWS_PER_KILL = 4_000
BATCH_ROWS = 250
# Ships in small batches until it is killed from outside, at whatever moment that is.
SHIPPER = """
import sys
from pathlib import Path
from ledger import shipper
from ledger.store import Store

shipper.BATCH_ROWS_MAX = int(sys.argv[2])
home = Path(sys.argv[1])
running = shipper.Shipper(home / "journal", Store(f"chdb://{home}/ledger"))
print("open", flush=True)
running.round()
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(f"chdb://{tmp_path}/ledger")
    yield opened
    opened.close()


def row(seq: int, **values: Any) -> dict[str, Any]:
    """A row of usage, each a minute after the one before, all of its sums different."""
    amounts = {name: seq * 100 + number for number, name in enumerate(SUMS)}
    keys = {"org": "acme", "team": f"t{seq % 3}", "model": "small", "runtime": "sim", "status": "ok"}
    return {
        "ts_us": NOON_US + seq * 60_000_000,
        "event_id": f"e{seq}",
        "writer": "w",
        "seq": seq,
        **keys,
        **amounts,
    } | values


def rows(seqs: range, **values: Any) -> bytes:
    return b"\n".join(orjson.dumps(row(seq, **values)) for seq in seqs)


def sums(store: Store, group_by: str = "org") -> list[list[tuple[object, ...]]]:
    """What `usage` and each level add up to."""
    columns = ", ".join(f"sum({name})" for name in SUMS)
    tables = [("usage", "toInt64(count())"), *((level.table, "sum(rows)") for level in LEVELS)]
    return [
        store.select(f"SELECT {group_by}, {count}, {columns} FROM {table} GROUP BY {group_by} ORDER BY ALL")  # noqa: S608
        for table, count in tables
    ]


def agree(store: Store, group_by: str = "org") -> bool:
    base, *levels = sums(store, group_by)
    return all(level == base for level in levels)


def test_every_level_adds_up_to_usage_by_each_dimension(store):
    store.insert(USAGE, rows(range(1, 400)), "a")
    store.insert(USAGE, rows(range(400, 900), org="other", writer="v"), "b")
    assert sums(store, "writer")[0][1][:2] == ("w", 399)
    assert agree(store, ", ".join(DIMENSIONS))
    periods = [store.select(f"SELECT uniqExact(time) FROM {level.table}") for level in LEVELS]  # noqa: S608 constants
    assert periods == [[(899,)], [(15,)], [(2,)]]


def test_refusals_and_adjustments_are_told_apart_and_adjustments_are_summed(store):
    store.insert(USAGE, rows(range(1, 3)), "a")
    refused = orjson.dumps({"ts_us": NOON_US, "org": "acme", "status": "refused", "writer": "w", "seq": 3})
    less = orjson.dumps(row(4, status=ADJUSTED, adjusts="e1", list_cost_nusd=-50))
    store.insert(USAGE, refused + b"\n" + less, "b")
    found = store.select(
        "SELECT status, sum(rows), sum(list_cost_nusd) FROM usage_by_day GROUP BY status ORDER BY status"
    )
    spent = row(1)["list_cost_nusd"] + row(2)["list_cost_nusd"]
    assert found == [("adjusted", 1, -50), ("ok", 2, spent), ("refused", 1, 0)]
    assert agree(store)


def test_the_same_token_again_heals_what_was_cut_between_the_table_and_its_views(store):
    """296,000 rows in the rollups where the table had 298,000 were seen once, until the batch was sent again."""
    store.insert(USAGE, rows(range(1, 2_001)), "w:1-2000")
    store.execute("DETACH TABLE usage_to_minute")
    store.insert(USAGE, rows(range(2_001, 4_001)), "w:2001-4000")
    store.execute("ATTACH TABLE usage_to_minute")
    assert [level[0][1] for level in sums(store)] == [4_000, 2_000, 2_000, 2_000]
    for _ in range(2):
        store.insert(USAGE, rows(range(2_001, 4_001)), "w:2001-4000")
        assert agree(store)


@pytest.mark.parametrize("lost", [level.table for level in LEVELS])
def test_a_level_that_was_lost_is_made_anew_and_the_others_stay(store, lost):
    store.insert(USAGE, rows(range(1, 1_000)), "a")
    store.insert(USAGE, rows(range(1_000, 1_500), writer="v"), "b")
    store.execute(f"TRUNCATE TABLE {lost}")
    assert not agree(store, "writer")
    assert mend(store, "w") > 0
    assert not agree(store, "writer")
    assert mend(store, "v") > 0
    assert agree(store, ", ".join(DIMENSIONS))
    assert (mend(store, "v"), mend(store, "w")) == (0, 0)


def test_a_level_that_has_too_much_is_mended_by_what_it_has_too_much(store):
    store.insert(USAGE, rows(range(1, 1_000)), "a")
    store.execute("INSERT INTO usage_by_hour SELECT * FROM usage_by_hour WHERE team = 't1'")
    assert not agree(store)
    assert mend(store, "w") > 0
    assert agree(store, ", ".join(DIMENSIONS))


def test_what_one_writer_lacks_is_not_made_up_for_by_another_ones_surplus(store):
    store.insert(USAGE, rows(range(1, 6)), "a")
    store.insert(USAGE, rows(range(6, 11), writer="v"), "b")
    store.execute("ALTER TABLE usage_by_minute DELETE WHERE writer = 'w' SETTINGS mutations_sync = 2")
    store.execute("ALTER TABLE usage DELETE WHERE writer = 'v' SETTINGS mutations_sync = 2")
    assert mend(store, "w") > 0
    assert store.select("SELECT writer, sum(rows) FROM usage_by_minute GROUP BY writer ORDER BY writer") == [
        ("v", 5),
        ("w", 5),
    ]


def test_a_ledger_from_before_there_were_rollups_gets_them(store):
    store.execute("DROP VIEW usage_to_minute SYNC")
    store.insert(USAGE, rows(range(1, 9_000)), "a")
    sql = (Path("ledger") / "schema" / "0015_usage_to_minute.sql").read_text()
    store.execute(sql)
    assert [level[:1] for level in sums(store)[1:]] == [[], [], []]
    mend(store, "w")
    assert agree(store, ", ".join(DIMENSIONS))


def test_killed_at_any_moment_the_sums_agree_after_the_next_start(make_journal, tmp_path):
    journal = make_journal(segment_bytes=1 << 22)
    chance = random.Random(11)
    for kills in range(1, KILLS + 1):
        append(journal, chance)
        command = [sys.executable, "-c", SHIPPER, str(tmp_path), str(BATCH_ROWS)]
        child = subprocess.Popen(command, cwd=Path.cwd(), stdout=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stdout.readline() == b"open\n"
        time.sleep(chance.uniform(0, 0.4))
        child.kill()
        child.communicate(timeout=30)
        store = Store(f"chdb://{tmp_path}/ledger")
        try:
            shipper = Shipper(tmp_path / "journal", store)
            shipper.round()
            assert shipper.stalled() == {}
            assert sums(store)[0][0][1] == kills * ROWS_PER_KILL
            assert agree(store, "writer, team")
        finally:
            store.close()


def test_cut_between_the_table_and_its_views_the_next_start_adds_the_difference(make_journal, store, tmp_path):
    journal = make_journal(segment_bytes=1 << 22)
    chance = random.Random(5)
    append(journal, chance)
    Shipper(tmp_path / "journal", store).round()
    store.execute("DETACH TABLE usage_by_minute_to_hour")
    append(journal, chance)
    Shipper(tmp_path / "journal", store).round()
    store.execute("ATTACH TABLE usage_by_minute_to_hour")
    counts = [level[0][1] for level in sums(store)]
    assert counts == [2 * ROWS_PER_KILL, 2 * ROWS_PER_KILL, ROWS_PER_KILL, ROWS_PER_KILL]
    Shipper(tmp_path / "journal", store).round()
    assert agree(store, ", ".join(DIMENSIONS))


def append(journal: Journal, chance: random.Random) -> None:
    for _ in range(ROWS_PER_KILL):
        values = {"list_cost_nusd": chance.randrange(1_000), "output_tokens": chance.randrange(100)}
        journal.append("usage", {"org": "acme", "team": f"t{chance.randrange(4)}", "status": "ok", **values})
