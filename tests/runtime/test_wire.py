"""What one connection makes of the bytes a runtime sends: every framing, every cut, every refusal, every bound."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from runtime.pool import Pool
from runtime.port import Garbage, Lost
from runtime.wire import BODY_BYTES_MAX, Response

Serve = Callable[..., Awaitable[Any]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@asynccontextmanager
async def pool_of(server: Any, connections_max: int = 1) -> AsyncIterator[Pool]:
    pool = Pool(server.url, connections_max, connect_timeout_s=5.0)
    try:
        yield pool
    finally:
        await pool.close()


async def ask(reader: asyncio.StreamReader) -> bytes:
    """The next request of two body bytes, as it came."""
    head = await reader.readuntil(b"\r\n\r\n")
    return head + (await reader.readexactly(2) if head.startswith(b"POST") else b"")


async def read_all(response: Response) -> bytes:
    body = b""
    while data := await response.read_any():
        body += data
    return body


async def exchange(pool: Pool) -> tuple[int, bytes]:
    response = await pool.post("/v1/x", b"{}", b"")
    try:
        return response.status, await read_all(response)
    finally:
        response.close()


class Answer(NamedTuple):
    raw: bytes
    status: int
    body: bytes
    is_kept: bool = True
    is_ended: bool = False


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ANSWERS = {
    "content-length": Answer(OK, 200, b"ok"),
    "lower-case": Answer(b"HTTP/1.1 404 No\r\ncontent-length: 3\r\n\r\nno!", 404, b"no!"),
    "empty": Answer(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, b""),
    "close": Answer(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", is_kept=False),
    "chunked": Answer(CHUNKED + b"2\r\nok\r\n3;x=y\r\nay!\r\n0\r\n\r\n", 200, b"okay!"),
    "trailers": Answer(CHUNKED + b"2\r\nok\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n", 200, b"ok"),
    "1xx": Answer(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 E\r\nLink: x\r\n\r\n" + OK, 200, b"ok"),
    "204": Answer(b"HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n", 204, b""),
    "304": Answer(b"HTTP/1.1 304 Same\r\nContent-Length: 9\r\n\r\n", 304, b""),
    "1.0": Answer(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", is_kept=False),
    "1.0 kept": Answer(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", 200, b"ok"),
    "to the end": Answer(b"HTTP/1.1 200 OK\r\n\r\nall of it", 200, b"all of it", is_kept=False, is_ended=True),
    "1.0 to the end": Answer(b"HTTP/1.0 200 OK\r\nX-A: b\r\n\r\nall", 200, b"all", is_kept=False, is_ended=True),
    "unused upgrade": Answer(
        b"HTTP/1.1 200 OK\r\nUpgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 2\r\n\r\nok", 200, b"ok"
    ),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_an_answer_is_the_same_wherever_it_is_cut_in_two(serve: Serve, answer: Answer) -> None:
    cuts = iter(range(len(answer.raw)))

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await ask(reader):
            cut = next(cuts)
            writer.write(answer.raw[:cut])
            await asyncio.sleep(0.0005)
            writer.write(answer.raw[cut:])
            if answer.is_ended:
                return

    server = await serve(script)
    async with pool_of(server) as pool:
        for _ in answer.raw:
            assert await exchange(pool) == (answer.status, answer.body)
    assert server.connections == (1 if answer.is_kept else len(answer.raw))


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
async def test_an_answer_is_the_same_byte_by_byte(serve: Serve, answer: Answer) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ask(reader)
        for position in range(len(answer.raw)):
            writer.write(answer.raw[position : position + 1])
            await asyncio.sleep(0.0002)
        if not answer.is_ended:
            await reader.read()

    async with pool_of(await serve(script)) as pool:
        assert await exchange(pool) == (answer.status, answer.body)


async def test_a_request_leaves_whole_with_the_lines_it_was_given(serve: Serve) -> None:
    seen: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            seen.append(await reader.read(65536))  # one read brings head and body: they were one write
            writer.write(OK)

    server = await serve(script)
    pool = Pool(server.url + "/base/", 1, 5.0)
    (await pool.post("/v1/x?y=z", b"{}", b"X-A: b\r\nX-C: d\r\n")).close()
    await asyncio.sleep(0.01)
    (await pool.get("/health", b"")).close()
    await pool.close()
    host = b"Host: 127.0.0.1:%d\r\n" % server.port
    assert seen == [
        b"POST /base/v1/x?y=z HTTP/1.1\r\n" + host + b"Content-Length: 2\r\nX-A: b\r\nX-C: d\r\n\r\n{}",
        b"GET /base/health HTTP/1.1\r\n" + host + b"\r\n",
    ]


async def test_the_head_tells_status_headers_and_length(serve: Serve) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for raw in (
            b"HTTP/1.1 429 Slow\r\nX-A: 1\r\nX-A: 2\r\ncontent-length: 1\r\n\r\n!",
            CHUNKED + b"0\r\nX-A: late\r\n\r\n",
        ):
            await ask(reader)
            writer.write(raw)

    async with pool_of(await serve(script)) as pool:
        response = await pool.post("/", b"{}", b"")
        assert (response.status, response.header(b"content-length"), response.header(b"x-a")) == (429, b"1", b"1")
        assert response.headers == [(b"X-A", b"1"), (b"X-A", b"2"), (b"content-length", b"1")]
        assert (await response.read_any(), response.is_complete, await response.read_any()) == (b"!", True, b"")
        response.close()
        response.close()
        chunked = await pool.post("/", b"{}", b"")
        assert (chunked.header(b"content-length"), chunked.header(b"x-a")) == (None, None)
        chunked.close()


FLOOD = b"X-Flood: " + b"y" * 1000 + b"\r\n"
BROKEN = {
    "silence": (b"", Lost),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-Le", Lost),
    "short of its length": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", Lost),
    "short of a chunk": (CHUNKED + b"9\r\nok", Lost),
    "short of the last chunk": (CHUNKED + b"2\r\nok\r\n", Lost),
    "short of the trailers' end": (CHUNKED + b"2\r\nok\r\n0\r\nX-A: b\r\n", Lost),
    "only 1xx": (b"HTTP/1.1 100 Continue\r\n\r\n", Lost),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n", Garbage),
    "another version": (b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok", Garbage),
    "upgrade": (b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nxx", Garbage),
    "upgrade to nothing": (b"HTTP/1.1 101 Go\r\n\r\nxx", Garbage),
    "status 99": (b"HTTP/1.1 099 ?\r\nContent-Length: 2\r\n\r\nok", Garbage),
    "two framings": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\nok", Garbage),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", Garbage),
    "bad chunk size": (CHUNKED + b"2\r\nok\r\nzz\r\n", Garbage),
    "large head": (b"HTTP/1.1 200 OK\r\n" + FLOOD * 80 + b"Content-Length: 2\r\n\r\nok", Garbage),
    "endless line": (b"HTTP/1.1 200 OK\r\nX-A: " + b"y" * 100_000, Garbage),
    "endless trailers": (CHUNKED + b"2\r\nok\r\n0\r\n" + FLOOD * 100, Garbage),
    "endless 1xx": (b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" * 4000, Garbage),
}


@pytest.mark.parametrize(("raw", "failure"), BROKEN.values(), ids=BROKEN)
async def test_a_broken_answer_is_named_and_its_room_is_free_again(
    serve: Serve, raw: bytes, failure: type[Exception]
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ask(reader)
        if server.connections > 1:
            writer.write(OK)
            return
        for start in range(0, len(raw), 20_000):  # in several reads, so that the bounds are met while it grows
            writer.write(raw[start : start + 20_000])
            await asyncio.sleep(0.005)
        if failure is Garbage:
            await reader.read()  # ends only because the client hangs up

    server = await serve(script)
    async with pool_of(server) as pool:
        with pytest.raises(failure):
            await exchange(pool)
        assert await exchange(pool) == (200, b"ok")
    assert server.connections == 2


async def test_a_head_that_is_too_large_is_refused_even_when_it_comes_at_once(serve: Serve) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ask(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n" + FLOOD * 80 + b"Content-Length: 200000\r\n\r\n" + bytes(200_000))
        await reader.read()

    async with pool_of(await serve(script)) as pool:
        with pytest.raises(Garbage, match="too large a head"):
            await exchange(pool)


async def test_what_came_before_a_loss_is_read_before_it_is_raised(serve: Serve) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ask(reader)
        writer.write(CHUNKED + b"2\r\nok\r\n9\r\nmore")

    async with pool_of(await serve(script)) as pool:
        response = await pool.post("/", b"{}", b"")
        await asyncio.sleep(0.05)
        assert response.read_nowait() == b"okmore"
        assert not response.is_complete
        with pytest.raises(Lost):
            response.read_nowait()
        with pytest.raises(Lost):
            await response.read_any()
        response.close()


async def test_a_reset_does_not_end_a_body_that_ends_with_the_connection(serve: Serve) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ask(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nsome")
        await asyncio.sleep(0.02)
        writer.get_extra_info("socket").setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER of 0 s: close resets
        writer.transport.abort()

    async with pool_of(await serve(script)) as pool:
        response = await pool.post("/", b"{}", b"")
        with pytest.raises(Lost):
            await read_all(response)
        response.close()


@pytest.mark.parametrize("extra", [b"junk", b"H", OK, CHUNKED])
@pytest.mark.parametrize("is_late", [False, True])
async def test_what_nobody_asked_for_reaches_nobody(serve: Serve, extra: bytes, is_late: bool) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ask(reader)
        number = b"%d" % server.connections
        if is_late:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + number)
            await asyncio.sleep(0.01)
            writer.write(extra)
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + number + extra)
        await reader.read()

    server = await serve(script)
    async with pool_of(server) as pool:
        assert await exchange(pool) == (200, b"1")
        await asyncio.sleep(0.05)
        assert await exchange(pool) == (200, b"2")


async def test_an_answer_that_comes_before_the_request_is_sent_leaves_no_connection_to_use(serve: Serve) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Large\r\nContent-Length: 0\r\n\r\n")
        await asyncio.sleep(60)  # reads no more: the request stays in the client's buffers

    server = await serve(script)
    async with pool_of(server) as pool:
        for count in (1, 2):
            response = await pool.post("/", bytes(20_000_000), b"")
            assert response.status == 413
            response.close()
            assert server.connections == count


async def test_a_slow_reader_stops_the_server_and_loses_nothing(serve: Serve) -> None:
    size_bytes, sent = 24_000_000, 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await ask(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size_bytes)
        while sent < size_bytes:
            writer.write(b"%09d\n" % (sent // 10_000) * 1000)
            await writer.drain()
            sent += 10_000
        await reader.read()

    async with pool_of(await serve(script)) as pool:
        response = await pool.post("/", b"{}", b"")
        await asyncio.sleep(0.5)
        stalled_at = sent
        await asyncio.sleep(0.1)
        assert sent == stalled_at < size_bytes
        first = response.read_nowait()
        assert len(first) <= BODY_BYTES_MAX + 262_144  # asyncio reads at most 256 KiB of a socket at once
        body = first + await read_all(response)
        assert body == b"".join(b"%09d\n" % number * 1000 for number in range(size_bytes // 10_000))
        response.close()


async def test_a_cancelled_reader_can_still_take_in_what_comes_and_its_close_frees_the_room(serve: Serve) -> None:
    late = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ask(reader)
        if server.connections == 2:
            writer.write(OK)
            return
        writer.write(CHUNKED)
        await late.wait()
        writer.write(b"4\r\nlate\r\n")
        ended.set_result(await reader.read())

    ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    server = await serve(script)
    async with pool_of(server) as pool:
        response = await pool.post("/", b"{}", b"")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await response.read_any()
        late.set()
        await asyncio.sleep(0.02)
        assert response.read_nowait() == b"late"
        response.close()
        assert await exchange(pool) == (200, b"ok")
        async with asyncio.timeout(5):
            assert await ended == b""  # the abandoned connection was hung up
