"""One HTTP request and its response, over ASGI."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from runtime.sim.errors import BadRequest

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_BYTES_MAX: Final = 8 << 20
JSON: Final = b"application/json"
_EVENT_STREAM: Final = b"text/event-stream; charset=utf-8"


class ClientLeft(Exception):
    """The client closed its connection before its request was complete."""


class Exchange:
    """Reads the request body once, within its limit, and sends one response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.responded = False
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._receive = receive
        self._send = send

    def header(self, name: bytes) -> str | None:
        """The first value of a header, its name in lower case."""
        return next((value.decode("latin-1") for key, value in self._headers if key == name), None)

    async def read_body(self) -> bytes:
        """The whole body; raises BadRequest over the limit and ClientLeft when it does not come whole."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > BODY_BYTES_MAX:
                raise BadRequest(f"The body has more than {BODY_BYTES_MAX} bytes", code="request_too_large", status=413)
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    async def wait_until_left(self) -> None:
        """Return when the client has closed its connection; only after `read_body`."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def respond(
        self,
        body: bytes,
        status: int = 200,
        content_type: bytes = JSON,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        """Send a whole response."""
        length = (b"content-length", b"%d" % len(body))
        await self._start(status, [(b"content-type", content_type), length, *headers])
        await self._send({"type": "http.response.body", "body": body})

    async def open_stream(self) -> None:
        """Send the head of a stream of events."""
        await self._start(200, [(b"content-type", _EVENT_STREAM), (b"cache-control", b"no-cache")])

    async def write(self, events: bytes, *, last: bool = False) -> None:
        """Send some events of the stream."""
        await self._send({"type": "http.response.body", "body": events, "more_body": not last})

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.responded = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
