"""Lease keepers on a real Redis, through a network that fails: nothing is overspent, and all comes back by itself."""

import asyncio
import itertools
import re
from collections.abc import Awaitable, Callable, Iterator

import pytest

from ledger.holds import Hold, Shortfall
from ledger.lease_keeper import PAUSE_S_MAX, Fetched
from tests.ledger.keepers import SUBJECT, Node, budget, node, nodes, sums, until
from tests.local_server import HOST
from tests.redis_server import RedisServer

LIMIT = 1_000
TOKENS = 7
OUTAGE_S = 0.8


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis that keeps what it has acknowledged."""
    with RedisServer("always") as running:
        yield running


class Load:
    """Requests at every replica for as long as the context lasts; the sum over them is looked at after each step."""

    def __init__(self, replicas: list[Node], limit: int) -> None:
        self.replicas, self.limit = replicas, limit
        self.peak = 0
        self.held = 0
        self._is_over = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Load":
        self._tasks = [asyncio.create_task(self._ask(each)) for each in self.replicas for _ in range(4)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_over = True
        await asyncio.gather(*self._tasks)

    async def _ask(self, replica: Node) -> None:
        for spent in itertools.cycle((0, 0, 0, TOKENS)):
            if self._is_over:
                return
            held = await replica.hold(TOKENS)
            self.peak = max(self.peak, sum(each.used("all") for each in self.replicas))
            assert self.peak <= self.limit
            await asyncio.sleep(0.005)
            if isinstance(held, Hold):
                self.held += 1
                replica.spend(held, spent)


async def agrees(server: RedisServer, replicas: list[Node]) -> None:
    """Once all is told, Redis' sums are the replicas' own, and no more is debited than there is."""

    def is_so() -> bool:
        spent, debited = sums(server)
        counters = [each.book.find("all", "*") for each in replicas]
        assert all(counter is not None for counter in counters)
        mine = sum(each.used("all") for each in replicas)
        return spent == mine <= debited <= LIMIT and all(
            counter is not None and counter.spent + counter.spent_elsewhere == mine and not counter.held_elsewhere
            for counter in counters
        )

    await until(is_so, "Redis and the replicas agree and nothing lies idle")


async def reply_lost(server: RedisServer, of: list[Node]) -> None:
    for each in of:
        await each.proxy.change(lose_reply={"command": "EVALSHA", "times": 3})


async def reset(server: RedisServer, of: list[Node]) -> None:
    for _ in range(5):
        await asyncio.gather(*(each.proxy.reset() for each in of))
        await asyncio.sleep(0.05)


async def half_open(server: RedisServer, of: list[Node]) -> None:
    await of[0].proxy.change(freeze=True)
    await until(lambda: of[0].book.is_away, "the frozen replica notices")
    await asyncio.sleep(OUTAGE_S)
    await of[0].proxy.heal()


async def slow(server: RedisServer, of: list[Node]) -> None:
    for each in of:
        await each.proxy.change(to_server={"delay_s": 0.05}, to_client={"delay_s": 0.05})
    await asyncio.sleep(OUTAGE_S)
    for each in of:
        await each.proxy.heal()


async def answers_cut(server: RedisServer, of: list[Node]) -> None:
    await of[0].proxy.change(to_client={"cut": True})
    await until(lambda: of[0].book.is_away, "the replica that hears nothing notices")
    await of[0].proxy.heal()


async def requests_cut(server: RedisServer, of: list[Node]) -> None:
    await of[0].proxy.change(to_server={"cut": True})
    await until(lambda: of[0].book.is_away, "the replica that is not heard notices")
    await of[0].proxy.heal()


async def killed(server: RedisServer, of: list[Node]) -> None:
    server.kill()
    await asyncio.sleep(OUTAGE_S)
    await asyncio.to_thread(server.start)


async def long_killed(server: RedisServer, of: list[Node]) -> None:
    server.kill()
    await until(lambda: all(each.book.is_away for each in of), "all notice")
    await asyncio.sleep(2 * PAUSE_S_MAX)
    await asyncio.to_thread(server.start)


@pytest.mark.parametrize("persistence", ["always", "none"])
@pytest.mark.parametrize("fault", [reply_lost, reset, half_open, slow, answers_cut, requests_cut, killed, long_killed])
async def test_nothing_is_overspent_through_a_fault_and_afterwards_all_is_as_it_was(
    fault: Callable[[RedisServer, list[Node]], Awaitable[None]], persistence: str
) -> None:
    with RedisServer(persistence) as server:  # type: ignore[arg-type]  # a parameter of the test
        async with nodes(server, 3, [budget("all", LIMIT)]) as of:
            async with Load(of, LIMIT) as load:
                await asyncio.sleep(0.1)
                await fault(server, of)
                await until(lambda: not any(each.book.is_away for each in of), "all come back by themselves")
            await agrees(server, of)
            assert load.held
            assert all(not each.running.done() for each in of)


async def test_an_answer_that_is_lost_leaves_those_of_other_organisations_as_they_are(server: RedisServer) -> None:
    async with nodes(server, 1, [budget("all", LIMIT, scope=(("org", "*"),))]) as (it,):
        subjects = [SUBJECT._replace(org=f"o{index}") for index in range(10)]
        await asyncio.gather(*(it.hold(1, each) for each in subjects))
        await it.proxy.change(lose_reply={"command": "EVALSHA"}, to_client={"jitter_s": 0.02})
        held = await asyncio.gather(*(it.hold(900, each) for each in subjects))
        assert all(isinstance(each, Hold) for each in held)
        assert it.keeper.stats.failures == 1
        assert not it.said


async def test_a_redis_that_kept_everything_goes_on_in_its_epoch(server: RedisServer) -> None:
    async with nodes(server, 2, [budget("all", LIMIT)]) as of:
        epochs = [each.keeper.leases.shard("-").epoch for each in of]
        await killed(server, of)
        await until(lambda: all(each.is_open for each in of), "all come back")
        assert [each.keeper.leases.shard("-").epoch for each in of] == epochs


async def test_a_redis_that_forgot_grants_nothing_until_all_replicas_have_reported() -> None:
    with RedisServer("none") as server:
        async with nodes(server, 2, [budget("all", LIMIT)]) as of:
            first, second = of
            held = await second.hold(900)
            assert isinstance(held, Hold)
            await second.proxy.change(refuse=True)
            await second.proxy.reset()
            server.kill()
            await until(lambda: first.book.is_away, "the first notices")
            await asyncio.to_thread(server.start)
            shard = first.keeper.leases.shard("-")
            await until(lambda: not first.book.is_away and shard.joining is None, "the first has joined anew")
            assert not shard.is_open
            assert await first.fetch(800) is Fetched.UNSURE
            assert isinstance(first.hold_here(800), Shortfall)
            await second.proxy.heal()
            await until(lambda: shard.is_open, "the second has reported")
            await until(lambda: held_elsewhere(first) == 900, "the first knows of the second's hold")
            assert await first.fetch(800) is Fetched.SHORT
            assert isinstance(await first.hold(100), Hold)


def held_elsewhere(it: Node) -> int:
    counter = it.book.find("all", "*")
    assert counter is not None
    return counter.held_elsewhere


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["CONFIG SET maxmemory 1"], "OOM|OutOfMemory"),
        (["CONFIG SET requirepass secret", "AUTH"], "[Aa]uth"),
        ([f"REPLICAOF {HOST} 1"], "READONLY|ReadOnly|read only"),
    ],
)
async def test_a_redis_that_refuses_is_away_for_one_clear_reason_and_loses_nothing(
    server: RedisServer, settings: list[str], said: str
) -> None:
    async with nodes(server, 1, [budget("all", LIMIT)]) as (it,):
        held = await it.hold(300)
        assert isinstance(held, Hold)
        server.ask(settings[0])
        if settings[1:]:
            await it.proxy.reset()
        it.spend(held, 200)
        await until(lambda: it.book.is_away, "it is away")
        (reason,) = it.said
        assert re.search(said, reason), reason
        assert "\n" not in reason
        assert it.keeper.stats.reason == reason
        assert it.used("all") == 200


async def test_a_server_that_is_no_redis_is_away_for_one_clear_reason() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n<html>\r\n")
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(answer, HOST, 0)
    port = listening.sockets[0].getsockname()[1]

    class Elsewhere:
        def __init__(self) -> None:
            self.port = port

    async with listening, node(Elsewhere(), "r0", 1, [budget("all", LIMIT)]) as it:  # type: ignore[arg-type]  # no RedisServer
        await until(lambda: it.book.is_away, "it is away")
        (reason,) = it.said
        assert reason
        assert "\n" not in reason
        assert await it.fetch(TOKENS) is Fetched.UNSURE
        assert not it.running.done()
