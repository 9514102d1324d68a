"""One HTTP/1.1 connection to a runtime and the responses read from it: parsed by httptools, kept in bounds."""

import asyncio
from collections.abc import Callable
from typing import Final, cast

import httptools

from runtime.port import Garbage, Lost, RuntimeFailure

HEAD_BYTES_MAX: Final = 64 * 1024
BODY_BYTES_MAX: Final = 256 * 1024


class Response:
    """One answer, read as it arrives by one reader; `close` it whatever happens, for it holds a connection until then.

    `is_complete` says that the whole message has arrived, though some of it may not have been read yet.
    """

    __slots__ = ("_connection", "_parts", "failure", "headers", "is_complete", "status", "waiter")

    def __init__(self, connection: "Connection", parts: list[bytes]) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.is_complete = False
        self.failure: RuntimeFailure | None = None
        self.waiter: asyncio.Future[None] | None = None
        self._connection: Connection | None = connection
        self._parts = parts

    @property
    def is_framed(self) -> bool:
        """Whether the head says where the body ends; if not, it ends with the connection."""
        return any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self.headers)

    def header(self, lower_name: bytes) -> bytes | None:
        """The value of the first header of that lower-case name."""
        return next((value for name, value in self.headers if name.lower() == lower_name), None)

    async def read_any(self) -> bytes:
        """The body that has arrived, waiting for some; b"" at its end. Raises Lost and Garbage after what came before.

        Cancelled, it leaves the response open, so that `read_nowait` can still take in what the runtime had sent.
        """
        while not self._parts and not self.is_complete:
            await self.wait()
        return self.read_nowait()

    def read_nowait(self) -> bytes:
        """The body that has arrived, b"" where none has or all was read. Raises Lost and Garbage after it."""
        parts = self._parts
        if not parts:
            if self.failure is not None:
                raise self.failure
            return b""
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        if self._connection is not None:
            self._connection.drained()
        return data

    def close(self) -> None:
        """Give the connection back if the message is complete and it may carry another, else abort it; idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._parts = []
            if not self.is_complete:
                self.fail(Lost("the response was closed before it was complete"))
            connection.finish(self)

    async def wait(self) -> None:
        """Wait until the connection has brought something. Raises Lost and Garbage."""
        if self.failure is not None:
            raise self.failure
        assert self.waiter is None, "a response has one reader"
        assert self._connection is not None
        self.waiter = self._connection.loop.create_future()
        try:
            await self.waiter
        finally:
            self.waiter = None

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    def fail(self, failure: RuntimeFailure) -> None:
        """End a response that is not complete; the first failure stands."""
        self.failure = self.failure or failure
        self.wake()


class Connection(asyncio.Protocol):
    """Carries one request and its response at a time; calls `release` when that is over and `forget` when it is gone.

    A body is buffered up to 256 KiB and one read of the socket; what brings no body (head, trailers, 1xx) up to 64 KiB.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        release: "Callable[[Connection], None]",
        forget: "Callable[[Connection], None]",
    ) -> None:
        self.loop = loop
        self.idle_since_s = 0.0
        self.is_reusable = False  # after the response under way
        self._release, self._forget = release, forget
        self._transport: asyncio.Transport | None = None
        self._response: Response | None = None
        self._has_ended = self._is_paused = False
        self._buffered = self._barren = self._read_bytes = 0
        self._parts: list[bytes] = []
        self.on_body = self._parts.append  # the parser calls it for each piece: a Python frame less
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    @property
    def is_open(self) -> bool:
        """Whether a request can be written."""
        return not self._has_ended and self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes) -> Response:
        """Write a whole request on an open connection and return its response, which has no head yet."""
        assert self._response is None
        assert self._transport is not None
        self._response = response = Response(self, self._parts)
        self._buffered = self._barren = 0
        self._transport.write(request)
        return response

    def finish(self, response: Response) -> None:
        """End the exchange: only a complete message that left nothing over leaves a connection to use again."""
        self._response = None
        self._parts.clear()
        self.is_reusable = self.is_reusable and response.is_complete and self.is_open
        if not self.is_reusable or (self._transport is not None and self._transport.get_write_buffer_size()):
            self.abort()
        self._release(self)

    def abort(self) -> None:
        self._has_ended, self.is_reusable = True, False
        if self._transport is not None:
            self._transport.abort()

    def drained(self) -> None:
        self._buffered = 0
        if self._is_paused and self.is_open and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        response, parts = self._response, self._parts
        if response is None or response.is_complete or self._parser is None:
            self.abort()  # nobody asked for this, so nothing after it can be trusted either
            return
        before, self._read_bytes = len(parts), len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.is_reusable = False
            if not response.is_complete:
                self._refuse(response, str(error.__context__ or error))
        if len(parts) > before:
            self._barren = 0
            self._buffered += len(data)
            if self._buffered > BODY_BYTES_MAX and not response.is_complete:
                self._pause()
        else:
            self._barren += len(data)
            if self._barren > HEAD_BYTES_MAX and not response.is_complete:
                self._refuse(response, "too large a head")
        if response.status:
            response.wake()

    def eof_received(self) -> None:
        """Take it for the end of a body that has no other, and for the loss of any other answer."""
        response = self._response
        if response is not None and response.status and response.failure is None and not response.is_framed:
            response.is_complete = True
            response.wake()
        self._lose("it was closed")

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(str(exc or "it was closed"))
        self._transport = self._parser = None  # they hold this object
        self._forget(self)

    def on_message_begin(self) -> None:
        if self._response is None or self._response.is_complete:
            raise Garbage("more than was asked for")
        self._response.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._response is not None and not self._response.status:  # a trailer has no reader
            self._response.headers.append((name, value))

    def on_headers_complete(self) -> None:
        response, parser = self._response, self._parser
        assert response is not None
        assert parser is not None
        status = parser.get_status_code()
        if status < 100 or status == 101 or not parser.get_http_version().startswith("1."):
            raise Garbage(f"status {status} of version {parser.get_http_version()}, which was not asked for")
        if status < 200:
            return
        if self._barren + self._read_bytes > HEAD_BYTES_MAX:
            head_bytes = sum(len(name) + len(value) for name, value in response.headers)
            if head_bytes > HEAD_BYTES_MAX:
                raise Garbage("too large a head")
        self.is_reusable = parser.should_keep_alive()
        response.status = status

    def on_message_complete(self) -> None:
        if self._response is not None and self._response.status:
            self._response.is_complete = True

    def _pause(self) -> None:
        if not self._is_paused and self.is_open and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def _lose(self, reason: str) -> None:
        self._has_ended = True
        if self._response is not None and not self._response.is_complete:
            self._response.fail(Lost(f"the connection ended before the answer was complete: {reason}"))

    def _refuse(self, response: Response, reason: str) -> None:
        response.fail(Garbage(f"the answer is not the HTTP/1.1 that was asked for: {reason}"))
        self.abort()
