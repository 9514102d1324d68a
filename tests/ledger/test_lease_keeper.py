"""Lease keepers on a real Redis: what requests are told, and how replicas share, recall and give back."""

import asyncio
import json
import time
from collections.abc import Iterator

import pytest
import redis
import uvloop

from domain.amounts import Amounts
from ledger.counters import Grant
from ledger.exchange_lines import Want
from ledger.holds import Demand, Hold, Shortfall
from ledger.lease_keeper import FETCH_S, PAUSE_S_MAX, US, Fetched
from ledger.shared_store import CONNECTIONS_MAX, ServerClock
from ledger.windows import parse_window
from tests.ledger.keepers import SUBJECT, TIMEOUT_MS, Node, budget, demand, node, nodes, stop, sums, until
from tests.redis_server import RedisServer

LIMIT = 1_000
TOKENS = 7
OUTAGE_S = 0.8
RESETS = 200
HELD_UP_MS = 400


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis that keeps what it has acknowledged."""
    with RedisServer("always") as running:
        yield running


async def away(server: RedisServer, *of: Node) -> None:
    server.kill()
    await until(lambda: all(each.book.is_away for each in of), "the outage is noticed")


async def test_a_lease_is_served_while_redis_is_away_and_then_the_refusal_says_so(server: RedisServer) -> None:
    async with nodes(server, 2, [budget("all", LIMIT)]) as (it, _):
        first = await it.hold(TOKENS)
        assert isinstance(first, Hold)
        it.book.void(first.hold_id)
        await away(server, it)
        counter = it.book.find("all", "*")
        assert counter is not None
        assert counter.room >= TOKENS
        while isinstance(held := it.hold_here(TOKENS), Hold):
            assert counter.spent + counter.held <= counter.cell.lease <= LIMIT
        assert held.is_cut_off
        assert (held.budget, held.limit) == ("all", LIMIT)


async def test_a_budget_that_denies_refuses_at_once_while_redis_is_away(server: RedisServer) -> None:
    async with nodes(server, 2, [budget("all", LIMIT, on_unavailable="deny")]) as (it, _):
        first = await it.hold(100)
        assert isinstance(first, Hold)
        it.spend(first, 0)
        await away(server, it)
        refused = it.hold_here(1)
        assert isinstance(refused, Shortfall)
        assert refused.is_cut_off


async def test_what_was_allowed_beyond_the_limit_while_redis_was_away_is_debited_afterwards(
    server: RedisServer,
) -> None:
    async with nodes(server, 2, [budget("all", LIMIT, on_unavailable="allow")]) as of:
        await away(server, *of)
        for each in of:
            held = each.hold_here(800)
            assert isinstance(held, Hold)
            each.spend(held, 800)
        await asyncio.to_thread(server.start)
        await until(lambda: all(each.is_open for each in of), "both come back")
        await until(lambda: sums(server) == (1_600, 1_600), "all of it is debited")
        refused = await asyncio.gather(*(each.hold(1) for each in of))
        assert all(isinstance(each, Shortfall) and not each.is_cut_off for each in refused)


async def test_while_redis_is_away_attempts_are_few_and_no_request_waits(server: RedisServer) -> None:
    async with nodes(server, 1, [budget("all", LIMIT)]) as (it,):
        await it.proxy.change(reset_at_connect=True)
        await it.proxy.reset()
        await until(lambda: it.book.is_away, "the outage is noticed")
        accepted, failures = it.proxy.counts.accepted, it.keeper.stats.failures
        fetches = it.keeper.stats.fetches
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        answers = {await it.fetch(LIMIT) for _ in range(1_000)}
        assert answers == {Fetched.UNSURE}
        assert it.keeper.stats.fetches == fetches
        assert loop.time() - began_s < 1_000 * FETCH_S / 10
        await asyncio.sleep(max(0.0, 3.0 - (loop.time() - began_s)))
        # Without pauses there would be thousands; the listener tries five times a second.
        assert it.keeper.stats.failures - failures <= 12
        assert it.proxy.counts.accepted - accepted <= 40


async def test_a_grant_made_at_one_replica_reaches_the_others_past_what_is_no_grant(
    server: RedisServer,
) -> None:
    async with nodes(server, 2, [budget("all", LIMIT)]) as (first, second):
        assert isinstance(await second.hold(LIMIT + 1), Shortfall)
        now_s = first.keeper.clock.now_us() // US
        first.book.grant(Grant("g1", "all", "*", 500, now_s + 3_600, "ops", "a launch"), now_s)
        server.ask("HSET bursar:{shared}:grants broken not-json")
        server.ask("HSET bursar:{shared}:grants other [1]")
        read = {
            "grant_id": "g2",
            "budget": 1,
            "counter": "*",
            "amount": 1,
            "expires_at_s": now_s + 60,
            "actor": "",
            "reason": "",
        }
        with redis.Redis.from_url(server.url) as client:
            client.hset("bursar:{shared}:grants", "g2", json.dumps(read))
        await until(lambda: "g1" in second.book.grants, "the other learns of the grant")
        assert isinstance(await second.hold(LIMIT + 400), Hold)
        assert second.book.grants.keys() == {"g1"}
        assert not second.running.done()


async def test_an_organisation_that_one_replica_begins_is_shared_by_the_others(server: RedisServer) -> None:
    async with nodes(server, 2, [budget("all", LIMIT, scope=(("org", "*"),))]) as (first, second):
        new = SUBJECT._replace(org="new")
        first.book.route(new, first.keeper.clock.now_us() // US)
        await until(lambda: "new" in second.keeper.leases.shards, "the other learns of it")
        await until(lambda: first.is_open and second.is_open, "both have reported on it")
        assert isinstance(await first.hold(600, new), Hold)
        assert isinstance(await second.hold(500, new), Shortfall)
        assert isinstance(await second.hold(400, new), Hold)


async def test_a_new_organisation_is_served_while_a_replica_is_dead(server: RedisServer) -> None:
    async with nodes(server, 3, [budget("all", LIMIT, scope=(("org", "*"),))]) as (first, second, third):
        third.running.cancel()
        await third.proxy.change(freeze=True)
        new = SUBJECT._replace(org="new")
        assert isinstance(await first.hold(600, new), Hold)
        refused = await second.hold(500, new)
        assert isinstance(refused, Shortfall)
        assert not refused.is_cut_off
        assert isinstance(await second.hold(400, new), Hold)


async def test_more_organisations_than_connections_are_no_outage(server: RedisServer) -> None:
    # A machine that is busy with other tests is slow to answer, and that is no outage either.
    async with nodes(server, 2, [budget("all", LIMIT, scope=(("org", "*"),))], timeout_ms=10 * TIMEOUT_MS) as of:
        subjects = [SUBJECT._replace(org=f"o{index}") for index in range(4 * CONNECTIONS_MAX)]
        for replica in of:
            for each in subjects:
                replica.book.route(each, replica.keeper.clock.now_us() // US)
        await until(lambda: all(each.is_open and len(each.keeper.leases.shards) > 64 for each in of), "all are shared")
        held = await asyncio.gather(*(of[0].hold(600, each, timeout_s=10 * FETCH_S) for each in subjects))
        assert all(isinstance(each, Hold) for each in held)
        refused = await asyncio.gather(*(of[1].hold(600, each, timeout_s=10 * FETCH_S) for each in subjects))
        assert all(isinstance(each, Shortfall) for each in refused)
        assert not any(each.said or each.keeper.stats.failures for each in of)


async def test_what_lies_idle_at_one_replica_is_given_to_another_before_it_denies(server: RedisServer) -> None:
    async with nodes(server, 3, [budget("all", LIMIT)]) as (first, second, third):
        for each in (first, second):
            held = await each.hold(450)
            assert isinstance(held, Hold)
            each.book.void(held.hold_id)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        assert isinstance(await third.hold(LIMIT), Hold)
        assert loop.time() - began_s < FETCH_S
        assert isinstance(await first.hold(1), Shortfall)
        assert await second.fetch(1) is Fetched.SHORT


async def test_who_waits_is_answered_although_others_go_on_asking(server: RedisServer) -> None:
    async with nodes(server, 2, [budget("all", LIMIT)]) as (first, second):
        held = await first.hold(LIMIT)
        assert isinstance(held, Hold)
        first.spend(held, LIMIT)
        route = second.book.route(SUBJECT, second.keeper.clock.now_us() // US)
        asking = asyncio.create_task(second.fetch(1))
        while not asking.done():
            second.keeper.leases.want(Want(route, demand(1)))
            await asyncio.sleep(0)
        assert await asking is Fetched.SHORT


async def test_a_gateway_that_is_held_up_does_not_take_redis_for_away(server: RedisServer) -> None:
    # Long enough for a machine that is busy with other tests to answer in what is left of it.
    async with nodes(server, 1, [budget("all", LIMIT)], timeout_ms=HELD_UP_MS) as (it,):
        for turns in range(4, 16):
            asking = asyncio.create_task(it.fetch(LIMIT - turns))
            for _ in range(turns):
                await asyncio.sleep(0)
            time.sleep(1.3 * HELD_UP_MS / 1000)  # noqa: ASYNC251 as a burst of requests does
            assert await asking is Fetched.READY
        assert (it.keeper.stats.failures, it.said) == (0, [])


async def test_a_replica_whose_listener_died_silently_hears_recalls_again(server: RedisServer) -> None:
    async with nodes(server, 2, [budget("all", LIMIT)]) as (first, second):
        await first.proxy.change(freeze=True)
        await asyncio.sleep(OUTAGE_S)
        await first.proxy.heal()
        await until(lambda: first.is_open, "it is back")
        await until(lambda: patterns(server) >= 2, "it listens again")
        held = await first.hold(900)
        assert isinstance(held, Hold)
        first.book.void(held.hold_id)
        assert isinstance(await second.hold(LIMIT), Hold)


def patterns(server: RedisServer) -> int:
    """How many clients listen to patterns."""
    return server.ask("CLIENT LIST TYPE pubsub").count(b"psub=1")


async def test_a_demand_shrinks_only_to_what_the_whole_budget_has_left(server: RedisServer) -> None:
    async with nodes(server, 2, [budget("all", LIMIT)]) as (first, second):
        held = await first.hold(600)
        assert isinstance(held, Hold)
        first.spend(held, 300)
        wanted = Demand(Amounts(tokens=10), Amounts(tokens=US), 5, 5_000)
        shrunk = await second.hold(0, asked=wanted)
        assert isinstance(shrunk, Hold)
        assert shrunk.cap == LIMIT - 300 - 10


async def test_a_demand_beyond_the_whole_limit_recalls_nothing(server: RedisServer) -> None:
    async with nodes(server, 1, [budget("all", LIMIT)]) as (it,):
        assert await it.fetch(LIMIT + 1) is Fetched.SHORT
        assert it.keeper.stats.fetches == 0


async def test_a_client_that_leaves_while_it_waits_leaves_nothing_asked_for(server: RedisServer) -> None:
    async with nodes(server, 1, [budget("all", LIMIT)]) as (it,):
        await it.proxy.change(to_client={"cut": True})
        asking = [asyncio.create_task(it.fetch(900)) for _ in range(5)]
        await asyncio.sleep(0.05)
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        assert not it.keeper._waiting
        await it.proxy.heal()
        await until(lambda: it.is_open, "it is back")
        assert isinstance(await it.hold(900), Hold)


async def test_a_keeper_closes_soon_while_redis_is_away_or_silent(server: RedisServer) -> None:
    async with nodes(server, 2, [budget("all", LIMIT)]) as (first, second):
        await first.proxy.change(freeze=True)
        await second.proxy.change(freeze=True)
        await until(lambda: first.book.is_away, "the first notices")
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        await stop(first)
        await stop(second)
        assert loop.time() - began_s < 2 * PAUSE_S_MAX


async def test_a_keeper_that_closes_gives_back_what_lies_idle_of_every_organisation(server: RedisServer) -> None:
    of = [budget("all", LIMIT, scope=(("org", "*"),)), budget("whole", 10**6)]
    async with nodes(server, 2, of) as (first, second):
        subjects = [SUBJECT._replace(org=f"o{index}") for index in range(5)]
        for each in subjects:
            first.book.route(each, first.keeper.clock.now_us() // US)
        both = (first, second)
        await until(lambda: all(each.is_open and len(each.keeper.leases.shards) > 5 for each in both), "all are shared")
        for each in subjects:
            held = await first.hold(LIMIT, each)
            assert isinstance(held, Hold)
            first.spend(held, 100)
        await stop(first)
        for each in subjects:
            assert isinstance(await second.hold(LIMIT - 100, each), Hold)
        assert all(counter.stranded == 0 for counter in second.book.every_counter())


async def test_windows_turn_by_the_time_of_the_server(server: RedisServer) -> None:
    async with nodes(server, 1, [budget("all", LIMIT, window=parse_window("day"))]) as (it,):
        it.keeper.clock.offset_us += 3_600 * US
        wall_us = time.time_ns() // 1000
        await until(lambda: it.keeper.clock.now_us() < wall_us + 600 * US, "the server's time is learned again")


async def test_a_redis_that_may_evict_counters_is_not_asked_for_leases(server: RedisServer) -> None:
    await asyncio.to_thread(server.ask, "CONFIG SET maxmemory 64mb")
    await asyncio.to_thread(server.ask, "CONFIG SET maxmemory-policy volatile-lru")
    async with node(server, "r0", 1, [budget("all", LIMIT)]) as it:
        it.book.route(SUBJECT, it.keeper.clock.now_us() // US)
        await until(lambda: it.book.is_away, "it is not trusted")
        assert "maxmemory-policy noeviction" in it.keeper.stats.reason
        await asyncio.to_thread(server.ask, "CONFIG SET maxmemory-policy noeviction")
        await until(lambda: it.is_open, "it is trusted")
        assert isinstance(await it.hold(TOKENS), Hold)


async def test_a_redis_that_tells_nothing_of_its_configuration_is_not_trusted_more(server: RedisServer) -> None:
    await asyncio.to_thread(server.ask, "CONFIG SET maxmemory 64mb")
    await asyncio.to_thread(server.ask, "CONFIG SET maxmemory-policy volatile-lru")
    await asyncio.to_thread(server.ask, "ACL SETUSER default -config")
    async with node(server, "r0", 1, [budget("all", LIMIT)]) as it:
        await until(lambda: it.book.is_away, "it is not trusted")
        assert "maxmemory-policy noeviction" in it.keeper.stats.reason


async def test_what_is_wrong_with_one_organisation_takes_only_that_one_away(server: RedisServer) -> None:
    async with nodes(server, 1, [budget("all", LIMIT, scope=(("org", "*"),))]) as (it,):
        failing: list[str] = []
        it.keeper.on_failing = lambda tag, reason: failing.append(f"{tag}: {reason}")
        bad, good = SUBJECT._replace(org="bad"), SUBJECT._replace(org="good")
        for subject in (bad, good):
            assert isinstance(await it.hold(10, subject), Hold)
        server.ask("DEL bursar:{bad}:state")
        server.ask("SET bursar:{bad}:state x")
        assert await it.fetch(500, bad) is Fetched.UNSURE
        await until(lambda: bool(failing), "it is said")
        assert failing[0].startswith("bad: ")
        fetches = it.keeper.stats.fetches
        assert await it.fetch(500, bad) is Fetched.UNSURE
        assert it.keeper.stats.fetches == fetches
        assert isinstance(await it.hold(500, good), Hold)
        assert not it.book.is_away
        server.ask("DEL bursar:{bad}:state")
        await until(lambda: it.keeper.leases.shard("bad").is_open, "it is mended")
        assert isinstance(await it.hold(500, bad), Hold)
        assert len(failing) == 1


async def test_a_server_that_takes_no_writes_is_away(server: RedisServer) -> None:
    async with nodes(server, 1, [budget("all", LIMIT)]) as (it,):
        server.ask("REPLICAOF 127.0.0.1 1")
        await until(lambda: it.book.is_away, "it is noticed")
        server.ask("REPLICAOF NO ONE")
        await until(lambda: it.is_open, "it is back")


def test_connections_that_are_reset_under_uvloop_are_no_fault_of_ours(server: RedisServer) -> None:
    async def resets() -> None:
        async with nodes(server, 2, [budget("all", 10**9)]) as both:
            for turn in range(RESETS):
                it = both[turn % 2]
                await it.hold(100 * turn)
                await it.proxy.reset()
                assert not any(each.running.done() for each in both)
            await until(lambda: all(each.is_open for each in both), "both are back")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(resets())


def test_a_step_of_the_machines_clock_moves_no_window(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ServerClock()
    wall_us, before_us = time.time_ns() // 1000, clock.now_us()
    assert abs(before_us - wall_us) < US
    monkeypatch.setattr(time, "time_ns", lambda: (wall_us + 3_600 * US) * 1000)
    assert clock.now_us() - before_us < 60 * US


async def test_nothing_is_leased_in_a_window_that_has_not_begun_by_the_clock_of_redis(server: RedisServer) -> None:
    async with nodes(server, 1, [budget("hour", LIMIT, window=parse_window("hour"))]) as (it,):
        ahead = it.book.route(SUBJECT, it.keeper.clock.now_us() // US + 2 * 3_600)
        ahead.headroom(it.keeper.clock.now_us() // US + 2 * 3_600)
        assert await it.keeper.fetch(ahead, demand(TOKENS)) is not Fetched.READY
        assert ahead.counters[0][0].room <= 0
