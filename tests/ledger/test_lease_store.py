"""What Redis keeps for leases and for how long, and what a replica joins it with."""

import pytest
import redis

from domain.charges import Charge
from ledger.leases import IDLE_S, LINES_MAX
from ledger.windows import parse_window
from tests.ledger.replicas import (
    NOW_S,
    SEARCH,
    budget,
    charge,
    counter_of,
    demand,
    fetched,
    idle,
    over,
    ready,
    replica,
    said,
    step,
    two,
)
from tests.ledger.shared_book import Ask, Clock

MINE, ANSWER = "bursar:{acme}:replica:r0", "bursar:{acme}:replica:r0:answer"
KEY = "bursar:{acme}:counter:b|tokens|day|org=acme"


def cells_in(client: "redis.Redis[bytes]", key: str) -> list[bytes]:
    return [field for field in client.hkeys(key) if field[:2] in (b"g|", b"s|")]


def test_in_a_new_epoch_each_replica_keeps_the_lease_that_it_has(
    redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask
) -> None:
    first, second = two(clock, ask, [budget(60)], horizon_s=10.0)
    idle(first, ask, 60)
    redis_client.flushall()
    for each in (first, second):
        each.exchange(ask, NOW_S)
    assert counter_of(first).room == 60
    assert ready(second, ask, 1) == 0


def test_what_a_replica_has_counts_in_a_new_epoch_from_its_join_on(
    redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask
) -> None:
    """In all cells, and also when it is cut off right after that."""
    first, second = two(clock, ask, [over("rolling:60s")])
    charge(first, ask, 30)
    fetched(first, ask, 20, now_s=NOW_S)
    clock.follow(NOW_S + 2)
    fetched(first, ask, 10, now_s=NOW_S + 2)
    redis_client.flushall()
    step(first, ask, NOW_S + 2)
    assert first.leases.shard("acme").joining
    step(first, ask, NOW_S + 2)
    assert first.leases.shard("acme").joining is None
    assert ready(second, ask, 40, NOW_S + 2) == 40
    assert ready(second, ask, 41, NOW_S + 2) == 40


def test_a_request_that_waits_for_a_join_is_not_found_to_be_short(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [budget(100)])
    step(alone, ask, wanted=10)
    step(alone, ask, wanted=10)
    (share,) = alone.leases.lacking(alone.book.route(SEARCH, NOW_S), demand(10))
    assert not share.is_short


def test_a_join_in_pages_is_said_once_and_counts_with_the_last(
    redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask
) -> None:
    runs = budget(10, (("org", "*"), ("run", "*")))
    first, second = (replica(clock, [runs], name, of=2) for name in ("r0", "r1"))
    for number in range(LINES_MAX + 1):
        first.book.route(SEARCH._replace(run=f"run-{number}"), NOW_S)
    first.book.route(SEARCH._replace(org="acmes", run="run-0"), NOW_S)
    second.leases.shard("acme")
    second.exchange(ask, NOW_S)
    said(redis_client)
    step(first, ask)
    step(first, ask)
    shard = first.leases.shard("acme")
    assert len(shard.joining or ()) == 1, "another organisation's are told in its own shard"
    second.leases.join("acme")
    step(second, ask)
    assert not second.leases.shard("acme").is_open
    step(first, ask)
    step(second, ask)
    assert second.leases.shard("acme").is_open
    assert said(redis_client) == [["r0", {}, "joined"]]


def test_each_epoch_has_a_name_of_its_own(redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask) -> None:
    """Or what was sent in one could arrive in another."""
    alone = replica(clock, [budget(100)])
    shard, seen = alone.leases.shard("acme"), set()
    for _ in range(3):
        redis_client.flushall()
        alone.exchange(ask, NOW_S)
        seen.add(shard.epoch)
    assert len(seen) == 3
    assert clock.now_ms < (NOW_S + 1) * 1000


def test_while_an_epoch_is_joined_the_shard_is_not_open(
    redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask
) -> None:
    alone = replica(clock, [budget(100)])
    fetched(alone, ask, 40)
    shard = alone.leases.shard("acme")
    assert shard.is_open
    redis_client.flushall()
    step(alone, ask)
    assert not shard.is_open
    assert alone.leases.is_pressing(shard, alone.at_s)


