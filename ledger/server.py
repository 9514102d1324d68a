"""The ledger over ClickHouse's HTTP interface, read-only: a plain ASGI application."""

import asyncio
import base64
import binascii
import hmac
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import orjson

from ledger.shipper import Shipper
from ledger.store import QueryFailed, Store, StoreBusy

T = TypeVar("T")
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

BODY_BYTES_MAX = 1 << 20
THREADS = 4
WAITING_MAX = 32
FLUSH_TIMEOUT_S_MAX = 60.0
_CODE_AUTHENTICATION = 516
_CODE_TOO_MANY_QUERIES = 202
_TOO_MANY = f"Code: {_CODE_TOO_MANY_QUERIES}. DB::Exception: too many queries; try again. (TOO_MANY_QUERIES)"
# ClickHouse's numbers for why a query failed, and the HTTP statuses that its own server gives them.
_STATUS_BY_CODE = {
    47: 404,  # UNKNOWN_IDENTIFIER
    60: 404,  # UNKNOWN_TABLE
    81: 404,  # UNKNOWN_DATABASE
    159: 408,  # TIMEOUT_EXCEEDED
    164: 403,  # READONLY
    _CODE_TOO_MANY_QUERIES: 503,
    241: 500,  # MEMORY_LIMIT_EXCEEDED
    497: 403,  # ACCESS_DENIED
    _CODE_AUTHENTICATION: 401,
}


class _Answer(Exception):
    """An error to be sent as it is."""

    def __init__(self, status: int, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.code = code


class LedgerServer:
    """The application: `/ping` for anyone; queries, `/status` and `/flush` for whoever has the token."""

    def __init__(self, store: Store, shipper: Shipper, token: str) -> None:
        self._store = store
        self._shipper = shipper
        self._token = token.encode()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="query")
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        assert scope["type"] == "http"
        headers: list[tuple[bytes, bytes]] = []
        try:
            status, body, kind = await self._answer(scope, receive)
        except _Answer as answer:
            status, body, kind = answer.status, answer.text.encode() + b"\n", b"text/plain; charset=UTF-8"
            if answer.code:
                headers.append((b"x-clickhouse-exception-code", str(answer.code).encode()))
        headers += [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def close(self) -> None:
        """Waits for queries under way and ends their threads."""
        self._threads.shutdown()

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, bytes, bytes]:
        route = (scope["method"], scope["path"])
        if route == ("GET", "/ping"):
            return 200, b"Ok.\n", b"text/plain; charset=UTF-8"
        parameters = _parameters(scope["query_string"])
        self._authenticate(scope["headers"], parameters)
        if route in (("GET", "/"), ("POST", "/")):
            sql = await _statement(parameters, receive)
            return 200, await self._query(sql, parameters), b"text/plain; charset=UTF-8"
        if route == ("GET", "/status"):
            return 200, orjson.dumps(await self._in_thread(self._status)), b"application/json"
        if route == ("POST", "/flush"):
            timeout_s = _timeout_s(parameters.get("timeout_s", ""))
            flushed = await self._in_thread(lambda: self._shipper.flush(timeout_s))
            status = await self._in_thread(self._status)
            return (200 if flushed else 504), orjson.dumps(status), b"application/json"
        raise _Answer(404, "There is no such page. Ask GET /ping, GET or POST /?query=, GET /status, POST /flush.")

    def _authenticate(self, headers: Iterable[tuple[bytes, bytes]], parameters: dict[str, str]) -> None:
        given = [parameters.get("password", "").encode(), *_credentials(headers)]
        # Every one is compared, and each in constant time.
        matches = [hmac.compare_digest(candidate, self._token) for candidate in given]
        if not any(matches):
            message = f"Code: {_CODE_AUTHENTICATION}. DB::Exception: wrong or missing token. (AUTHENTICATION_FAILED)"
            raise _Answer(401, message, _CODE_AUTHENTICATION)

    async def _query(self, sql: str, parameters: dict[str, str]) -> bytes:
        default_format = parameters.get("default_format", "TabSeparated")
        if not default_format.isidentifier():
            raise _Answer(400, "Code: 73. DB::Exception: Unknown format. (UNKNOWN_FORMAT)", 73)
        bound = {name.removeprefix("param_"): value for name, value in parameters.items() if name.startswith("param_")}
        try:
            return await self._in_thread(lambda: self._store.query(sql, default_format, bound))
        except QueryFailed as error:
            raise _Answer(_STATUS_BY_CODE.get(error.code, 400), str(error), error.code) from error

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._waiting >= WAITING_MAX:
            raise _Answer(503, _TOO_MANY, _CODE_TOO_MANY_QUERIES)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except StoreBusy as error:
            raise _Answer(503, _TOO_MANY, _CODE_TOO_MANY_QUERIES) from error
        finally:
            self._waiting -= 1

    def _status(self) -> dict[str, Any]:
        lag_rows, lag_s = self._shipper.lag()
        return {
            "lag_rows": lag_rows,
            "lag_s": round(lag_s, 3),
            "shipped": self._shipper.shipped(),
            "stalled": self._shipper.stalled(),
            "rows": self._store.row_counts(),
        }


def _parameters(query_string: bytes) -> dict[str, str]:
    try:
        return dict(parse_qsl(query_string.decode(), keep_blank_values=True, max_num_fields=100))
    except ValueError as error:
        raise _Answer(400, f"The query string cannot be read: {error}") from error


def _credentials(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """Every token that the headers offer, in the three ways that ClickHouse's clients know."""
    offered = []
    for name, value in headers:
        scheme, _, rest = value.partition(b" ")
        if name == b"x-clickhouse-key":
            offered.append(value)
        elif name == b"authorization" and scheme.lower() == b"bearer":
            offered.append(rest.strip())
        elif name == b"authorization" and scheme.lower() == b"basic":
            try:
                offered.append(base64.b64decode(rest, validate=True).partition(b":")[2])
            except binascii.Error:
                # What is not base64 holds no token; the answer is the same 401.
                offered.append(b"")
    return offered


async def _statement(parameters: dict[str, str], receive: Receive) -> str:
    """The SQL: the `query` parameter, then the body."""
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > BODY_BYTES_MAX:
            raise _Answer(413, f"The statement is over the limit of {BODY_BYTES_MAX} bytes.")
        chunks.append(chunk)
        more = message.get("more_body", False)
    try:
        body = b"".join(chunks).decode()
    except UnicodeDecodeError as error:
        raise _Answer(400, "Code: 62. DB::Exception: the statement is not UTF-8. (SYNTAX_ERROR)", 62) from error
    sql = "\n".join(part for part in (parameters.get("query", ""), body) if part)
    if not sql.strip():
        raise _Answer(400, "Code: 62. DB::Exception: there is no statement. (SYNTAX_ERROR)", 62)
    return sql


def _timeout_s(text: str) -> float:
    try:
        timeout_s = float(text or FLUSH_TIMEOUT_S_MAX)
    except ValueError as error:
        raise _Answer(400, "timeout_s is not a number of seconds") from error
    return min(max(timeout_s, 0.0), FLUSH_TIMEOUT_S_MAX)
