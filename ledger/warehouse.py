"""The warehouse: the ledger's tables behind one ClickHouse connection, whatever engine is at the other end of it."""

import struct
import tempfile

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from ledger import gaps, rollups
from ledger.destination import InsertFailed, StoreAway
from ledger.gaps import Gap
from ledger.tables import IN_ORDER, Table

# One writer and bounded blocks: a batch becomes one part or none, so the highest seq in a table tells what it has.
_INSERT_SETTINGS = {
    "async_insert": 0,
    "input_format_parallel_parsing": 0,
    "max_insert_threads": 1,
    "input_format_skip_unknown_fields": 1,
    "input_format_json_named_tuples_as_objects": 0,
    "input_format_null_as_default": 1,
    "max_partitions_per_insert_block": 1,
    "throw_on_max_partitions_per_insert_block": 1,
    "deduplicate_blocks_in_dependent_materialized_views": 1,
}
_HIGHEST_SEQ = "SELECT '{0}', max(seq) FROM {0} WHERE writer = {{writer:String}}"
_ROW_COUNT = "SELECT '{0}', count() FROM {0}"
_SHA256_AT = "SELECT sha256 FROM events WHERE writer = {writer:String} AND seq = {seq:UInt64} LIMIT 1"
STRANGE = "what answers in the store's place is no ClickHouse server: look for a proxy or another server there"
# What the client raises of an answer with status 200 that is none of ClickHouse's.
UNREADABLE = (LookupError, ValueError, OverflowError, struct.error)
_TOO_MANY_PARTS = 252
_MESSAGE_CHARACTERS_MAX = 500


class Warehouse:
    """Tables and the one connection that writes them; methods may be called from any thread.

    clickhouse-connect's client sees to it with a lock of its own that statements of a connection run one by one.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def execute(self, sql: str, **parameters: object) -> None:
        """Runs one statement of the code's own; `parameters` fill its `{name:Type}`. StoreAway."""
        try:
            self._client.command(sql, parameters=parameters)
        except ClickHouseError as error:
            raise StoreAway(self._said(error)) from error

    def select(self, sql: str, **parameters: object) -> list[tuple[object, ...]]:
        """The rows of one statement of the code's own; `parameters` fill its `{name:Type}`. StoreAway."""
        try:
            return [tuple(row) for row in self._client.query(sql, parameters=parameters).result_rows]
        except ClickHouseError as error:
            raise StoreAway(self._said(error)) from error
        except UNREADABLE as error:
            raise StoreAway(STRANGE) from error

    def insert(self, table: Table, rows: bytes, token: str) -> None:
        """Inserts JSON lines, whole or not at all; the same token never inserts twice. InsertFailed."""
        # The comment is by what an insert that was left running is found on a server.
        settings = {**_INSERT_SETTINGS, "insert_deduplication_token": token, "log_comment": token}
        try:
            done = self._client.raw_insert(table.name, table.columns, rows, settings=settings, fmt="JSONEachRow")
        except ClickHouseError as error:
            raise InsertFailed(self._said(error), spans_partitions=code_of(error) == _TOO_MANY_PARTS) from error
        except OSError as error:
            # The rows travel to an engine in this process through a file.
            raise InsertFailed(f"{tempfile.gettempdir()}: {error.strerror or error}; free space there") from error
        if "written_rows" not in done.summary:
            raise InsertFailed(STRANGE)

    def _said(self, error: ClickHouseError) -> str:
        """What went wrong, in one line."""
        return one_line(error)

    def watermarks(self, writer: str) -> dict[str, int]:
        """For each table the highest seq it has of a writer, 0 when none. StoreAway."""
        union = " UNION ALL ".join(_HIGHEST_SEQ.format(table.name) for table in IN_ORDER)
        found = {str(name): int(str(seq)) for name, seq in self.select(union, writer=writer)}
        if len(found) < len(IN_ORDER):
            raise StoreAway(STRANGE)
        return found

    def sha256_at(self, writer: str, seq: int) -> str | None:
        """The hash, in hexadecimal, of an event already in the store."""
        rows = self.select(_SHA256_AT, writer=writer, seq=seq)
        return str(rows[0][0]) if rows else None

    def gaps(self, table: Table, writer: str, last_seq: int) -> list[Gap]:
        """The ranges up to `last_seq` in which a table has not as many of the writer's rows as it should."""
        return gaps.gaps(self, table, writer, last_seq)

    def present(self, table: Table, writer: str, gap: Gap) -> set[int]:
        """The seqs of such a range that the table has."""
        return gaps.present(self, table, writer, gap)

    def mend_rollups(self, writer: str) -> int:
        """Makes what `usage` adds up to agree with it again; how many days of a rollup did not."""
        return rollups.mend(self, writer)

    def row_counts(self) -> dict[str, int]:
        """How many rows each table has."""
        union = " UNION ALL ".join(_ROW_COUNT.format(table.name) for table in IN_ORDER)
        return {str(name): int(str(count)) for name, count in self.select(union)}


def code_of(error: ClickHouseError) -> int:
    """ClickHouse's number for what went wrong, 0 when it gave none."""
    code = getattr(error, "code", None)
    return code if isinstance(code, int) else 0


def one_line(error: ClickHouseError) -> str:
    """What the engine said, without its query and its stack."""
    return " ".join(str(error).split())[:_MESSAGE_CHARACTERS_MAX]
