"""Gaps: records that a table ought to have of a writer, and has not.

`events` has every seq, so what is missing in it shows by counting; what any other table should have, `events` knows.
Ranges that differ are found by counting in blocks, so that little is read where nothing is missing.
"""

from typing import NamedTuple, Protocol

from ledger.tables import EVENTS, Table

BLOCK_RECORDS = 1 << 15
BLOCKS_MAX = 1_000


class Engine(Protocol):
    """What this needs of a store."""

    def select(self, sql: str, **parameters: object) -> list[tuple[object, ...]]:
        """The rows of one statement; `parameters` fill its `{name:Type}`."""


class Gap(NamedTuple):
    """A range of seqs, both ends included, in which a table lacks `missing` records; below 0 it has some twice."""

    first_seq: int
    last_seq: int
    missing: int


def gaps(engine: Engine, table: Table, writer: str, last_seq: int) -> list[Gap]:
    """The blocks up to `last_seq` in which a table has not as many rows as it should, at most BLOCKS_MAX of them."""
    counted = _counted_by_number() if table is EVENTS else _counted_by_events(table)
    found = engine.select(_BLOCKS.format(counted), writer=writer, kind=table.name, last=last_seq)
    return [Gap(int(str(first)), int(str(last)), int(str(missing))) for first, last, missing in found]


def present(engine: Engine, table: Table, writer: str, gap: Gap) -> set[int]:
    """The seqs of a block that a table has."""
    where = "writer = {writer:String} AND seq BETWEEN {first:UInt64} AND {last:UInt64}"
    sql = f"SELECT seq FROM {table.name} WHERE {where}"  # noqa: S608 a constant of ledger/tables.py, here and below
    return {int(str(seq)) for (seq,) in engine.select(sql, writer=writer, first=gap.first_seq, last=gap.last_seq)}


_BLOCKS = (
    f"SELECT greatest(1, block * {BLOCK_RECORDS}), least({{{{last:UInt64}}}}, (block + 1) * {BLOCK_RECORDS} - 1), "  # noqa: S608
    f"sum(more) AS missing FROM ({{}}) GROUP BY block HAVING missing != 0 ORDER BY block LIMIT {BLOCKS_MAX}"
)
_COUNTED = (
    f"SELECT intDiv(seq, {BLOCK_RECORDS}) AS block, {{}}toInt64(count()) AS more FROM {{}} "  # noqa: S608
    "WHERE writer = {{writer:String}} AND seq <= {{last:UInt64}}{} GROUP BY block"
)


def _counted_by_number() -> str:
    """Every seq up to the last ought to be there, so blocks without a row count too."""
    ends = f"least({{last:UInt64}} + 1, (number + 1) * {BLOCK_RECORDS}) - greatest(1, number * {BLOCK_RECORDS})"
    blocks = (
        f"SELECT number AS block, toInt64({ends}) AS more FROM numbers(intDiv({{last:UInt64}}, {BLOCK_RECORDS}) + 1)"  # noqa: S608
    )
    return f"{blocks} UNION ALL {_COUNTED.format('-', EVENTS.name, '')}"


def _counted_by_events(table: Table) -> str:
    ought = _COUNTED.format("", EVENTS.name, " AND kind = {kind:String}")
    return f"{ought} UNION ALL {_COUNTED.format('-', table.name, '')}"
