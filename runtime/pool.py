"""A bounded pool of HTTP/1.1 connections to one runtime, for the path that every request takes."""

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine
from ssl import SSLContext
from typing import Any, Final
from urllib.parse import urlsplit

from runtime.port import Unreachable
from runtime.wire import Connection, Response

_PORTS: Final = {"http": 80, "https": 443}


class Pool:
    """Connections to one `http://` or `https://` base URL, made and used on the running event loop.

    At most `connections_max` are open; who finds none free waits in order of arrival, as long as the caller lets it.
    One idle for `keepalive_s` is closed: make it less than the server's own. ValueError for a URL of no such server.
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
        self._connect_timeout_s, self._keepalive_s = connect_timeout_s, keepalive_s
        self._loop = asyncio.get_running_loop()
        self._room = connections_max
        self._idle: list[Connection] = []
        self._alive: set[Connection] = set()
        # Someone waits only while nothing is idle and there is no room: a late comer cannot overtake.
        self._waiting: OrderedDict[asyncio.Future[Connection | None], None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._closed: asyncio.Future[None] | None = None

    def post(self, path: str, body: bytes, headers: bytes) -> Coroutine[Any, Any, Response]:
        """Send a POST and return its response once the head is in; the caller closes it.

        `headers` are whole lines that end in CRLF; Host and Content-Length are added. Never retried once written.
        Raises Unreachable, Lost and Garbage, and ValueError for what would be another request than was meant.
        """
        return self._call("POST ", path, b"Content-Length: %d\r\n" % len(body), headers, body)

    def get(self, path: str, headers: bytes) -> Coroutine[Any, Any, Response]:
        """Send a GET; else as `post`."""
        return self._call("GET ", path, b"", headers, b"")

    async def close(self) -> None:
        """Abort every connection and wait until the last is gone; those who wait get Unreachable. Idempotent."""
        if self._closed is None:
            self._closed = self._loop.create_future()
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(Unreachable("the pool is closed"))
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
        for connection in tuple(self._alive):
            connection.abort()
        if self._alive:
            await asyncio.shield(self._closed)

    async def _call(self, method: str, path: str, length: bytes, headers: bytes, body: bytes) -> Response:
        target = self._prefix + path
        head = b"".join(((method + target + self._after_path).encode("ascii"), length, headers, b"\r\n"))
        if " " in target or not target.isprintable() or head.find(b"\r\n\r\n") != len(head) - 4:
            raise ValueError("the path or the headers would change where the request ends")
        connection = self._idle_one() or await self._checkout()
        response = connection.send(head + body)
        try:
            while not response.status:
                await response.wait()
        except BaseException:
            response.close()
            raise
        return response

    def _idle_one(self) -> Connection | None:
        """A connection that is open and idle, now the caller's alone; those that were closed meanwhile make room."""
        oldest_s = self._loop.time() - self._keepalive_s
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and connection.idle_since_s > oldest_s:
                return connection
            connection.abort()
            self._room += 1
        return None

    async def _checkout(self) -> Connection:
        """A connection made for the caller, or handed on by another when there is no room."""
        if self._closed is not None:
            raise Unreachable("the pool is closed")
        if self._room:
            self._room -= 1
        else:
            handed = await self._turn()
            if handed is not None and handed.is_open:
                return handed
        return await self._connect()

    async def _turn(self) -> Connection | None:
        """Wait for another's connection, or for None: the room to make one."""
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        self._waiting[waiter] = None
        try:
            return await waiter
        except asyncio.CancelledError:
            self._waiting.pop(waiter, None)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._pass_on(waiter.result())  # given in the very turn of the loop in which it was cancelled
            raise

    async def _connect(self) -> Connection:
        """Make a connection in room already taken, which is passed on if that fails."""
        connection = Connection(self._loop, self._release, self._forget)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self._loop.create_connection(lambda: connection, self._host, self._port, ssl=self._ssl)
        except BaseException as error:
            connection.abort()
            self._pass_on(None)
            if isinstance(error, (OSError, ValueError)):  # refused, timed out, a bad name, a failed handshake
                refused = isinstance(error, ConnectionRefusedError)
                reason = "it is refused" if refused else str(error) or type(error).__name__
                raise Unreachable(f"no connection to {self._host}:{self._port}: {reason}") from error
            raise
        if self._closed is not None or not connection.is_open:
            connection.abort()
            self._pass_on(None)
            raise Unreachable(f"the connection to {self._host}:{self._port} was closed as soon as it was made")
        self._alive.add(connection)
        return connection

    def _release(self, connection: Connection) -> None:
        self._pass_on(connection if connection.is_reusable else None)

    def _pass_on(self, connection: Connection | None) -> None:
        """Give a connection, or the room for one, to who has waited longest, or keep it."""
        while self._waiting:
            waiter, _ = self._waiting.popitem(last=False)
            if not waiter.done():
                waiter.set_result(connection)
                return
        if connection is None:
            self._room += 1
            return
        connection.idle_since_s = self._loop.time()
        self._idle.append(connection)
        if self._timer is None:
            self._timer = self._loop.call_later(self._keepalive_s, self._expire)

    def _expire(self) -> None:
        """Close what has been idle too long: the front of the list, for the last used is used first."""
        self._timer = None
        oldest_s = self._loop.time() - self._keepalive_s
        stale = [connection for connection in self._idle if connection.idle_since_s <= oldest_s]
        for connection in stale:
            connection.abort()
        self._room += len(stale)
        del self._idle[: len(stale)]
        if self._idle:
            self._timer = self._loop.call_at(self._idle[0].idle_since_s + self._keepalive_s, self._expire)

    def _forget(self, connection: Connection) -> None:
        self._alive.discard(connection)
        if self._closed is not None and not self._alive and not self._closed.done():
            self._closed.set_result(None)
