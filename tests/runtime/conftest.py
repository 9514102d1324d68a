"""A real server that plays a script to each connection, so that what is on the wire is the test's to choose."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from ssl import SSLContext

import pytest
import uvloop

LoopFactories = dict[str, Callable[[], asyncio.AbstractEventLoop]]
ON_BOTH_LOOPS = {"test_wire.py", "test_pool.py", "test_pool_tls.py"}
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> LoopFactories:
    """Run what speaks to transports on both loops: their corners differ."""
    if item.path.name in ON_BOTH_LOOPS:
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


class ScriptedServer:
    """Serves `handler` on loopback; knows its connections and what they asked."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.connections = 0
        self.open_now = 0
        self.open_most = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, ssl: SSLContext | None) -> None:
        self._server = await asyncio.start_server(self._accept, host, 0, ssl=ssl)

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open_now += 1
        self.open_most = max(self.open_most, self.open_now)
        try:
            await self.handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            return  # the client left: the script is over
        finally:
            self.open_now -= 1
            writer.close()


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[ScriptedServer]]]:
    """Start a scripted server: `await serve(handler, host="127.0.0.1", ssl=None)`."""
    servers: list[ScriptedServer] = []

    async def start(handler: Handler, host: str = "127.0.0.1", ssl: SSLContext | None = None) -> ScriptedServer:
        server = ScriptedServer(handler)
        await server.start(host, ssl)
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.stop()
