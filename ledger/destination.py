"""What the shipper needs of a store, and how an insert fails."""

from typing import Protocol

from ledger.gaps import Gap
from ledger.tables import Table


class InsertFailed(Exception):
    """The engine refused an insert, or its answer was lost; `spans_partitions`: its rows are of more than one month."""

    def __init__(self, message: str, *, spans_partitions: bool = False) -> None:
        super().__init__(message)
        self.spans_partitions = spans_partitions


class StoreAway(Exception):
    """The store does not answer now; whatever was asked may be asked again."""


class Destination(Protocol):
    """Tables that take rows, once under each token, and can tell what they have. Every method may raise StoreAway."""

    def insert(self, table: Table, rows: bytes, token: str) -> None:
        """Inserts JSON lines, whole or not at all; the same token never inserts twice. InsertFailed."""

    def settle(self, writer: str) -> None:
        """Returns once no insert of the writer's, sent by an earlier process, can still arrive."""

    def watermarks(self, writer: str) -> dict[str, int]:
        """For each table the highest seq it has of a writer, 0 when none."""

    def sha256_at(self, writer: str, seq: int) -> str | None:
        """The hash, in hexadecimal, of an event that it has."""

    def gaps(self, table: Table, writer: str, last_seq: int) -> list[Gap]:
        """The ranges up to `last_seq` in which a table has not as many of the writer's rows as it should."""

    def present(self, table: Table, writer: str, gap: Gap) -> set[int]:
        """The seqs of such a range that the table has."""

    def mend_rollups(self, writer: str) -> int:
        """Makes what `usage` adds up to agree with it again; how many days of a rollup did not."""
