"""The store: the ClickHouse engine of the ledger, opened by one process alone."""

import fcntl
import os
import queue
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from ledger.gate import Gate, Refused
from ledger.migrations import migrate, shipped
from ledger.tables import IN_ORDER, Table

READERS = 2
READER_WAIT_S = 30.0
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
}
_READ_SETTINGS = {
    "max_execution_time": 60,
    "max_memory_usage": 1 << 30,
    "max_result_rows": 1_000_000,
    "max_result_bytes": 256 << 20,
    "result_overflow_mode": "throw",
    "max_ast_depth": 500,
    "max_query_size": 1 << 20,
    "output_format_json_quote_64bit_integers": 0,
    "output_format_json_quote_decimals": 1,
    "allow_introspection_functions": 0,
}
_HIGHEST_SEQ = "SELECT '{0}', max(seq) FROM {0} WHERE writer = {{writer:String}}"
_ROW_COUNT = "SELECT '{0}', count() FROM {0}"
_SHA256_AT = "SELECT sha256 FROM events WHERE writer = {writer:String} AND seq = {seq:UInt64} LIMIT 1"
_PARAMETER = re.compile(r"\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*:")
_TOO_MANY_PARTS = 252
_READONLY = 164


class StoreLocked(Exception):
    """Another process has the store open."""


class StoreUnsupported(Exception):
    """The URL names no store that this Bursar can open."""


class StoreBusy(Exception):
    """All readers are taken."""


class InsertFailed(Exception):
    """The engine refused an insert; `spans_partitions` when its rows belong to more than one month."""

    def __init__(self, message: str, *, spans_partitions: bool) -> None:
        super().__init__(message)
        self.spans_partitions = spans_partitions


class QueryFailed(Exception):
    """The engine or the gate refused a query, with ClickHouse's number for why; the message is safe to show."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Store:
    """An open ledger: one connection that writes, a few that can only read; methods may be called from any thread.

    chDB runs queries of different connections in parallel and wants those of one connection one by one, which
    clickhouse-connect's client sees to with a lock of its own.
    """

    def __init__(self, url: str, *, readers: int = READERS) -> None:
        """Opens `chdb:///path`, alone, with its schema up to date. StoreLocked, StoreUnsupported, SchemaRefused."""
        self.path = chdb_path(url)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock_fd = _lock(self.path)
        self._clients: list[Client] = []
        self._readers: queue.Queue[Client] = queue.Queue()
        try:
            self._writer = self._connect({})
            self.migrated = migrate(self, shipped())
            self._gate = self._make_gate()
            for _ in range(readers):
                # readonly stands last: after it, nothing can be set any more.
                self._readers.put(self._connect({**_READ_SETTINGS, "readonly": 1}))
        except BaseException:
            self.close()
            raise

    def execute(self, sql: str) -> None:
        """Runs one statement of the code's own."""
        self._writer.command(sql)

    def select(self, sql: str) -> list[tuple[object, ...]]:
        """The rows of one statement of the code's own."""
        return [tuple(row) for row in self._writer.query(sql).result_rows]

    def insert(self, table: Table, rows: bytes, token: str) -> None:
        """Inserts JSON lines, whole or not at all; the same token never inserts twice. InsertFailed."""
        settings = {**_INSERT_SETTINGS, "insert_deduplication_token": token}
        try:
            self._writer.raw_insert(table.name, table.columns, rows, settings=settings, fmt="JSONEachRow")
        except ClickHouseError as error:
            raise InsertFailed(str(error), spans_partitions=_code(error) == _TOO_MANY_PARTS) from error

    def watermarks(self, writer: str) -> dict[str, int]:
        """For each table the highest seq it has of a writer, 0 when none."""
        union = " UNION ALL ".join(_HIGHEST_SEQ.format(table.name) for table in IN_ORDER)
        rows = self._writer.query(union, parameters={"writer": writer}).result_rows
        return {str(name): int(seq) for name, seq in rows}

    def sha256_at(self, writer: str, seq: int) -> str | None:
        """The hash, in hexadecimal, of an event already in the store."""
        rows = self._writer.query(_SHA256_AT, parameters={"writer": writer, "seq": seq}).result_rows
        return str(rows[0][0]) if rows else None

    def row_counts(self) -> dict[str, int]:
        """How many rows each table has."""
        union = " UNION ALL ".join(_ROW_COUNT.format(table.name) for table in IN_ORDER)
        return {str(name): int(str(count)) for name, count in self.select(union)}

    def query(self, sql: str, default_format: str, parameters: Mapping[str, str]) -> bytes:
        """Runs someone else's reading statement and returns its formatted result. QueryFailed, StoreBusy."""
        try:
            statement, names_format = self._gate.admit(sql)
        except Refused as refused:
            raise QueryFailed(f"Code: {_READONLY}. DB::Exception: {refused}. (READONLY)", _READONLY) from refused
        with self._reader() as reader:
            try:
                fmt = None if names_format else default_format
                return bytes(reader.raw_query(statement, parameters=_bound(statement, parameters), fmt=fmt))
            except ClickHouseError as error:
                raise QueryFailed(str(error), _code(error)) from error

    def close(self) -> None:
        """Closes the engine and gives up the lock."""
        for client in self._clients:
            client.close()
        os.close(self._lock_fd)

    def _connect(self, settings: Mapping[str, object]) -> Client:
        client = clickhouse_connect.get_client(interface="chdb", path=str(self.path), settings=dict(settings))
        self._clients.append(client)
        return client

    def _make_gate(self) -> Gate:
        table_functions = [str(row[0]) for row in self.select("SELECT name FROM system.table_functions")]
        functions = [str(row[0]) for row in self.select("SELECT name FROM system.functions")]
        return Gate(table_functions, functions)

    @contextmanager
    def _reader(self) -> Iterator[Client]:
        try:
            reader = self._readers.get(timeout=READER_WAIT_S)
        except queue.Empty:
            raise StoreBusy("all readers of the ledger are busy; try again") from None
        try:
            yield reader
        finally:
            self._readers.put(reader)


def _bound(statement: str, parameters: Mapping[str, str]) -> dict[str, str] | None:
    """The parameters that the statement names as `{name:Type}`; with others the client would rewrite its `%` signs."""
    names = set(_PARAMETER.findall(statement))
    return {name: value for name, value in parameters.items() if name in names} or None


def chdb_path(url: str) -> Path:
    """The directory that `chdb:///path` names; StoreUnsupported for any other kind of URL."""
    parts = urlsplit(url)
    if parts.scheme != "chdb" or parts.netloc or not parts.path.strip("/"):
        raise StoreUnsupported(f"{url}: write chdb:///path/of/a/directory")
    return Path(parts.path)


def _lock(path: Path) -> int:
    """Locks the store by a file beside it, which names the process that holds it."""
    lock_path = path.with_name(f"{path.name}.lock")
    fd = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(fd, 32).decode(errors="replace").strip()
        os.close(fd)
        raise StoreLocked(f"the ledger {path} is open in process {holder}; ask that one or stop it") from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd


def _code(error: ClickHouseError) -> int:
    code = getattr(error, "code", None)
    return code if isinstance(code, int) else 0
