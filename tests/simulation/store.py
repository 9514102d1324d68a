"""A simulated store: the contract of `ledger.destination`, and the network between the shipper and it."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from ledger.destination import InsertFailed, StoreAway
from ledger.gaps import BLOCK_RECORDS, Gap
from ledger.tables import EVENTS, IN_ORDER, Table

Row = dict[str, Any]
Weather = Callable[[str], None]
USAGE = "usage"
ROLLUP = "usageby_day"
_SECOND_US = 1_000_000
_DAY_US = 86_400 * _SECOND_US
_LINE_END = b"\n"


class Insert(NamedTuple):
    """One insert as it is sent."""

    table: Table
    rows: bytes
    token: str


@dataclass
class Tables:
    """What the store has, durable as soon as it is applied: rows by table, one rollup, and the tokens it has seen.

    `late` are inserts of clients that died, which are still on the way.
    """

    rows: dict[str, list[Row]] = field(default_factory=lambda: {table.name: [] for table in IN_ORDER})
    rollup: Tally[tuple[str, int]] = field(default_factory=Tally)
    tokens: set[tuple[str, str]] = field(default_factory=set)
    late: list[Insert] = field(default_factory=list)

    def apply(self, insert: Insert, between: Callable[[], None] = lambda: None) -> None:
        """All rows or none, and then what they add up to; a token changes neither a second time.

        `between` is called before the rollup is filled, where a kill leaves it behind its table. InsertFailed when the
        rows are of more than one month.
        """
        rows = [orjson.loads(line) for line in insert.rows.split(_LINE_END)]
        if len({time.gmtime(row["ts_us"] // _SECOND_US)[:2] for row in rows}) > 1:
            raise InsertFailed("too many partitions", spans_partitions=True)
        if self._is_new(insert.table.name, insert.token):
            self.rows[insert.table.name] += rows
        if insert.table.name == USAGE:
            between()
            if self._is_new(ROLLUP, insert.token):
                self.rollup.update(by_day(rows))

    def mend_rollup(self, writer: str) -> int:
        """Makes the rollup agree with its table; how many days did not."""
        wanted = by_day(row for row in self.rows[USAGE] if row["writer"] == writer)
        unequal = {
            key for key in wanted.keys() | self.rollup.keys() if key[0] == writer and wanted[key] != self.rollup[key]
        }
        for key in unequal:
            self.rollup[key] = wanted[key]
        return len(unequal)

    def of(self, name: str, writer: str) -> list[Row]:
        """A writer's rows of a table."""
        return [row for row in self.rows[name] if row["writer"] == writer]

    def _is_new(self, name: str, token: str) -> bool:
        is_new = (name, token) not in self.tokens
        self.tokens.add((name, token))
        return is_new


class Connection:
    """The tables as the ledger process reaches them; `weather` may lose what is on the way, or take its time.

    It is called with `request` before an insert is applied, `view` between a table and its rollup, `reply` after both
    and `query` before anything else, and raises InsertFailed, StoreAway or Killed.
    """

    def __init__(self, tables: Tables, weather: Weather) -> None:
        self._tables = tables
        self._weather = weather

    def insert(self, table: Table, rows: bytes, token: str) -> None:
        insert = Insert(table, rows, token)
        self._arrive()
        try:
            self._weather("request")
        except BaseException:
            # Whoever sent it has given up or is gone; it may arrive all the same.
            self._tables.late.append(insert)
            raise
        self._tables.apply(insert, lambda: self._weather("view"))
        self._weather("reply")

    def settle(self, writer: str) -> None:
        self._weather("query")
        while self._tables.late:
            self._arrive()

    def watermarks(self, writer: str) -> dict[str, int]:
        self._weather("query")
        return {
            name: max((row["seq"] for row in self._tables.of(name, writer)), default=0) for name in self._tables.rows
        }

    def sha256_at(self, writer: str, seq: int) -> str | None:
        self._weather("query")
        return next((str(row["sha256"]) for row in self._tables.of(EVENTS.name, writer) if row["seq"] == seq), None)

    def gaps(self, table: Table, writer: str, last_seq: int) -> list[Gap]:
        self._weather("query")
        had = Tally(
            row["seq"] // BLOCK_RECORDS for row in self._tables.of(table.name, writer) if row["seq"] <= last_seq
        )
        if table is EVENTS:
            wanted = Tally(seq // BLOCK_RECORDS for seq in range(1, last_seq + 1))
        else:
            events = self._tables.of(EVENTS.name, writer)
            wanted = Tally(row["seq"] // BLOCK_RECORDS for row in events if row["kind"] == table.name)
        return [
            Gap(
                max(1, block * BLOCK_RECORDS),
                min(last_seq, (block + 1) * BLOCK_RECORDS - 1),
                wanted[block] - had[block],
            )
            for block in sorted(wanted.keys() | had.keys())
            if wanted[block] != had[block]
        ]

    def present(self, table: Table, writer: str, gap: Gap) -> set[int]:
        self._weather("query")
        return {
            row["seq"] for row in self._tables.of(table.name, writer) if gap.first_seq <= row["seq"] <= gap.last_seq
        }

    def mend_rollups(self, writer: str) -> int:
        self._weather("query")
        return self._tables.mend_rollup(writer)

    def _arrive(self) -> None:
        if self._tables.late:
            with suppress(InsertFailed):
                self._tables.apply(self._tables.late.pop(0))


def lost(what: str) -> Exception:
    """What a client says of a connection that broke."""
    return StoreAway("no answer") if what == "query" else InsertFailed(f"the {what} was lost")


def by_day(rows: Iterable[Row]) -> Tally[tuple[str, int]]:
    """What rows of `usage` add up to, by writer and day."""
    sums: Tally[tuple[str, int]] = Tally()
    for row in rows:
        sums[row["writer"], row["ts_us"] // _DAY_US] += row.get("list_cost_nusd", 0) + 1
    return sums
