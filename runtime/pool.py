"""A bounded pool of HTTP/1.1 connections to one runtime, for the path that every request takes."""

import asyncio
from collections import OrderedDict
from ssl import SSLContext
from typing import Final
from urllib.parse import urlsplit

from runtime.port import Unreachable
from runtime.wire import Connection, Response

_PORTS: Final = {"http": 80, "https": 443}


class Pool:
    """Connections to one `http://` or `https://` base URL, used from one event loop.

    At most `connections_max` are open; who finds none free waits in order of arrival, as long as the caller lets it.
    A connection idle for `keepalive_s` is closed: it should be less than the server's own. Raises ValueError for a
    URL that names no such server.
    """

    def __init__(
        self,
        base_url: str,
        connections_max: int,
        connect_timeout_s: float,
        keepalive_s: float = 4.0,
        ssl: SSLContext | None = None,
    ) -> None:
        url = urlsplit(base_url)
        if url.scheme not in _PORTS or not url.hostname or "@" in url.netloc or url.query or url.fragment:
            raise ValueError(f"not an http or https base URL without credentials or query: {base_url}")
        if connections_max < 1:
            raise ValueError("connections_max is at least 1")
        self._host, self._port = url.hostname, url.port or _PORTS[url.scheme]
        self._ssl: SSLContext | bool | None = (ssl or True) if url.scheme == "https" else None
        self._prefix = url.path.rstrip("/")
        self._after_path = f" HTTP/1.1\r\nHost: {url.netloc}\r\n"
        self._connect_timeout_s = connect_timeout_s
        self._keepalive_s = keepalive_s
        self._free = connections_max
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        # Someone waits only while nothing is idle and nothing free: a late comer cannot overtake.
        self._waiting: OrderedDict[asyncio.Future[Connection | None], None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._gone: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def post(self, path: str, body: bytes, headers: bytes) -> Response:
        """Send a POST and return its response once the head is in; the caller closes it.

        `headers` are whole lines that end in CRLF; Host and Content-Length are added. Never retried once written.
        Raises Unreachable, Lost and Garbage, and ValueError for what would be another request than was meant.
        """
        return await self._call(b"POST ", path, b"Content-Length: %d\r\n" % len(body), headers, body)

    async def get(self, path: str, headers: bytes) -> Response:
        """Send a GET; else as `post`."""
        return await self._call(b"GET ", path, b"", headers, b"")

    async def close(self) -> None:
        """Abort every connection and wait until the last is gone; those who wait get Unreachable. Idempotent."""
        if self._gone is None:
            self._gone = asyncio.get_running_loop().create_future()
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(Unreachable("the pool is closed"))
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
        for connection in self._open:
            connection.abort()
        if self._open:
            await asyncio.shield(self._gone)

    async def _call(self, method: bytes, path: str, length: bytes, headers: bytes, body: bytes) -> Response:
        target = self._prefix + path
        head = b"".join((method, (target + self._after_path).encode("ascii"), length, headers, b"\r\n"))
        if " " in target or not target.isprintable() or head.find(b"\r\n\r\n") != len(head) - 4:
            raise ValueError("the path or the headers would change where the request ends")
        connection = await self._connection()
        response = connection.send(head + body)
        try:
            while not response.status:
                await response.wait()
        except BaseException:
            response.close()
            raise
        return response

    async def _connection(self) -> Connection:
        """An open connection that is the caller's alone."""
        if self._gone is not None:
            raise Unreachable("the pool is closed")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        oldest_s = self._loop.time() - self._keepalive_s
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and connection.idle_since_s > oldest_s:
                return connection
            connection.abort()
            self._free += 1
        if self._free:
            self._free -= 1
        else:
            handed = await self._turn(self._loop)
            if handed is not None:
                if handed.is_open:
                    return handed
                handed.abort()
        return await self._connect(self._loop)

    async def _turn(self, loop: asyncio.AbstractEventLoop) -> Connection | None:
        """Wait for another's connection, or for None, which is the room to make one."""
        waiter: asyncio.Future[Connection | None] = loop.create_future()
        self._waiting[waiter] = None
        try:
            return await waiter
        except asyncio.CancelledError:
            self._waiting.pop(waiter, None)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._pass_on(waiter.result())  # given in the very turn of the loop in which it was cancelled
            raise

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> Connection:
        """Make a connection in room already taken, which is given on if that fails."""
        connection = Connection(loop, self._release, self._forget)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await loop.create_connection(lambda: connection, self._host, self._port, ssl=self._ssl)
            if self._gone is not None:
                raise Unreachable("the pool is closed")
        except OSError as error:  # a timeout, a failed name or handshake, and a refusal all are
            connection.abort()
            self._pass_on(None)
            raise Unreachable(f"no connection to {self._host}:{self._port}: {error or type(error).__name__}") from error
        except BaseException:
            connection.abort()
            self._pass_on(None)
            raise
        self._open.add(connection)
        return connection

    def _release(self, connection: Connection) -> None:
        if self._gone is not None:
            connection.abort()
        else:
            self._pass_on(connection if connection.is_reusable else None)

    def _pass_on(self, connection: Connection | None) -> None:
        """Give a connection, or the room for one, to who waits longest, or keep it."""
        while self._waiting:
            waiter, _ = self._waiting.popitem(last=False)
            if not waiter.done():
                waiter.set_result(connection)
                return
        if connection is None:
            self._free += 1
            return
        assert self._loop is not None
        connection.idle_since_s = self._loop.time()
        self._idle.append(connection)
        if self._timer is None:
            self._timer = self._loop.call_later(self._keepalive_s, self._expire, self._loop)

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close what has been idle too long: the front of the list, for the last used is used first."""
        self._timer = None
        oldest_s = loop.time() - self._keepalive_s
        stale = 0
        while stale < len(self._idle) and self._idle[stale].idle_since_s <= oldest_s:
            self._idle[stale].abort()
            stale += 1
        del self._idle[:stale]
        self._free += stale
        if self._idle:
            self._timer = loop.call_at(self._idle[0].idle_since_s + self._keepalive_s, self._expire, loop)

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        if self._gone is not None and not self._open and not self._gone.done():
            self._gone.set_result(None)
