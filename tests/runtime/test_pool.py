"""The pool keeps its bound, its order and its connections whatever callers and servers do."""

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from runtime.pool import Pool
from runtime.port import Lost, RuntimeFailure, Unreachable

Serve = Callable[..., Awaitable[Any]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def ask(reader: asyncio.StreamReader) -> bytes:
    """The next request with its two body bytes, which are returned."""
    await reader.readuntil(b"\r\n\r\n")
    return await reader.readexactly(2)


async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await ask(reader):
        await asyncio.sleep(0.002)
        writer.write(OK)


async def exchange(pool: Pool, body: bytes = b"{}") -> bytes:
    response = await pool.post("/", body, b"")
    try:
        return await response.read_any()
    finally:
        response.close()


async def test_a_hundred_at_once_share_ten_connections(serve: Serve) -> None:
    server = await serve(answer_all)
    pool = Pool(server.url, 10, 5.0)
    assert await asyncio.gather(*(exchange(pool) for _ in range(100))) == [b"ok"] * 100
    assert (server.connections, server.open_most) == (10, 10)
    await pool.close()


async def test_who_came_first_is_served_first(serve: Serve) -> None:
    order: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while body := await ask(reader):
            order.append(body)
            await asyncio.sleep(0.001)
            writer.write(OK if len(order) % 3 else OK.replace(b"OK", b"OK\r\nConnection: close"))

    pool = Pool((await serve(script)).url, 1, 5.0)
    asked = [b"%02d" % number for number in range(30)]
    await asyncio.gather(*(exchange(pool, body) for body in asked))
    assert order == asked
    await pool.close()


async def test_a_storm_of_cancellations_loses_no_room(serve: Serve) -> None:
    dice = random.Random(7)
    everyone = asyncio.Barrier(4)
    is_calm = False

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await ask(reader):
            if is_calm:
                await everyone.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n")
            await asyncio.sleep(dice.choice((0, 0, 0.001)))
            writer.write(b"1\r\nk\r\n0\r\n\r\n")

    server = await serve(script)
    pool = Pool(server.url, 4, 5.0)

    async def call() -> bytes:
        response = await pool.post("/", b"{}", b"")
        try:
            body = b""
            while data := await response.read_any():
                body += data
            return body
        finally:
            response.close()

    outcomes: list[object] = []
    for _ in range(40):
        tasks = [asyncio.create_task(call()) for _ in range(20)]
        for task in dice.sample(tasks, 14):
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)
            task.cancel()
        outcomes += await asyncio.gather(*tasks, return_exceptions=True)
    assert all(outcome == b"ok" or isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
    assert outcomes.count(b"ok") >= 40 * 6
    is_calm = True
    async with asyncio.timeout(5):  # the barrier falls only if all four can be under way at once
        assert await asyncio.gather(*(call() for _ in range(4))) == [b"ok"] * 4
    await pool.close()
    await asyncio.sleep(0.1)
    assert server.open_now == 0


async def test_a_connection_given_to_one_who_is_cancelled_goes_to_the_next(serve: Serve) -> None:
    server = await serve(answer_all)
    pool = Pool(server.url, 1, 5.0)
    held = await pool.post("/", b"{}", b"")
    first, second = (asyncio.create_task(exchange(pool)) for _ in range(2))
    await asyncio.sleep(0)
    held.close()  # gives it to the first, which is cancelled before it can run
    first.cancel()
    assert await second == b"ok"
    assert first.cancelled()
    assert server.connections == 1
    await pool.close()


async def test_a_connection_that_ends_as_it_is_given_on_is_replaced(serve: Serve) -> None:
    server = await serve(answer_all)
    pool = Pool(server.url, 1, 5.0)
    held = await pool.post("/", b"{}", b"")
    (connection,) = pool._alive
    waiting = asyncio.create_task(exchange(pool))
    await asyncio.sleep(0)
    held.close()
    connection.abort()
    assert await waiting == b"ok"
    assert server.connections == 2
    await pool.close()


async def test_those_who_stop_waiting_are_not_remembered(serve: Serve) -> None:
    pool = Pool((await serve(answer_all)).url, 1, 5.0)
    held = await pool.post("/", b"{}", b"")
    tasks = [asyncio.create_task(exchange(pool)) for _ in range(50)]
    await asyncio.sleep(0)
    assert len(pool._waiting) == 50
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not pool._waiting
    held.close()
    await pool.close()


async def test_one_who_gives_up_while_connecting_frees_the_room(serve: Serve) -> None:
    server = await serve(answer_all)
    pool = Pool(server.url, 1, 5.0)
    for turns in range(6):
        task = asyncio.create_task(exchange(pool))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(5):
        assert await exchange(pool) == b"ok"
    await pool.close()


async def test_a_connection_that_the_server_closed_while_idle_is_replaced_unseen(serve: Serve) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ask(reader)
        writer.write(OK)
        await asyncio.sleep(0.005)

    server = await serve(script)
    pool = Pool(server.url, 1, 5.0)
    for count in range(1, 6):
        assert await exchange(pool) == b"ok"
        assert server.connections == count
        await asyncio.sleep(0.03)
    await pool.close()


async def test_a_request_once_written_is_not_sent_again(serve: Serve) -> None:
    asked: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await ask(reader))

    pool = Pool((await serve(script)).url, 2, 5.0)
    with pytest.raises(Lost):
        await exchange(pool)
    assert asked == [b"{}"]
    await pool.close()


