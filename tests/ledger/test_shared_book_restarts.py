"""A Redis that ends and comes back, with what it knew or without: nothing is leased twice either way."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import redis

from domain.amounts import MILLION, Amounts
from domain.ids import uuid7
from ledger.book import Book
from ledger.budgets import Budget, Subject
from ledger.exchange_lines import Want
from ledger.holds import Demand, Hold
from ledger.windows import parse_window
from tests.ledger.shared_book import Ask, Clock, Replica, asks
from tests.redis_server import Persistence, RedisServer

NOW_S = 1_772_323_200
LIMIT = 100
BUDGET = Budget("b", "finance", (("org", "acme"),), "tokens", LIMIT, parse_window("day"))
SEARCH = Subject("acme", "search", "web", "", "k1", "", "small", "sim")


class Always(NamedTuple):
    """A server that syncs every write, and how it is asked at the test's time."""

    server: RedisServer
    clock: Clock
    ask: Ask


@pytest.fixture
def always() -> Iterator[Always]:
    clock = Clock()
    clock.follow(NOW_S)
    with RedisServer("always") as server, redis.Redis.from_url(server.url) as client:
        yield Always(server, clock, asks(client, clock))


def pair(ask: Ask, clock: Clock, *, is_durable: bool) -> list[Replica]:
    """Two replicas that have joined and hold 30 each, with 10 more ready."""
    replicas = [Replica(f"r{at}", 2, Book([BUDGET], NOW_S, is_shared=True), clock, 0.0) for at in range(2)]
    for replica in (*replicas, *replicas):
        replica.leases.is_durable = is_durable
        replica.leases.shard("acme")
        replica.exchange(ask, NOW_S)
    for replica in replicas:
        assert taken(replica, ask, 30) == 30
        assert taken(replica, ask, 10) == 10
        replica.book.void(list(replica.book.holds)[-1])
    return replicas


def taken(replica: Replica, ask: Ask, tokens: int) -> int:
    """What of these tokens a replica can hold after one exchange: all or none."""
    demand = Demand(Amounts(tokens=tokens), Amounts(), 0, 0)
    route = replica.book.route(SEARCH, NOW_S)
    want = Want(route, demand)
    replica.leases.want(want)
    replica.exchange(ask, NOW_S, [want])
    held = replica.book.hold(route, demand, uuid7(), {}, NOW_S * MILLION, 60)
    return tokens if isinstance(held, Hold) else 0


def greedy(replicas: list[Replica], ask: Ask) -> int:
    """What all hold together once each has taken what it can get, bit by bit."""
    while sum(taken(replica, ask, 1) for replica in (*replicas, *replicas)):
        pass
    return sum(counter.held for replica in replicas for counter in replica.book.counters(NOW_S))


@pytest.mark.parametrize("persistence", ["none", "everysec"])
def test_a_server_that_may_have_forgotten_leases_nothing_until_all_have_joined_again(persistence: Persistence) -> None:
    clock = Clock()
    clock.follow(NOW_S)
    with RedisServer(persistence) as server, redis.Redis.from_url(server.url) as client:
        ask = asks(client, clock)
        gone = Replica("of another name", 1, Book([BUDGET], NOW_S, is_shared=True), clock, 0.0)
        gone.leases.shard("acme")
        gone.exchange(ask, NOW_S)
        assert taken(gone, ask, 20) == 20
        first, second = pair(ask, clock, is_durable=False)
        epoch = first.leases.shard("acme").epoch
        server.kill()
        server.start()
        assert taken(first, ask, 20) == 0
        assert first.leases.shard("acme").epoch != epoch
        assert taken(first, ask, 20) == 0, "the other has not told what it has"
        second.exchange(ask, NOW_S)
        assert taken(first, ask, 20) == 20
        assert greedy([first, second], ask) == LIMIT


def test_a_server_that_syncs_every_write_goes_on_in_the_same_epoch(always: Always) -> None:
    server, clock, ask = always
    first, second = pair(ask, clock, is_durable=True)
    epoch = first.leases.shard("acme").epoch
    server.kill()
    server.start()
    assert taken(first, ask, 20) == 20, "the other need not be heard"
    assert first.leases.shard("acme").epoch == epoch
    assert greedy([first, second], ask) == LIMIT


def test_a_server_that_once_did_not_sync_is_not_believed_after_a_restart_that_makes_it(always: Always) -> None:
    server, clock, ask = always
    first, second = pair(ask, clock, is_durable=True)
    epoch = first.leases.shard("acme").epoch
    for is_durable in (False, True):
        first.leases.is_durable = is_durable
        taken(first, ask, 1)
    server.kill()
    server.start()
    assert taken(first, ask, 20) == 0
    assert first.leases.shard("acme").epoch != epoch
    second.exchange(ask, NOW_S)
    assert greedy([first, second], ask) == LIMIT


def test_an_answer_lost_with_the_server_is_given_again_when_it_comes_back(always: Always) -> None:
    server, clock, ask = always
    first, second = pair(ask, clock, is_durable=True)
    shard, route = first.leases.shard("acme"), first.book.route(SEARCH, NOW_S)
    demand = Demand(Amounts(tokens=25), Amounts(), 0, 0)
    want = Want(route, demand)
    first.leases.want(want)
    answer = ask(first.leases.build(shard, [want], NOW_S, first.at_s))  # which does not arrive
    server.kill()
    server.start()
    again = ask(first.leases.build(shard, [], NOW_S, first.at_s))
    assert again == answer
    first.leases.apply(shard, again, NOW_S)
    assert isinstance(first.book.hold(route, demand, uuid7(), {}, NOW_S * MILLION, 60), Hold)
    assert greedy([first, second], ask) == LIMIT
