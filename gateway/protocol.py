"""The HTTP/1.1 protocol with bounds: uvicorn's own, which with httptools bounds neither headers nor their time."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway import errors
from gateway.errors import ErrorKind, Refusal
from gateway.live import EXTENSION, LiveCall


class HeadRefused(Exception):
    """Leaves the HTTP parser from inside one of its callbacks."""


@dataclass(frozen=True, slots=True)
class HeadBounds:
    """What the head of a request may be, how long it may take, and how many connections may be open."""

    bytes_max: int
    headers_max: int
    url_bytes_max: int
    timeout_s: float
    connections_max: int


class BoundedProtocol(HttpToolsProtocol):
    """Bounds the head of each request; one that is over is refused, and no more of its connection is read.

    It also tells the call that a connection carries when its client leaves.
    """

    def __init__(self, bounds: HeadBounds, **options: Any) -> None:
        super().__init__(**options)
        self.bounds = bounds
        self.call: LiveCall | None = None
        self.task: asyncio.Task[None]
        self._head_bytes = 0
        self._body: bytearray | None = None
        self._body_bytes = 0
        self._idle_bytes = 0
        self._is_head = True
        self._refused = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._extensions: dict[str, Any] = {EXTENSION: self}

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.bounds.connections_max:
            self._refuse(errors.OVERLOADED, f"There are {self.bounds.connections_max} connections already.")
        else:
            self._head_timer = self.loop.call_later(self.bounds.timeout_s, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self.call is not None:
            self.call.stop("client_left")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._is_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._refused or self.transport.is_closing():
            return
        if not self._is_head:
            self._check_body(len(data))
        elif self._head_bytes > self.bounds.bytes_max + self.bounds.url_bytes_max:
            self._refuse(errors.HEADERS_TOO_LARGE, f"The headers are larger than {self.bounds.bytes_max} bytes.")
        elif self._head_bytes and self._head_timer is None:
            self._head_timer = self.loop.call_later(self.bounds.timeout_s, self._late)

    def on_headers_complete(self) -> None:
        self._is_head = False
        self._stop_timer()
        if self._head_bytes > self.bounds.url_bytes_max or len(self.headers) > self.bounds.headers_max:
            self._check_head()
        self._head_bytes = 0
        self.scope["extensions"] = self._extensions
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self.task = task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def take_body(self, bytes_max: int) -> bytes | None:
        """The whole body, taken from what has arrived; None where more is to come or it is over its bound.

        Where requests are pipelined, the cycle at hand is that of the last one, so there it is None too.
        """
        cycle = self.cycle
        if self.pipeline or cycle.more_body or cycle.disconnected or len(cycle.body) > bytes_max:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        self.flow.resume_reading()
        return body

    def respond(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        """Send a whole response of the gateway's own headers in one write.

        ASGI takes two messages, which uvicorn writes apart after a look at every header. False, and nothing is sent,
        where requests are pipelined or the client does not keep up.
        """
        cycle = self.cycle
        if self.pipeline or cycle.response_started or self.flow.write_paused:
            return False
        if cycle.disconnected:
            return True
        lines = [STATUS_LINE[status], *[b"%b: %b\r\n" % header for header in headers]]
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        cycle.response_started = cycle.response_complete = True
        self.transport.write(b"".join((*lines, b"\r\n", body)))
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()
        return True

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._is_head = True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.more_body and self.cycle.response_complete:
            self.transport.close()  # the answer did not need the rest of the body, which could be endless

    def send_400_response(self, msg: str) -> None:
        self._refuse(errors.INVALID_REQUEST, msg)

    def _check_head(self) -> None:
        """The head may be over a bound: measure it. Raising ends the parser, which sees no more of the connection."""
        bounds = self.bounds
        if len(self.url) > bounds.url_bytes_max:
            self._refuse(errors.URL_TOO_LONG, f"The URL is longer than {bounds.url_bytes_max} bytes.")
            raise HeadRefused
        if (
            len(self.headers) > bounds.headers_max
            or sum(len(name) + len(value) for name, value in self.headers) > bounds.bytes_max
        ):
            most = f"{bounds.headers_max} headers of {bounds.bytes_max} bytes together"
            self._refuse(errors.HEADERS_TOO_LARGE, f"There are more than {most}.")
            raise HeadRefused

    def _check_body(self, size: int) -> None:
        """What comes without making the body grow, a chunk extension or a trailer, is bounded as a head is."""
        body = self.cycle.body
        if body is not self._body or len(body) != self._body_bytes:
            self._body, self._body_bytes, self._idle_bytes = body, len(body), 0
            return
        self._idle_bytes += size
        if self._idle_bytes > self.bounds.bytes_max:
            self._refuse(errors.HEADERS_TOO_LARGE, f"The trailers are larger than {self.bounds.bytes_max} bytes.")

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _late(self) -> None:
        if self._head_bytes:
            self._refuse(errors.REQUEST_TIMEOUT, f"The headers did not arrive within {self.bounds.timeout_s:g} s.")
        else:
            self.transport.close()

    def _refuse(self, kind: ErrorKind, message: str) -> None:
        """Answer and close from inside the parser, which is not asked again."""
        if self._refused:
            return
        self._refused = True
        refusal = Refusal(kind, message)
        body = refusal.body()
        lines = [b"%s: %s\r\n" % header for header in refusal.headers(len(body))]
        head = b"HTTP/1.1 %d Refused\r\nconnection: close\r\n%s\r\n" % (kind.status, b"".join(lines))
        self.transport.write(head + body)
        self.transport.close()


def bounded(bounds: HeadBounds) -> Callable[..., BoundedProtocol]:
    """What makes the protocol of each connection for uvicorn, with these bounds."""
    return partial(BoundedProtocol, bounds)
