"""Requests that wait for a shared book among many others: what each is told is of a time since it asked."""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from redis.exceptions import ConnectionError as NoConnection

from ledger.holds import Hold
from ledger.lease_keeper import US, Fetched, LeaseKeeper
from ledger.leases import LINES_MAX, TELL_S
from tests.ledger.keepers import SUBJECT, Node, budget, nodes, until
from tests.redis_server import RedisServer

LIMIT = 1_000
WIDE_AND_NARROW = [budget("all", LIMIT), budget("narrow", 10 * LIMIT, scope=(("key", "*"),))]
ASKERS = 4
SLOW_S = 0.035
EACH_S = 0.01
MANY = 150


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis that forgets everything."""
    with RedisServer("none") as running:
        yield running


@asynccontextmanager
async def others_asking(it: Node) -> AsyncIterator[None]:
    """Requests of one key after another, each of which lacks its own narrow counter, and gets of it what it asks."""
    numbers, is_over = itertools.count(), False

    async def ask() -> None:
        while not is_over:
            await it.fetch(1, SUBJECT._replace(key=f"k{next(numbers)}"))
            await asyncio.sleep(0)  # while Redis is away it does not wait

    asking = [asyncio.create_task(ask()) for _ in range(ASKERS)]
    try:
        yield
    finally:
        is_over = True
        await asyncio.gather(*asking)


async def idle(it: Node, tokens: int) -> None:
    """Let so much lie idle there."""
    held = await it.hold(tokens)
    assert isinstance(held, Hold)
    it.book.void(held.hold_id)


async def test_a_recall_of_before_is_not_taken_for_one_since_however_many_ask_for_something_else(
    server: RedisServer,
) -> None:
    async with nodes(server, 2, WIDE_AND_NARROW) as (first, second):
        await idle(second, 900)
        async with others_asking(first):
            await idle(first, 900)
            await asyncio.sleep(0.1)
            await idle(second, 900)
            assert await first.fetch(900) is Fetched.READY


async def test_who_comes_late_into_a_recall_has_what_came_free_since_it_began(server: RedisServer) -> None:
    async with nodes(server, 3, [budget("all", LIMIT)]) as (first, second, slow):
        await idle(slow, 50)
        held = await second.hold(800)
        assert isinstance(held, Hold)
        slow.running.cancel()
        early = asyncio.create_task(first.fetch(700, timeout_s=20.0))
        await asyncio.sleep(0.3)  # until the second has answered
        second.book.void(held.hold_id)
        late = asyncio.create_task(first.fetch(700, timeout_s=20.0))
        await asyncio.sleep(0.05)
        slow.running = asyncio.create_task(slow.keeper.run())
        assert await asyncio.gather(early, late) == [Fetched.READY, Fetched.READY]


@pytest.mark.parametrize("delay_s", [0.0, SLOW_S])
async def test_who_lacks_what_nobody_has_is_told_so_however_many_ask_the_same_over_a_slow_link(
    server: RedisServer, delay_s: float
) -> None:
    async with nodes(server, 2, [budget("all", LIMIT)], timeout_ms=2_000) as (first, second):
        assert isinstance(await second.hold(LIMIT - 100), Hold)
        await first.proxy.change(to_client={"delay_s": delay_s}, to_server={"delay_s": delay_s})
        fetches = []
        for _ in range(MANY):
            fetches.append(asyncio.create_task(first.fetch(500)))
            await asyncio.sleep(EACH_S)
        assert Counter(await asyncio.gather(*fetches)) == {Fetched.SHORT: MANY}


async def test_a_round_that_fails_before_it_asks_tells_nobody_that_anything_is_gone(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(_: LeaseKeeper) -> None:
        raise NoConnection("away")

    async with nodes(server, 1, WIDE_AND_NARROW) as (it,), others_asking(it):
        # Both are ready, though not together: the share is found short, and not gone for either.
        assert await asyncio.gather(it.fetch(600), it.fetch(600)) == [Fetched.READY, Fetched.READY]
        assert isinstance(it.hold_here(600), Hold)
        monkeypatch.setattr(LeaseKeeper, "_probe", fails)
        it.keeper._is_probed = False
        assert await it.fetch(600) is Fetched.UNSURE
        monkeypatch.undo()


async def test_what_is_recalled_while_pages_are_told_is_given_back_with_the_next_round(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although it is on none of the pages of this round, and more than one page is due."""
    async with nodes(server, 1, [budget("all", LIMIT, scope=(("key", "*"),))]) as (it,):
        leases, now_s = it.keeper.leases, it.keeper.clock.now_us() // US
        for index in range(2 * LINES_MAX + 100):
            it.book.route(SUBJECT._replace(key=f"k{index}"), now_s)
        await until(lambda: it.is_open, "all are told")
        counters = [each for each in it.book.every_counter() if each.budget.id == "all"]
        recalled, pages = leases.due(counters[-1]), 0
        await until(lambda: it.is_open, "all are told")
        call = LeaseKeeper._call

        async def called(keeper: LeaseKeeper, keys: list[str], args: list[bytes | str]) -> list[bytes]:
            nonlocal pages
            pages += 1
            if pages == 1:
                for counter in counters[LINES_MAX + 50 : 2 * LINES_MAX + 60]:
                    leases.due(counter)
                assert leases.recall([recalled.name])
            return await call(keeper, keys, args)

        monkeypatch.setattr(LeaseKeeper, "_call", called)
        for counter in counters[: LINES_MAX + 50]:
            leases.due(counter, is_urgent=True)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        await until(lambda: pages > 0 and not recalled.is_recalled, "the recall is answered")
        assert loop.time() - began_s < TELL_S / 2
