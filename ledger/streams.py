"""Streams: the result of a statement on its way to an HTTP client, as fast as the client takes it and no faster."""

import asyncio
import json
import os
import secrets
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from ledger import served
from ledger.readers import CHUNK_BYTES, QueryFailed, Running

Send = Callable[[dict[str, Any]], Awaitable[None]]

# What ends, or fails, within this much of a result is answered with its length, or with the status of its error.
HEAD_BYTES = 64 << 10
STALL_S = 30.0
_TAG_CHARACTERS = 16
_WINDOW_BITS = {"gzip": 31, "deflate": 15}
_INLINE_BYTES = 16 << 10


class Meta(NamedTuple):
    """What the headers of a response say beside its result."""

    query_id: str
    timezone: str
    encoding: str

    def headers(self, output_format: str) -> list[tuple[bytes, bytes]]:
        """The headers that ClickHouse's clients look for, but for those that are known at the end only."""
        named = {
            "content-type": served.CONTENT_TYPES[output_format],
            "x-clickhouse-server-display-name": "bursar",
            "x-clickhouse-query-id": self.query_id,
            "x-clickhouse-format": output_format,
            "x-clickhouse-timezone": self.timezone,
        }
        if self.encoding:
            named |= {"content-encoding": self.encoding, "vary": "accept-encoding"}
        return [(name.encode(), value.encode("latin-1", "replace")) for name, value in named.items()]


class Stream:
    """One statement's bytes, taken out of its pipe without a thread."""

    def __init__(self, running: Running, meta: Meta, *, stall_s: float = STALL_S) -> None:
        self._running = running
        self._meta = meta
        self._stall_s = stall_s
        self._pack = zlib.compressobj(1, wbits=_WINDOW_BITS[meta.encoding]) if meta.encoding else None
        os.set_blocking(running.fd, False)

    async def answer(self, send: Send) -> None:
        """Sends the whole response; QueryFailed while nothing is sent yet, TimeoutError when nobody takes it.

        A statement that fails later ends as ClickHouse's do: with its error in the stream, which then breaks off.
        """
        head, is_all = await self._head()
        headers = self._meta.headers(self._running.output_format)
        if is_all:
            finished = self._running.outcome.result()
            body = await self._packed(head + finished.rest, last=True)
            summary = json.dumps({"elapsed_ns": str(int(finished.elapsed_s * 1e9))}).encode()
            headers += [(b"x-clickhouse-summary", summary), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        tag = secrets.token_hex(_TAG_CHARACTERS // 2)
        headers.append((b"x-clickhouse-exception-tag", tag.encode()))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._rest(send, head, tag)

    async def _rest(self, send: Send, chunk: bytes, tag: str) -> None:
        while chunk:
            await self._part(send, await self._packed(chunk))
            chunk = await self._read()
        try:
            rest = self._running.outcome.result().rest
        except QueryFailed as error:
            # Without its last chunk the response is broken, and so no client takes it for whole.
            await self._part(send, await self._packed(_exception(str(error), tag), last=True))
            return
        await send({"type": "http.response.body", "body": await self._packed(rest, last=True)})

    async def _part(self, send: Send, part: bytes) -> None:
        async with asyncio.timeout(self._stall_s):
            await send({"type": "http.response.body", "body": part, "more_body": True})

    async def _head(self) -> tuple[bytes, bool]:
        """The first bytes, and whether they are all."""
        head = b""
        while len(head) < HEAD_BYTES:
            chunk = await self._read()
            if not chunk:
                return head, True
            head += chunk
        return head, False

    async def _read(self) -> bytes:
        """The next bytes, none at the end."""
        while True:
            try:
                return os.read(self._running.fd, CHUNK_BYTES)
            except BlockingIOError:
                await self._readable()

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(self._running.fd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_reader(self._running.fd)

    async def _packed(self, part: bytes, *, last: bool = False) -> bytes:
        if self._pack is None:
            return part
        if len(part) <= _INLINE_BYTES:
            return self._compress(part, last=last)
        return await asyncio.to_thread(self._compress, part, last=last)

    def _compress(self, part: bytes, *, last: bool) -> bytes:
        assert self._pack is not None
        return self._pack.compress(part) + self._pack.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)


def _exception(message: str, tag: str) -> bytes:
    """An error as ClickHouse writes it into a stream that has begun."""
    text = message.encode() + b"\n"
    return b"\r\n__exception__\r\n%b\r\n%b%d %b\r\n__exception__\r\n" % (tag.encode(), text, len(text), tag.encode())
