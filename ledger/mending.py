"""Mending: fills what tables of a store lack of a writer's journal, from the journal while it still has it."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ledger.batch import Batch
from ledger.destination import Destination
from ledger.disk import Disk
from ledger.gaps import BLOCK_RECORDS, Gap
from ledger.records import Record
from ledger.segments import Cursor
from ledger.tables import BY_KIND, EVENTS, Table

_TAKE_BYTES = 8 << 20


def mend(
    destination: Destination,
    directory: Path,
    disk: Disk,
    watermarks: Mapping[str, int],
    insert: Callable[[Table, Batch], None],
) -> list[str]:
    """Fills the gaps that tables have up to their watermarks, then the rollups; returns a line for each thing to know.

    `insert` sends one table all rows of a batch. It is called with each range once, so what fails on the way is found
    again, as a smaller gap, the next time. CorruptJournal, and what the destination raises.
    """
    writer, last_seq, said = directory.name, watermarks[EVENTS.name], list[str]()
    # Events first, for they tell what the other tables ought to have.
    for table in (EVENTS, *BY_KIND.values()):
        filled = lost = doubled = 0
        for gap in destination.gaps(table, writer, last_seq):
            found = 0 if gap.missing < 0 else _fill(destination, directory, disk, table, gap, insert)
            filled += found
            lost += max(gap.missing - found, 0)
            doubled += max(-gap.missing, 0)
        said += _lines(table.name, writer, filled, lost, doubled)
    for table in BY_KIND.values():
        if watermarks[table.name] > last_seq:
            # A batch that was cut on its way into a table of several shards is in some of them.
            _fill(destination, directory, disk, table, Gap(last_seq + 1, watermarks[table.name], 0), insert)
    days = destination.mend_rollups(writer)
    if days:
        said.append(f"the rollups of {writer} differed from usage in {days} days: the differences are added")
    return said


def _lines(table: str, writer: str, filled: int, lost: int, doubled: int) -> Iterator[str]:
    if filled:
        yield f"{table} lacked {filled} records of {writer}: filled from the journal"
    if lost:
        yield f"{table} lacks {lost} records of {writer} that the journal has no more: restore a copy"
    if doubled:
        yield f"{table} has {doubled} records of {writer} twice: see docs/ledger.md"


def _fill(
    destination: Destination,
    directory: Path,
    disk: Disk,
    table: Table,
    gap: Gap,
    insert: Callable[[Table, Batch], None],
) -> int:
    """Inserts what the journal has of a gap; how many records."""
    records = lacking(destination, directory, disk, table, gap)
    if records:
        insert(table, Batch(directory.name, tuple(records)))
    return len(records)


def lacking(destination: Destination, directory: Path, disk: Disk, table: Table, gap: Gap) -> list[Record]:
    """The records of a gap that the journal has and the table has not."""
    present = destination.present(table, directory.name, gap)
    return [
        record
        for record in _kept(directory, disk, gap)
        if record.seq not in present and (table is EVENTS or BY_KIND.get(record.kind) is table)
    ]


def _kept(directory: Path, disk: Disk, gap: Gap) -> Iterator[Record]:
    cursor = Cursor(directory, gap.first_seq - 1, disk=disk)
    try:
        while records := cursor.take(BLOCK_RECORDS, _TAKE_BYTES):
            for record in records:
                if record.seq > gap.last_seq:
                    return
                yield record
    finally:
        cursor.close()
