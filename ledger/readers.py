"""Readers: someone else's statements, admitted by the gate and run on connections that can only read.

Each statement has a connection of its own, which is given its limits, its row filters and `readonly = 1`, in this order
and for good. Its result goes through a pipe: the engine waits when nobody reads, so no result is ever whole in memory.
"""

import fcntl
import os
import re
import threading
import uuid
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, NamedTuple

from ledger import served
from ledger.access import Access, literal, map_literal
from ledger.gate import Function, Gate, Refused
from ledger.stores import AnyStore

RUNNING_MAX = 4
CHUNK_BYTES = 1 << 18
PIPE_BYTES = 1 << 20
_SET_PIPE_BYTES = 1031  # F_SETPIPE_SZ, of Linux
# With these, conditions of a statement never run on rows that a filter is to hide. Merged with the filter, or moved
# ahead of it, they did (in 154 of 288 statements tried), and what they raise tells what is in those rows.
_FILTERED_SETTINGS = {
    "optimize_move_to_prewhere": 0,
    "query_plan_merge_filters": 0,
    "use_query_condition_cache": 0,
    # They count the rows read, those that a filter hid too.
    "output_format_write_statistics": 0,
}
_SETTINGS = {
    "result_overflow_mode": "throw",
    "max_ast_depth": 500,
    "max_query_size": 1 << 20,
    "output_format_json_quote_64bit_integers": 0,
    "output_format_json_quote_decimals": 1,
    "allow_introspection_functions": 0,
}
# What the home's own token may take: results of any size, for they are streamed.
_HOME_LIMITS = {
    **served.LIMITS,
    "max_execution_time": 600,
    "max_result_rows": 0,
    "max_result_bytes": 0,
    "max_block_size": 65_409,
}
_TABLES = "SELECT database, name FROM system.tables"
_FUNCTIONS = "SELECT name, categories, alias_to FROM system.functions"
_PARAMETER = re.compile(r"\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*:")
# No pattern here may look twice at what a statement can make long, a run of blanks for one: it would stop every thread.
_INTO = re.compile(r"\s{0,2}(?:INTO )?OUTFILE '/dev/fd/\d+' APPEND FORMAT \w+")
_CODE = re.compile(r"Code: (\d+)")
_REPEATED = re.compile(r"^(?:Code: (\d+)\. DB::Exception: (?=Code: \1\b))+")
_SAID_CHARACTERS_MAX = 16 << 10
_KILL_AGAIN_S = 0.2
CLOSE_TIMEOUT_S = 10.0
UNKNOWN_FORMAT = 73
UNKNOWN_DATABASE = 81
READONLY = 164
SETTING_CONSTRAINT_VIOLATION = 452