async def test_an_idle_connection_is_closed_after_its_time_and_a_busy_one_is_not(serve: Serve) -> None:
    server = await serve(answer_all)
    pool = Pool(server.url, 4, 5.0, keepalive_s=0.1)
    busy = await pool.post("/", b"{}", b"")
    await asyncio.gather(exchange(pool), exchange(pool))
    assert server.open_now == 3
    await asyncio.sleep(0.3)
    assert server.open_now == 1
    assert await busy.read_any() == b"ok"
    busy.close()
    assert await exchange(pool) == b"ok"
    assert server.connections == 3
    await pool.close()


async def test_no_one_listening_is_unreachable_and_keeps_no_room() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        pool = Pool(f"http://127.0.0.1:{bound.getsockname()[1]}", 1, 5.0)
        for _ in range(3):
            with pytest.raises(Unreachable, match=r"no connection to 127\.0\.0\.1"):
                await pool.post("/", b"{}", b"")
        waiting = await asyncio.gather(*(exchange(pool) for _ in range(5)), return_exceptions=True)
        assert [type(outcome) for outcome in waiting] == [Unreachable] * 5
    await pool.close()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b"])
async def test_a_name_that_means_nothing_is_unreachable(host: str) -> None:
    pool = Pool(f"http://{host}:80", 1, 20.0)
    with pytest.raises(Unreachable):
        await pool.post("/", b"{}", b"")
    await pool.close()


async def test_a_handshake_that_never_ends_is_unreachable_in_time(serve: Serve) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    server = await serve(silent)
    pool = Pool(f"https://127.0.0.1:{server.port}", 1, connect_timeout_s=0.05)
    for _ in range(2):
        with pytest.raises(Unreachable):
            await pool.post("/", b"{}", b"")
    await asyncio.sleep(0.05)
    assert (server.connections, server.open_now) == (2, 0)
    await pool.close()


async def test_closing_ends_those_who_read_and_those_who_wait(serve: Serve) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ask(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")  # a body that the connection's end would end
        await reader.read()

    server = await serve(script)
    pool = Pool(server.url, 1, 5.0)
    response = await pool.post("/", b"{}", b"")
    reader = asyncio.create_task(response.read_any())
    waiting = asyncio.create_task(pool.post("/", b"{}", b""))
    await asyncio.sleep(0.01)
    async with asyncio.timeout(5):
        await pool.close()
        await pool.close()
    with pytest.raises(Lost):
        await reader
    with pytest.raises(Unreachable):
        await waiting
    response.close()
    with pytest.raises(Unreachable):
        await pool.post("/", b"{}", b"")
    await asyncio.sleep(0.01)
    assert server.open_now == 0


async def test_closing_while_one_connects_leaves_no_connection(serve: Serve) -> None:
    server = await serve(answer_all)
    for turns in range(5):
        pool = Pool(server.url, 1, 5.0)
        task = asyncio.create_task(exchange(pool))
        for _ in range(turns):
            await asyncio.sleep(0)
        await pool.close()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(outcome, RuntimeFailure)
    await asyncio.sleep(0.05)
    assert server.open_now == 0


async def test_ipv6_is_spoken(serve: Serve) -> None:
    server = await serve(answer_all, host="::1")
    pool = Pool(f"http://[::1]:{server.port}", 1, 5.0)
    assert await exchange(pool) == b"ok"
    await pool.close()


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/a b", b""),
        ("/a\r\nX: y", b""),
        ("/\x00", b""),
        ("/\u00e9", b""),
        ("/", b"X-A: b"),
        ("/", b"\r\n"),
        ("/", b"X-A: b\r\n\r\nGET / HTTP/1.1\r\n"),
    ],
)
async def test_a_request_that_would_smuggle_another_is_not_sent(serve: Serve, path: str, headers: bytes) -> None:
    server = await serve(answer_all)
    pool = Pool(server.url, 1, 5.0)
    with pytest.raises(ValueError):
        await pool.post(path, b"{}", headers)
    assert server.connections == 0
    await pool.close()


@pytest.mark.parametrize("url", ["ftp://h", "h:80", "http://", "http://u:p@h", "http://h?q", "http://h:x", ""])
async def test_a_url_of_no_http_server_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        Pool(url, 1, 5.0)
