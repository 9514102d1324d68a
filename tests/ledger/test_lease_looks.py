"""Looking at a shared book: what all replicas have of a budget is asked for, and known only once it was answered."""

import asyncio
from collections.abc import Iterator

import pytest

from ledger.counters import Counter
from ledger.holds import Hold
from ledger.lease_keeper import US
from tests.ledger.keepers import SUBJECT, Node, budget, node, nodes, until
from tests.redis_server import RedisServer

LIMIT = 1_000


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer("always") as running:
        yield running


@pytest.fixture(autouse=True)
def empty(server: RedisServer) -> None:
    server.ask("FLUSHALL")


def counters(of: Node, org: str = SUBJECT.org) -> list[Counter]:
    route = of.book.route(SUBJECT._replace(org=org), of.keeper.clock.now_us() // US)
    return [counter for counter, _, _ in route.counters]


async def test_what_another_replica_spent_a_moment_ago_is_seen(server: RedisServer) -> None:
    """Without looking, a replica that serves nothing there hears of it late or never."""
    async with nodes(server, 2, [budget("all", LIMIT)]) as (it, other):
        held = await other.hold(400)
        assert isinstance(held, Hold)
        other.spend(held, 400)
        assert await other.keeper.look(counters(other), 5.0)  # and so told of it
        assert await it.keeper.look(counters(it), 5.0)
        [counter] = counters(it)
        assert counter.spent_elsewhere == 400
        assert counter.available <= LIMIT - 400


async def test_a_counter_that_nobody_has_used_here_is_known_after_a_look(server: RedisServer) -> None:
    async with nodes(server, 2, [budget("orgs", LIMIT, scope=(("org", "*"),))]) as (it, other):
        held = await other.hold(300, SUBJECT._replace(org="umbra"))
        assert isinstance(held, Hold)
        other.spend(held, 300)
        assert await other.keeper.look(counters(other, "umbra"), 5.0)
        assert await it.keeper.look(counters(it, "umbra"), 5.0)
        counter = it.book.find("orgs", "org=umbra")
        assert counter is not None
        assert counter.spent_elsewhere == 300


async def test_many_looks_at_once_are_all_answered(server: RedisServer) -> None:
    async with nodes(server, 2, [budget("all", LIMIT)]) as (it, other):
        looks = [of.keeper.look(counters(of), 5.0) for of in (it, other) for _ in range(20)]
        holds = [of.hold(3) for of in (it, other) for _ in range(20)]
        assert all(await asyncio.gather(*looks))
        assert all(isinstance(held, Hold) for held in await asyncio.gather(*holds))


async def test_while_redis_is_away_nothing_is_known(server: RedisServer) -> None:
    async with nodes(server, 2, [budget("all", LIMIT)]) as (it, _):
        await it.proxy.change(freeze=True)
        assert not await it.keeper.look(counters(it), 0.5)


async def test_while_not_all_have_reported_nothing_is_known_and_nobody_waits(server: RedisServer) -> None:
    async with node(server, "a", 2, [budget("all", LIMIT)]) as it:
        assert not await asyncio.wait_for(it.keeper.look(counters(it), 60.0), 30.0)


async def test_what_others_spent_of_a_soft_budget_is_seen(server: RedisServer) -> None:
    async with nodes(server, 2, [budget("soft", LIMIT, mode="soft")]) as (it, other):
        held = await other.hold(2 * LIMIT)
        assert isinstance(held, Hold)
        other.spend(held, 2 * LIMIT)
        assert await other.keeper.look(counters(other), 5.0)
        assert await it.keeper.look(counters(it), 5.0)
        assert [counter.spent_elsewhere for counter in counters(it)] == [2 * LIMIT]


async def test_who_has_given_all_back_still_learns_what_others_hold(server: RedisServer) -> None:
    """It has nothing to tell any more, and knew of nothing elsewhere when it last told: it would hear no more."""
    async with nodes(server, 2, [budget("all", LIMIT)]) as (it, other):
        held = await it.hold(400)
        assert isinstance(held, Hold)
        it.spend(held, 400)
        [counter] = counters(it)
        share = it.keeper.leases.due(counter)
        await until(lambda: not share.is_watched, "all that lay idle is given back")
        assert isinstance(await other.hold(500), Hold)
        assert counter.held_elsewhere == 0
        assert await it.keeper.look([counter], 5.0)
        assert counter.held_elsewhere >= 500
        # Who only looks is leased nothing.
        assert counter.cell.lease == counter.spent == 400


async def test_looking_at_nothing_asks_nothing(server: RedisServer) -> None:
    async with nodes(server, 1, [budget("all", LIMIT)]) as (it,):
        before = it.keeper.stats.exchanges
        assert await it.keeper.look([])
        assert it.keeper.stats.exchanges - before <= 1
