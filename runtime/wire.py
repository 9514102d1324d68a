"""One HTTP/1.1 connection to a runtime and the response that is read from it: parsed by httptools, kept in bounds."""

import asyncio
from collections.abc import Callable
from typing import Final, cast

import httptools

from runtime.port import Garbage, Lost, RuntimeFailure

HEAD_BYTES_MAX: Final = 64 * 1024
BODY_BYTES_MAX: Final = 256 * 1024

Headers = list[tuple[bytes, bytes]]


class Response:
    """One answer, read as it arrives; `close` it whatever happens, for it holds a connection of the pool until then.

    `is_complete` says that the whole message has arrived, though some of it may not have been read yet.
    """

    __slots__ = ("_buffered", "_connection", "_failure", "_parts", "_waiter", "headers", "is_complete", "status")

    def __init__(self, connection: "Connection", parts: list[bytes]) -> None:
        self.status = 0
        self.headers: Headers = []
        self.is_complete = False
        self._connection: Connection | None = connection
        self._parts = parts
        self._buffered = 0
        self._failure: RuntimeFailure | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def content_length(self) -> int | None:
        """The length in bytes that the head announces, or None where it announces none."""
        length = self.header(b"content-length")
        return None if length is None else int(length)

    def header(self, lower_name: bytes) -> bytes | None:
        """The value of the first header of that lower-case name."""
        for name, value in self.headers:
            if name.lower() == lower_name:
                return value
        return None

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
        if parts:
            data = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
            self._buffered = 0
            if self._connection is not None:
                self._connection.resume()
            return data
        if self._failure is not None:
            raise self._failure
        return b""

    def close(self) -> None:
        """Give the connection back if the message is complete and it may carry another, else abort it; idempotent."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._parts = []
        if not self.is_complete:
            self.fail(Lost("the response was closed before it was complete"))
        connection.finish()

    async def wait(self) -> None:
        """Wait until the connection has brought something. Raises Lost and Garbage."""
        if self._failure is not None:
            raise self._failure
        assert self._waiter is None, "a response has one reader"
        assert self._connection is not None
        self._waiter = self._connection.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, failure: RuntimeFailure) -> None:
        """End a response that is not complete; the first failure stands."""
        if self._failure is None:
            self._failure = failure
        self.wake()

    def arrived(self, size_bytes: int) -> bool:
        """Count what came towards the body; whether that is enough until some of it has been read."""
        self._buffered += size_bytes
        return self._buffered > BODY_BYTES_MAX


class Connection(asyncio.Protocol):
    """A connection that carries one request and its response at a time.

    `release` is called when a response was closed, `forget` when the connection is gone. A body is buffered up to
    256 KiB and one read of the socket; what brings no body (heads, trailers, 1xx answers) up to 64 KiB.
    """

    __slots__ = (
        "_barren",
        "_forget",
        "_has_ended",
        "_is_paused",
        "_parser",
        "_parts",
        "_read_bytes",
        "_release",
        "_response",
        "_transport",
        "idle_since_s",
        "is_reusable",
        "loop",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        release: "Callable[[Connection], None]",
        forget: "Callable[[Connection], None]",
    ) -> None:
        self.loop = loop
        self.idle_since_s = 0.0
        self.is_reusable = False
        self._release = release
        self._forget = forget
        self._response: Response | None = None
        self._transport: asyncio.Transport | None = None
        self._has_ended = False
        self._is_paused = False
        self._barren = 0
        self._read_bytes = 0
        # The parser calls `append` itself for each piece of a body: a Python frame less.
        self._parts: list[bytes] = []
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    @property
    def on_body(self) -> Callable[[bytes], None]:
        return self._parts.append

    @property
    def is_open(self) -> bool:
        """Whether a request can be written."""
        return self._transport is not None and not self._has_ended and not self._transport.is_closing()

    def send(self, request: bytes) -> Response:
        """Write a whole request on an open connection and return its response, which has no head yet."""
        assert self._response is None
        assert self._transport is not None
        self._response = response = Response(self, self._parts)
        self._barren = 0
        self._transport.write(request)
        return response

    def finish(self) -> None:
        """End the exchange; the connection stays usable only after a complete message that leaves nothing over."""
        response, self._response = self._response, None
        assert response is not None
        self._parts.clear()
        transport = self._transport
        self.is_reusable = (
            self.is_reusable
            and response.is_complete
            and self.is_open
            and transport is not None
            and not transport.get_write_buffer_size()
        )
        if not self.is_reusable:
            self.abort()
        self._release(self)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def resume(self) -> None:
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        response, parser = self._response, self._parser
        if response is None or response.is_complete or parser is None:
            self.is_reusable = False
            self.abort()  # nobody asked for this, so nothing after it can be trusted either
            return
        parts = self._parts
        before, self._read_bytes = len(parts), len(data)
        try:
            parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self.is_reusable = False
            if not response.is_complete:
                self._refuse(response, f"the answer is not HTTP/1.1: {error.__context__ or error}")
                return
        if len(parts) > before:
            self._barren = 0
            if response.arrived(len(data)) and not response.is_complete:
                self._pause()
        elif not response.is_complete:
            self._barren += len(data)
            if self._barren > HEAD_BYTES_MAX:
                self._refuse(response, "the answer has too large a head")
                return
        if response.status:
            response.wake()

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)
        self._transport = None
        self._parser = None  # it holds bound methods of this object
        self._forget(self)

    def on_message_begin(self) -> None:
        response = self._response
        if response is None or response.is_complete:
            raise Garbage("there is more than was asked for")
        response.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        response = self._response
        if response is not None and not response.status:  # a trailer has no reader
            response.headers.append((name, value))

    def on_headers_complete(self) -> None:
        response, parser = self._response, self._parser
        assert response is not None
        assert parser is not None
        status = parser.get_status_code()
        if status < 200:
            if status <= 101:
                self._check_interim(status)
            return
        if self._barren + self._read_bytes > HEAD_BYTES_MAX:
            size_bytes = sum(len(name) + len(value) for name, value in response.headers)
            if size_bytes > HEAD_BYTES_MAX:
                raise Garbage("it has too large a head")
        if not parser.get_http_version().startswith("1."):
            raise Garbage("it has another version")
        self.is_reusable = parser.should_keep_alive()
        response.status = status

    def on_message_complete(self) -> None:
        response = self._response
        if response is not None and response.status:
            response.is_complete = True

    def _check_interim(self, status: int) -> None:
        if status == 101:
            raise Garbage("it changes to a protocol that was not asked for")
        if status < 100:
            raise Garbage(f"it has the status {status}")

    def _pause(self) -> None:
        if not self._is_paused and self.is_open:
            assert self._transport is not None
            self._is_paused = True
            self._transport.pause_reading()

    def _refuse(self, response: Response, reason: str) -> None:
        response.fail(Garbage(reason))
        self.abort()

    def _end(self, error: Exception | None) -> None:
        """Take the end of the connection for the end of a body that has no other, and for a loss of any other."""
        self._has_ended = True
        self.is_reusable = False
        response = self._response
        if response is None or response.is_complete:
            return
        is_framed = response.header(b"content-length") is not None or response.header(b"transfer-encoding") is not None
        if response.status and not is_framed and error is None:
            response.is_complete = True
            response.wake()
        else:
            response.fail(Lost(f"the connection ended before the answer was complete: {error or 'closed by the peer'}"))
