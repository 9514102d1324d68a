"""The ledger over ClickHouse's HTTP interface, read-only: a plain ASGI application."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import orjson

from ledger.access import Access, Keys
from ledger.notary import Notary
from ledger.questions import BadRequest, Spoken
from ledger.readers import RUNNING_MAX, QueryFailed, Question, Readers, Running
from ledger.shipper import Shipper
from ledger.stores import AnyStore
from ledger.streams import Meta, Send, Stream
from ledger.turns import Busy, Turns

T = TypeVar("T")
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]

BODY_BYTES_MAX = 1 << 20
BODY_TIMEOUT_S = 30.0
FLUSH_TIMEOUT_S_MAX = 60.0
_THREADS = 4
_CODE_AUTHENTICATION = 516
_CODE_ACCESS_DENIED = 497
_CODE_TOO_MANY_QUERIES = 202
_TEXT = b"text/plain; charset=UTF-8"
_ALIVE = frozenset({"/ping", "/replicas_status"})
_NO_SUCH_PAGE = "There is no such page. Ask GET /ping, GET or POST /?query=, GET /status, POST /flush."
# ClickHouse's numbers for why a query failed, and the HTTP statuses that its own server gives them.
_STATUS_BY_CODE = {
    47: 404,  # UNKNOWN_IDENTIFIER
    60: 404,  # UNKNOWN_TABLE
    81: 404,  # UNKNOWN_DATABASE
    159: 408,  # TIMEOUT_EXCEEDED
    164: 403,  # READONLY
    _CODE_TOO_MANY_QUERIES: 503,
    241: 500,  # MEMORY_LIMIT_EXCEEDED
    _CODE_ACCESS_DENIED: 403,
    _CODE_AUTHENTICATION: 401,
}


class _Answer(Exception):
    """An error to be sent as it is."""

    def __init__(self, status: int, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.code = code

    @classmethod
    def of(cls, message: str, code: int, name: str) -> "_Answer":
        """An error in the words of ClickHouse."""
        return cls(_STATUS_BY_CODE.get(code, 400), f"Code: {code}. DB::Exception: {message}. ({name})", code)


class LedgerServer:
    """The application: `/ping` for anyone, queries for who has a key, `/status` and `/flush` for the home's token."""

    def __init__(self, store: AnyStore, shipper: Shipper, keys: Keys, notary: Notary) -> None:
        self._store = store
        self._readers = Readers(store)
        self._shipper = shipper
        self._notary = notary
        self._keys = keys
        self._turns = Turns(RUNNING_MAX)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="ledger")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        assert scope["type"] == "http"
        try:
            await self._answer(scope, receive, send)
        except _Answer as answer:
            await _send_error(send, answer)
        except (BadRequest, QueryFailed) as error:
            await _send_error(send, _Answer(_STATUS_BY_CODE.get(error.code, 400), str(error), error.code))
        except Busy:
            busy = _Answer.of("too many queries; try again", _CODE_TOO_MANY_QUERIES, "TOO_MANY_SIMULTANEOUS_QUERIES")
            await _send_error(send, busy)

    def close(self) -> bool:
        """Ends queries under way and their threads; False when one does not end, which nobody is to wait for."""
        ended = self._readers.close()
        self._threads.shutdown()
        return ended

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        route = (method, scope["path"])
        if method == "GET" and scope["path"] in _ALIVE:
            return await _send(send, 200, b"Ok.\n", _TEXT)
        spoken = Spoken.of(scope["query_string"], scope["headers"])
        access = self._keys.find(spoken.secrets())
        if access is None:
            raise _Answer.of("wrong or missing key", _CODE_AUTHENTICATION, "AUTHENTICATION_FAILED")
        if route in (("GET", "/"), ("POST", "/")):
            question = spoken.question(await _body(receive))
            if question is None and method == "GET":
                return await _send(send, 200, b"Ok.\n", _TEXT)
            if question is None:
                raise _Answer.of("there is no statement", 62, "SYNTAX_ERROR")
            return await self._query(question, spoken, access, receive, send)
        if route not in (("GET", "/status"), ("POST", "/flush")):
            raise _Answer(404, _NO_SUCH_PAGE)
        if not access.is_home:
            raise _Answer.of("only the home's own token opens this", _CODE_ACCESS_DENIED, "ACCESS_DENIED")
        flushed = True
        if route == ("POST", "/flush"):
            timeout_s = _timeout_s(spoken.fields.get("timeout_s", ""))
            flushed = await self._in_thread(lambda: self._shipper.flush(timeout_s))
        status = orjson.dumps(await self._in_thread(self._status))
        return await _send(send, 200 if flushed else 504, status, b"application/json")

    async def _query(self, question: Question, spoken: Spoken, access: Access, receive: Receive, send: Send) -> None:
        async with self._turns.turn(access):
            running = await self._in_thread(lambda: self._readers.start(question, access))
            try:
                stream = Stream(running, Meta(spoken.query_id(), self._readers.timezone, spoken.encoding()))
                await _stream(stream, receive, send)
            finally:
                self._readers.leave(running)
                await _over(running)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _status(self) -> dict[str, Any]:
        lag = self._shipper.lag()
        return {
            "lag_rows": sum(one.rows for one in lag.values()),
            "lag_s": round(max((one.age_s for one in lag.values()), default=0.0), 3),
            "lag": {writer: {"rows": one.rows, "age_s": round(one.age_s, 3)} for writer, one in lag.items()},
            "shipped": self._shipper.shipped(),
            "stalled": self._shipper.stalled(),
            "rows": self._store.row_counts(),
            "checkpoints": self._notary.status(),
        }


