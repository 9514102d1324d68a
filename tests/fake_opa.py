"""A server in an OPA's place that answers as it is told to, byte by byte where it must be; a real one on loopback."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

HOST = "127.0.0.1"
REVISION = "sha256:00000000000000aa"
ALLOWED: dict[str, Any] = {"allow": True, "reasons": [], "obligations": {}}

Reply = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def said(**fields: Any) -> dict[str, Any]:
    """The body of an answer of OPA's, from a bundle with a revision; a field of None is left out."""
    body = {"provenance": {"bundles": {"bursar": {"revision": REVISION}}}, "result": ALLOWED, **fields}
    return {name: value for name, value in body.items() if value is not None}


def sends(raw: bytes, *, then_close: bool = True) -> Reply:
    """A reply of these bytes and nothing else."""

    async def reply(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        if then_close:
            writer.close()

    return reply


def answers(body: Any, status: int = 200, *headers: str) -> Reply:
    """A well-formed HTTP answer whose body is this value as JSON, or these bytes; the connection is kept."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"HTTP/1.1 {status} Told", f"Content-Length: {len(content)}", *headers, "", ""]
    return sends("\r\n".join(head).encode() + content, then_close=False)


class FakeOpa:
    """The server: `reply` answers each request; `bodies` and `heads` are what came, over so many `connections`."""

    def __init__(self, reply: Reply | None = None) -> None:
        self.reply = reply or answers(said())
        self.bodies: list[Any] = []
        self.heads: list[str] = []
        self.connections = 0
        self.serving_most = 0
        self._serving = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.hang_up()
        await asyncio.sleep(0)

    @property
    def url(self) -> str:
        """Where it answers."""
        assert self._server is not None
        return f"http://{HOST}:{self._server.sockets[0].getsockname()[1]}"

    def hang_up(self) -> None:
        """Reset every connection that there is, as a server does that is killed."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = next((line for line in head.split("\r\n") if line.lower().startswith("content-length")), ":0")
                body = await reader.readexactly(int(length.split(":")[1]))
                self.heads.append(head)
                self.bodies.append(json.loads(body) if body else None)
                await self._answer(reader, writer)
        self._writers.discard(writer)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving += 1
        self.serving_most = max(self.serving_most, self._serving)
        try:
            await self.reply(reader, writer)
        finally:
            self._serving -= 1
