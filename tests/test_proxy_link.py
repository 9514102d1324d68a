"""The links of a proxy: whatever the protocol, seeded, and gone without a trace when the proxy closes."""

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest

from tests.fault_proxy import FaultProxy
from tests.local_server import HOST
from tests.proxy_link import Link, Shared, ToClient, ToServer
from tests.redis_server import RedisServer
from tests.resp import Chunks

HANG_S = 20.0


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as running:
        yield running


def test_jitter_is_that_of_the_seed() -> None:
    """The same seed draws the same delays for a connection, another seed others, and each way has its own."""

    def draws(seed: str) -> list[float]:
        with socket.socket() as client, socket.socket() as server:
            link = Link(Shared((HOST, 1), Chunks), client, seed)
            ways = (ToServer(link, client, server), ToClient(link, server, client))
            return [way.random.random() for way in ways]

    first = draws("1/1")
    assert first == draws("1/1")
    assert len({*first, *draws("2/1"), *draws("1/2")}) == 6


async def test_no_socket_and_no_task_is_left_when_it_closes(server: RedisServer) -> None:
    """Whatever its links were doing: idle, frozen, cut, waiting for a delay, or only just accepted."""
    descriptors, tasks = len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())
    async with FaultProxy(HOST, server.port) as proxy:
        writers = []
        for faults in ({}, {"freeze": True}, {"to_server": {"cut": True}}, {"to_client": {"delay_s": 60.0}}):
            for _ in range(5):
                writer = (await asyncio.open_connection(HOST, proxy.port))[1]
                writer.write(b"PING\r\n")
                writers.append(writer)
            await asyncio.sleep(0.02)
            await proxy.change(**faults)
        writers.append((await asyncio.open_connection(HOST, proxy.port))[1])
    assert len(asyncio.all_tasks()) == tasks
    for writer in writers:
        writer.close()
    await asyncio.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, proxy.port), timeout=HANG_S)


async def test_what_does_not_speak_resp_is_forwarded_by_chunks() -> None:
    """And its replies can be lost too."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline() + await reader.readline())
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await writer.drain()
        writer.close()

    async def ask(method: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(HOST, proxy.port)
        writer.write(method + b" / HTTP/1.1\r\n")
        await asyncio.sleep(0.05)
        writer.write(b"\r\n")
        try:
            return await reader.read()
        finally:
            writer.close()

    asked: list[bytes] = []
    web = await asyncio.start_server(answer, HOST, 0)
    port = web.sockets[0].getsockname()[1]
    async with web, FaultProxy(HOST, port, is_resp=False) as proxy:
        assert await ask(b"GET") == b"HTTP/1.1 200 OK\r\n\r\n"
        await proxy.change(lose_reply={"command": "*"})
        with pytest.raises(ConnectionResetError):
            await ask(b"POST")
        assert await ask(b"PUT") == b"HTTP/1.1 200 OK\r\n\r\n"
    assert asked == [b"GET / HTTP/1.1\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n", b"PUT / HTTP/1.1\r\n\r\n"]