async def _stream(stream: Stream, receive: Receive, send: Send) -> None:
    """Sends a result for as long as the client is there and takes it."""
    answering = asyncio.ensure_future(stream.answer(send))
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            answering.result()
    except TimeoutError:
        # The client takes nothing: its response stays without an end, and the connection is closed.
        return
    finally:
        for task in (answering, leaving):
            task.cancel()
        # At the end of the process this is cancelled a second time; whoever calls gives the reader back all the same.
        await asyncio.wait((answering, leaving))


async def _over(running: Running) -> None:
    """Waits until a statement has ended, unless the process ends.

    One that was left can run on, in one of the few threads there are, for the engine looks between blocks of rows only
    at whether it is to end. As long as it does, the turn is its key's.
    """
    task = asyncio.current_task()
    assert task is not None
    if not task.cancelling():
        await asyncio.gather(asyncio.wrap_future(running.outcome), return_exceptions=True)


async def _left(receive: Receive) -> None:
    """Waits until the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(
    send: Send, status: int, body: bytes, kind: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    headers = ((b"content-type", kind), (b"content-length", str(len(body)).encode()), *headers)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_error(send: Send, answer: _Answer) -> None:
    headers = [(b"x-clickhouse-exception-code", str(answer.code).encode())] if answer.code else []
    if answer.code == _CODE_AUTHENTICATION:
        headers.append((b"www-authenticate", b'Basic realm="ClickHouse server HTTP API"'))
    await _send(send, answer.status, answer.text.encode() + b"\n", _TEXT, tuple(headers))


async def _body(receive: Receive) -> bytes:
    """The request's body, bounded in size and time."""
    chunks, size, more = [], 0, True
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while more:
                message = await receive()
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > BODY_BYTES_MAX:
                    raise _Answer(413, f"The statement is over the limit of {BODY_BYTES_MAX} bytes.")
                chunks.append(chunk)
                more = message.get("more_body", False)
    except TimeoutError:
        raise _Answer(408, f"The statement did not come within {BODY_TIMEOUT_S:.0f} s.") from None
    return b"".join(chunks)


def _timeout_s(text: str) -> float:
    try:
        timeout_s = float(text or FLUSH_TIMEOUT_S_MAX)
    except ValueError as error:
        raise _Answer(400, "timeout_s is not a number of seconds") from error
    return min(max(timeout_s, 0.0), FLUSH_TIMEOUT_S_MAX)