class QueryFailed(Exception):
    """The engine or the gate refused a query, with ClickHouse's number for why; the message is safe to show."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class Question(NamedTuple):
    """One statement and what was said beside it."""

    sql: str
    default_format: str = "TabSeparated"
    parameters: Mapping[str, str] = {}
    settings: Mapping[str, str] = {}
    database: str = ""


class Finished(NamedTuple):
    """What is known of a statement once it has run: seconds, and what did not come through the pipe."""

    elapsed_s: float
    rest: bytes


class Running:
    """A statement under way: bytes come out of `fd`, and once they have ended `outcome` says how it went."""

    def __init__(self, output_format: str) -> None:
        self.output_format = output_format
        self.mark = uuid.uuid4().hex
        self.fd, self.write_fd = os.pipe()
        with suppress(OSError):  # a narrower pipe does as well, in more steps
            fcntl.fcntl(self.write_fd, _SET_PIPE_BYTES, PIPE_BYTES)
        self.left = threading.Event()
        self.outcome: Future[Finished] = Future()
        self.outcome.set_running_or_notify_cancel()

    def read(self) -> bytes:
        """The next bytes, none at the end; waits for them."""
        return os.read(self.fd, CHUNK_BYTES)


class Readers:
    """Runs a few statements at once; methods may be called from any thread."""

    def __init__(self, store: AnyStore) -> None:
        self._session = store.session
        self._own = store.session()
        self._own_lock = threading.Lock()
        self._threads = ThreadPoolExecutor(RUNNING_MAX, thread_name_prefix="query")
        self._killers = ThreadPoolExecutor(RUNNING_MAX, thread_name_prefix="kill")
        self._running: set[Running] = set()
        self._running_lock = threading.Lock()
        self._closed = threading.Event()
        functions = [Function(*row) for row in self._own_rows(_FUNCTIONS)]
        self._gate = Gate([row[0] for row in self._own_rows("SELECT name FROM system.table_functions")], functions)
        [(self.timezone, self._database)] = self._own_rows("SELECT timezone(), currentDatabase()")
        self._own_rows(f"DROP DATABASE IF EXISTS {served.VIEWS}")
        self._own_rows(f"CREATE DATABASE {served.VIEWS} ENGINE = Memory")
        for name, sql in served.VIEW_SQL.items():
            self._own_rows(f"CREATE VIEW {served.VIEWS}.{name} AS {sql}")

    def start(self, question: Question, access: Access) -> Running:
        """Begins someone else's reading statement; `leave` must be called in the end. QueryFailed for one refused."""
        if question.database not in ("", served.DATABASE, self._database):
            raise _failed(f"Database {question.database[:64]} does not exist", UNKNOWN_DATABASE, "UNKNOWN_DATABASE")
        try:
            admitted = self._gate.admit(question.sql, question.parameters)
        except Refused as refused:
            raise _failed(str(refused), READONLY, "READONLY") from refused
        output_format = admitted.output_format or question.default_format
        if output_format not in served.CONTENT_TYPES:
            raise _failed(f"the format {output_format} is not served", UNKNOWN_FORMAT, "UNKNOWN_FORMAT")
        limits = _HOME_LIMITS if access.is_home else served.LIMITS
        asked = _asked({**question.settings, **admitted.settings}, access)
        settings = {**_SETTINGS, **limits, **asked, **({} if access.orgs is None else _FILTERED_SETTINGS)}
        running = Running(output_format)
        # EXPLAIN would print what is added to its statement, and its result is as short as the statement.
        into = f"\n INTO OUTFILE '/dev/fd/{running.write_fd}' APPEND FORMAT {output_format}"
        into = "" if admitted.explains else into
        names = set(_PARAMETER.findall(admitted.sql))
        parameters = {name: value for name, value in question.parameters.items() if name in names}
        with self._running_lock:
            self._running.add(running)
        self._threads.submit(self._run, running, admitted.sql + into, parameters, settings, access)
        return running

    def leave(self, running: Running) -> None:
        """Ends a statement whose result nobody wants any longer, and gives back what it took; once is enough."""
        with self._running_lock:
            if running.left.is_set():
                return
            running.left.set()
            os.close(running.fd)
        if not running.outcome.done():
            self._killers.submit(self._kill, running)

    def query(self, question: Question, access: Access) -> bytes:
        """The whole result of one statement; QueryFailed."""
        running = self.start(question, access)
        try:
            chunks = list(iter(running.read, b""))
            return b"".join([*chunks, running.outcome.result().rest])
        finally:
            self.leave(running)

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> bool:
        """Ends what is under way; False when some of it has not ended in time, and so keeps the engine and its thread.

        The engine looks between blocks of rows at whether a statement is to end, and one block can take hours.
        """
        with self._running_lock:
            under_way = list(self._running)
        for running in under_way:
            self.leave(running)
        ended = not wait([running.outcome for running in under_way], timeout_s).not_done
        self._closed.set()
        self._threads.shutdown(wait=ended)
        self._killers.shutdown(wait=ended)
        if ended:
            self._own.close()
        return ended

    def _run(
        self,
        running: Running,
        sql: str,
        parameters: Mapping[str, str],
        settings: Mapping[str, object],
        access: Access,
    ) -> None:
        try:
            running.outcome.set_result(self._answer(running, sql, parameters, settings, access))
        except Exception as error:  # noqa: BLE001 whatever the engine raises is the outcome
            running.outcome.set_exception(_said(error))
        finally:
            os.close(running.write_fd)
            with self._running_lock:
                self._running.discard(running)

    def _answer(
        self,
        running: Running,
        sql: str,
        parameters: Mapping[str, str],
        settings: Mapping[str, object],
        access: Access,
    ) -> Finished:
        connection = self._session()
        try:
            # All tables that there are now, so that none is ever without its filter.
            tables = ((database, table) for database, table in self._own_rows(_TABLES))
            filters = access.filters(tables, self._database)
            named = {**settings, "log_comment": running.mark}
            values = ", ".join(f"{name} = {literal(str(value))}" for name, value in named.items())
            # readonly stands last: after it, nothing can be set any more.
            connection.query(f"SET {values}, additional_table_filters = {map_literal(filters)}, readonly = 1", "Null")
            if running.left.is_set():
                raise CancelledError
            result = connection.query(sql, running.output_format, params=dict(parameters))
            return Finished(result.elapsed(), result.bytes() or b"")
        finally:
            connection.close()

    def _own_rows(self, sql: str) -> list[list[str]]:
        """The rows of a statement of the code's own, whose values have neither tabs nor line breaks."""
        with self._own_lock:
            result = self._own.query(sql, "TabSeparatedRaw")
        return [row.split("\t") for row in (result.bytes() or b"").decode().splitlines()]

    def _kill(self, running: Running) -> None:
        """Ends the statement in the engine; again and again, for it may not have begun."""
        while not (running.outcome.done() or self._closed.is_set()):
            self._own_rows(f"KILL QUERY WHERE Settings['log_comment'] = '{running.mark}' ASYNC")
            try:
                running.outcome.exception(_KILL_AGAIN_S)
            except TimeoutError:
                continue


def _asked(asked: Mapping[str, str], access: Access) -> dict[str, Any]:
    """The settings that were asked for and have an effect; QueryFailed for those that are not served."""
    found = {}
    for name, value in asked.items():
        if not name.startswith(served.FORMAT_FAMILIES) and name not in served.SETTINGS:
            raise _failed(f"Cannot modify '{name[:64]}' setting in readonly mode", READONLY, "READONLY")
        bound = served.SETTINGS.get(name, served.Bound())
        if access.is_home and name in _HOME_LIMITS:
            bound = served.Bound(0, 1 << 62)
        if not bound.allows(value):
            message = f"the setting {name} cannot be {value[:64]!r}: {bound}"
            raise _failed(message, SETTING_CONSTRAINT_VIOLATION, "SETTING_CONSTRAINT_VIOLATION")
        if name not in served.WITHOUT_EFFECT:
            found[name] = value
    return found


def _failed(message: str, code: int, name: str) -> QueryFailed:
    return QueryFailed(f"Code: {code}. DB::Exception: {message}. ({name})", code)


def _said(error: Exception) -> QueryFailed:
    """What the engine said, from where ClickHouse's message begins."""
    text, half = str(error), _SAID_CHARACTERS_MAX // 2
    if len(text) > _SAID_CHARACTERS_MAX:
        text = f"{text[:half]} … {text[-half:]}"
    text = _INTO.sub("", text)
    text = _REPEATED.sub("", text[max(text.find("Code: "), 0) :].strip()) or type(error).__name__
    code = _CODE.match(text)
    return QueryFailed(text, int(code[1]) if code else 0)
