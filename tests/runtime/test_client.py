"""The client against real sockets: what it retries, what it does not, and what it says of a failure."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

import pytest

from runtime.client import RuntimeClient
from runtime.port import Lost, RuntimeSpec, Unreachable

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
BROKEN = b"HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n"
MOVED = b"HTTP/1.1 307 Moved\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"


@dataclass
class Server:
    """Answers with the bytes it is given, one after the other, then with 200; empty bytes close the connection."""

    answers: list[bytes] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    connections: int = 0
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
                await reader.readexactly(int(length.split(b":")[1]))
                answer = self.answers.pop(0) if self.answers else OK
                if not answer:
                    break
                writer.write(answer)
        writer.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    yield server
    listening.close()


@asynccontextmanager
async def opened(
    url: str, change: Callable[[RuntimeSpec], RuntimeSpec] = lambda spec: spec
) -> AsyncIterator[RuntimeClient]:
    client = RuntimeClient(change(RuntimeSpec("r", url, breaker_failures=3, breaker_reset_s=60)))
    await client.open()
    yield client
    await client.close()


async def post(client: RuntimeClient) -> int:
    response = await client.post("/v1/x", b"{}", b"X-Request-Id: 1\r\n")
    while await response.read_any():
        continue
    response.close()
    return response.status


async def test_a_request_is_sent_with_the_headers_given_and_no_others(server: Server) -> None:
    async with opened(server.url) as client:
        assert await post(client) == 200
    names = {line.split(b":")[0].lower() for line in server.heads[0].split(b"\r\n")[1:] if line}
    assert names == {b"host", b"x-request-id", b"content-length"}


async def test_connections_are_used_again(server: Server) -> None:
    async with opened(server.url) as client:
        assert [await post(client) for _ in range(5)] == [200] * 5
    assert server.connections == 1


async def test_a_complete_503_is_tried_again(server: Server) -> None:
    server.answers = [BUSY]
    async with opened(server.url) as client:
        assert await post(client) == 200
        assert client.is_healthy
    assert len(server.heads) == 2


async def test_retries_are_bounded(server: Server) -> None:
    server.answers = [BUSY] * 10
    async with opened(server.url, lambda spec: replace(spec, retries_max=2, breaker_failures=100)) as client:
        assert await post(client) == 503
    assert len(server.heads) == 3


async def test_another_error_is_not_tried_again(server: Server) -> None:
    server.answers = [BROKEN]
    async with opened(server.url) as client:
        assert await post(client) == 500
    assert len(server.heads) == 1


async def test_a_request_that_was_sent_is_never_sent_twice(server: Server) -> None:
    server.answers = [b""]
    async with opened(server.url) as client:
        with pytest.raises(Lost, match="ended before the answer"):
            await post(client)
    assert len(server.heads) == 1


async def test_a_redirect_is_not_followed(server: Server) -> None:
    server.answers = [MOVED]
    async with opened(server.url) as client:
        assert await post(client) == 307
    assert len(server.heads) == 1


async def test_nobody_listening_is_unreachable() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with opened(f"http://127.0.0.1:{closed.getsockname()[1]}") as client:
            with pytest.raises(Unreachable, match="refused"):
                await post(client)


async def test_failures_in_a_row_make_it_unhealthy_and_a_success_healthy(server: Server) -> None:
    server.answers = [BROKEN] * 3
    async with opened(server.url) as client:
        assert [await post(client) for _ in range(3)] == [500] * 3
        assert not client.is_healthy
        assert await post(client) == 200
        assert client.is_healthy
