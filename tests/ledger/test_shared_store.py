"""Connections to the Redis of a shared book: no answer is taken for that to another question."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
import redis.asyncio
import uvloop

from ledger.shared_store import connect
from tests.redis_server import RedisServer

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
TIMEOUT_MS = 400
TURNS = 60


@pytest.mark.parametrize("new_loop", LOOPS)
def test_after_who_asked_was_cancelled_the_next_hears_its_own_answer(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Cancelled anywhere between the sending and the last answer of several."""

    async def asks(client: "redis.asyncio.Redis", at: int) -> None:
        async with client.pipeline(transaction=False) as pipeline:
            for index in range(5):
                pipeline.echo(f"{at}.{index}")
            await pipeline.execute()

    async def cancelled(url: str) -> list[bytes]:
        client, listener = connect(url, 1_000, None)
        heard = []
        for at in range(TURNS):
            asking = asyncio.create_task(asks(client, at))
            for _ in range(at):
                await asyncio.sleep(0)
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking
            heard.append(await client.echo(f"{at}"))
        for each in (client, listener):
            await each.aclose()
        return heard

    with RedisServer("none") as server, asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(cancelled(server.url)) == [b"%d" % at for at in range(TURNS)]


@pytest.mark.parametrize("new_loop", LOOPS)
def test_a_connection_is_made_also_while_its_process_is_held_up(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def connected(url: str) -> None:
        for turns in range(6):
            client, listener = connect(url, TIMEOUT_MS, None)
            asking = asyncio.create_task(client.ping())
            for _ in range(turns):
                await asyncio.sleep(0)
            time.sleep(1.3 * TIMEOUT_MS / 1000)  # noqa: ASYNC251 as a burst of requests does
            assert await asking
            for each in (client, listener):
                await each.aclose()

    with RedisServer("none") as server, asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(connected(server.url))


def test_a_connection_with_tls_is_one_for_the_client_that_asks_too() -> None:
    for client in connect("rediss://127.0.0.1:1/0", 100, None):
        made = client.connection_pool.make_connection()
        assert isinstance(made, redis.asyncio.SSLConnection)
        assert made.ssl_context is not None
