"""The simulated store answers as the real one does: the same operations on both leave the same and tell the same."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.batch import lines
from ledger.destination import InsertFailed
from ledger.journal import Journal
from ledger.records import Record
from ledger.segments import read
from ledger.store import Store
from ledger.tables import EVENTS, IN_ORDER, Table
from tests.simulation.store import Connection, Tables

WRITER = "gateway-0"
NOON_US = 1_772_280_000_000_000
DAY_US = 86_400_000_000
ROLLUP_SQL = (
    "SELECT toUnixTimestamp(time) AS at, sum(rows), sum(list_cost_nusd) FROM usage_by_day GROUP BY at ORDER BY 1"
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(f"chdb://{tmp_path}/ledger")
    yield opened
    opened.close()


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """What a journal of two days holds, of which the second is in another month."""
    dice = random.Random(1)
    journal = Journal.open(tmp_path / "journal" / WRITER, segment_bytes=1 << 18, snapshot=dict, now_us=lambda: NOON_US)
    for n in range(120):
        ids = {"ts_us": NOON_US + n * DAY_US // 100, "request_id": f"r{n}", "org": "acme"}
        if dice.random() < 0.5:
            journal.append("usage", {**ids, "event_id": f"u{n}", "status": "ok", "list_cost_nusd": n})
        elif dice.random() < 0.8:
            journal.append("hold", {**ids, "event_id": f"h{n}", "hold_id": f"h{n}", "action": "opened"})
        else:
            journal.append("control", {"ts_us": ids["ts_us"], "event_id": f"c{n}", "action": "grant"})
    journal.close()
    return list(read(tmp_path / "journal" / WRITER))


def split(records: list[Record]) -> list[tuple[Table, bytes]]:
    """What each table takes of these records."""
    parts = [(table, [each for each in records if table is EVENTS or each.kind == table.name]) for table in IN_ORDER]
    return [(table, lines(WRITER, table, part)) for table, part in parts if part]


def outcome(insert: Callable[[Any], None], store: Any) -> str:
    try:
        insert(store)
    except InsertFailed as error:
        return "of two months" if error.spans_partitions else str(error)
    return "taken"


def told(store: Any, last_seq: int) -> dict[str, Any]:
    """Everything that the shipper may ask."""
    gaps = {table.name: store.gaps(table, WRITER, last_seq) for table in IN_ORDER}
    present = {(table.name, gap): store.present(table, WRITER, gap) for table in IN_ORDER for gap in gaps[table.name]}
    hashes = [store.sha256_at(WRITER, seq) for seq in (1, last_seq // 2, last_seq)]
    return {"watermarks": store.watermarks(WRITER), "gaps": gaps, "present": present, "hashes": hashes}


def rollup(tables: Tables) -> list[tuple[int, int]]:
    return sorted((day * DAY_US // 1_000_000, amount) for (_, day), amount in tables.rollup.items() if amount)


def test_the_same_inserts_leave_the_same(store: Store, records: list[Record]) -> None:
    """In any order, twice under one token, twice under two, and with parts left out."""
    dice = random.Random(2)
    tables = Tables()
    connection = Connection(tables, lambda what: None)
    outcomes: list[str] = []
    inserts: list[Callable[[Any], None]] = []
    for _ in range(25):
        first = dice.randrange(len(records))
        for table, rows in split(records[first : first + dice.randrange(1, 40)]):
            token = f"{first}:{table.name}:{len(inserts)}"
            if dice.random() < 0.7:
                inserts.append(lambda to, table=table, rows=rows, token=token: to.insert(table, rows, token))
    dice.shuffle(inserts)
    for number, insert in enumerate([*inserts, *dice.sample(inserts, 10)]):
        outcomes.append(outcome(insert, connection))
        assert outcomes[-1] == outcome(insert, store)
        if number % 8 == 0:
            assert told(connection, records[-1].seq) == told(store, records[-1].seq)
    assert told(connection, records[-1].seq) == told(store, records[-1].seq)
    assert set(outcomes) == {"taken", "of two months"}
    assert {name: len(rows) for name, rows in tables.rows.items()} == store.row_counts()
    real = [(int(str(at)), int(str(rows)) + int(str(cost))) for at, rows, cost in store.select(ROLLUP_SQL)]
    assert rollup(tables) == real


def test_a_rollup_that_was_left_behind_is_mended_once(store: Store, records: list[Record]) -> None:
    tables = Tables()
    connection = Connection(tables, lambda what: None)
    (table, rows), *_ = split(records[:40])
    assert table.name == "usage"
    for each in (store, connection):
        each.insert(table, rows, "token")
    store.execute("TRUNCATE TABLE usage_by_day")
    tables.rollup.clear()
    assert connection.mend_rollups(WRITER) == store.mend_rollups(WRITER) == 1
    assert connection.mend_rollups(WRITER) == store.mend_rollups(WRITER) == 0
    real = [(int(str(at)), int(str(rows)) + int(str(cost))) for at, rows, cost in store.select(ROLLUP_SQL)]
    assert rollup(tables) == real
