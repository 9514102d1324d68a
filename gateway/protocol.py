"""The HTTP/1.1 protocol with bounds: uvicorn's own, which with httptools bounds neither headers nor their time."""

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway import errors
from gateway.errors import ErrorKind, Refusal


@dataclass(frozen=True, slots=True)
class HeadBounds:
    """What the head of a request may be, how long it may take, and how many connections may be open."""

    bytes_max: int
    headers_max: int
    url_bytes_max: int
    timeout_s: float
    connections_max: int


class BoundedProtocol(HttpToolsProtocol):
    """Counts what arrives before the headers are complete; refuses what is over the bounds, reads no more and closes."""

    bounds: ClassVar[HeadBounds]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._raw_bytes = 0
        self._header_bytes = 0
        self._is_head = True
        self._refused = False
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.bounds.connections_max:
            self._refuse(errors.OVERLOADED, f"There are {self.bounds.connections_max} connections already.")
        else:
            self._head_timer = self.loop.call_later(self.bounds.timeout_s, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if self._is_head and not self._refused and not self.transport.is_closing():
            self._raw_bytes += len(data)
            if self._raw_bytes > self.bounds.bytes_max + self.bounds.url_bytes_max:
                self._refuse(errors.HEADERS_TOO_LARGE, f"The headers are larger than {self.bounds.bytes_max} bytes.")
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(self.bounds.timeout_s, self._late)

    def send_400_response(self, msg: str) -> None:
        self._refuse(errors.INVALID_REQUEST, msg)

    def on_message_begin(self) -> None:
        self._is_head = True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self.bounds.url_bytes_max:
            self._refuse(errors.URL_TOO_LONG, f"The URL is longer than {self.bounds.url_bytes_max} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._refused:
            return
        super().on_header(name, value)
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > self.bounds.bytes_max or len(self.headers) > self.bounds.headers_max:
            most = f"{self.bounds.headers_max} headers of {self.bounds.bytes_max} bytes together"
            self._refuse(errors.HEADERS_TOO_LARGE, f"There are more than {most}.")

    def on_headers_complete(self) -> None:
        self._is_head = False
        self._raw_bytes = self._header_bytes = 0
        self._stop_timer()
        if not self._refused:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused:
            super().on_message_complete()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _late(self) -> None:
        if self._raw_bytes:
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


def bounded(bounds: HeadBounds) -> type[BoundedProtocol]:
    """The protocol class for uvicorn with these bounds."""
    return type("BoundedProtocol", (BoundedProtocol,), {"bounds": bounds})