def test_a_repeated_exchange_whose_answer_is_gone_is_refused(
    redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask
) -> None:
    alone = replica(clock, [budget(100)])
    fetched(alone, ask, 40)
    exchange = alone.leases.build(alone.leases.shard("acme"), [], NOW_S, alone.at_s)
    ask(exchange)
    redis_client.delete(ANSWER)
    assert ask(exchange)[0] == b"stale"


@pytest.mark.parametrize(
    ("window", "ttl_s"), [("day", 2 * 86_400), ("minute", 60 + 86_400), ("rolling:60s", 61 + 86_400), ("total", -1)]
)
def test_redis_keeps_a_counter_for_a_day_after_it_stopped_to_count(
    redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask, window: str, ttl_s: int
) -> None:
    alone = replica(clock, [over(window)])
    fetched(alone, ask, 40)
    assert redis_client.ttl(KEY.replace("day", parse_window(window).text)) == ttl_s


@pytest.mark.parametrize("window", ["minute", "rolling:60s"])
def test_redis_forgets_the_cells_that_no_longer_count(
    redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask, window: str
) -> None:
    """All replicas' at once, however many they are."""
    budgets = [over(window, 1_000)]
    replicas = first, *_ = [replica(clock, budgets, f"r{at}", of=3) for at in range(3)]
    for each in (*replicas, *replicas):
        each.leases.shard("acme")
        each.exchange(ask, NOW_S)
    width_s = 60 if window == "minute" else 1
    for number in range(50):
        now_s = NOW_S + number * width_s
        clock.follow(now_s)
        for each in replicas:
            charge(each, ask, 1, now_s=now_s)
    key = KEY.replace("day", parse_window(window).text)
    assert len(cells_in(redis_client, key)) == (3 * 2 * 50 if window != "minute" else 3 * 2 * 2)
    later_s = now_s + 200
    clock.follow(later_s)
    charge(first, ask, 1, now_s=later_s)
    assert len(cells_in(redis_client, key)) == 2


def test_nothing_is_left_in_redis_of_a_counter_that_is_given_up(
    redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask
) -> None:
    first, second = two(clock, ask, [budget(100)])
    first.book.void(fetched(first, ask, 60).hold_id)
    assert redis_client.smembers(MINE) == {KEY.partition("counter:")[2].encode()}
    first.leases.collect(first.at_s)
    first.book.configure([], NOW_S)
    clock.now_ms += int(IDLE_S * 1000)
    shard = first.leases.shard("acme")
    step(first, ask)
    assert cells_in(redis_client, KEY) == []
    assert redis_client.smembers(MINE) == set()
    clock.now_ms += int(IDLE_S * 1000)
    first.leases.collect(first.at_s)
    assert not shard.due, "it is not told of again"
    assert ready(second, ask, 100) == 100


def test_a_counter_that_redis_let_expire_leaves_the_index_and_is_not_made_again(
    redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask
) -> None:
    fetched(replica(clock, [budget(100)]), ask, 60)
    redis_client.delete(KEY)
    new = replica(clock, [budget(100)])
    new.leases.shard("acme")
    new.exchange(ask, NOW_S)
    assert (redis_client.exists(KEY), redis_client.smembers(MINE)) == (0, set())


def test_what_a_correction_took_below_nothing_stays_in_the_index(
    redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask
) -> None:
    alone = replica(clock, [budget(100, mode="soft")])
    alone.book.route(SEARCH, NOW_S)
    alone.exchange(ask, NOW_S)
    assert redis_client.smembers(MINE) == set(), "it has nothing of it yet"
    alone.book.adjust([Charge("b", "org=acme", NOW_S, "tokens", -30)], NOW_S)
    alone.exchange(ask, NOW_S)
    assert redis_client.smembers(MINE) != set()


def test_a_shard_whose_exchange_was_stale_presses_to_join_again(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [budget(100)])
    fetched(alone, ask, 40)
    shard = alone.leases.shard("acme")
    shard.serial = "of another process"
    step(alone, ask)
    assert (shard.epoch, shard.is_open) == ("", False)
    shard.due.clear()
    assert alone.leases.is_pressing(shard, alone.at_s)


def test_who_is_not_known_to_have_joined_must_join(redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [budget(100)])
    fetched(alone, ask, 40)
    redis_client.hdel("bursar:{acme}:state", "joined|r0")
    alone.leases.due(counter_of(alone))
    step(alone, ask)
    assert alone.leases.shard("acme").joining
