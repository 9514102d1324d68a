"""Every exchange keeps to one hash slot: a Redis Cluster, where keys of two slots in one script are refused."""

from collections.abc import Iterator

import pytest
import redis

from domain.amounts import MILLION, Amounts
from domain.ids import uuid7
from ledger.book import Book
from ledger.budgets import Budget, Subject
from ledger.exchange_lines import Want
from ledger.holds import Demand, Hold, Shortfall
from ledger.windows import parse_window
from tests.ledger.shared_book import Clock, Replica, asks
from tests.redis_server import RedisServer

NOW_S = 1_772_323_200
ORGS = ("acme", "zeta", "a{b}c", "50%")
BUDGETS = [
    Budget("all", "finance", (), "tokens", 1_000, parse_window("day")),
    Budget("orgs", "finance", (("org", "*"),), "tokens", 300, parse_window("rolling:1h")),
    Budget("teams", "finance", (("team", "*"),), "requests", 50, parse_window("minute")),
    Budget("apps", "finance", (("org", "*"), ("app", "*")), "tokens", 300, parse_window("month"), "soft"),
]


@pytest.fixture(scope="module")
def node() -> Iterator["redis.Redis[bytes]"]:
    """The one node of a cluster: it has every slot, and refuses a script with keys of two."""
    with RedisServer(cluster=True) as server, redis.Redis.from_url(server.url) as client:
        yield client


def test_keys_of_two_slots_would_be_refused(node: "redis.Redis[bytes]") -> None:
    with pytest.raises(redis.ResponseError, match="slot"):
        node.eval("return 1", 2, "bursar:{acme}:state", "bursar:{zeta}:state")


def test_budgets_of_several_organisations_and_of_none_are_exchanged_slot_by_slot(node: "redis.Redis[bytes]") -> None:
    clock = Clock()
    clock.follow(NOW_S)
    ask = asks(node, clock)
    replicas = [Replica(f"r{at}", 2, Book(BUDGETS, NOW_S, is_shared=True), clock, 1.0) for at in range(2)]
    demand = Demand(Amounts(tokens=10, requests=1), Amounts(), 0, 0)
    subjects = [Subject(org, "team", "web", "", "k", "", "small", "sim") for org in ORGS]
    for _ in range(2):  # each joins first, and is leased nothing before the other has joined too
        for replica in replicas:
            for subject in subjects:
                replica.book.route(subject, NOW_S)
            replica.exchange(ask, NOW_S)
    held: list[Hold | Shortfall] = []
    for subject in subjects:
        for replica in replicas:
            route = replica.book.route(subject, NOW_S)
            want = Want(route, demand)
            replica.leases.want(want)
            replica.exchange(ask, NOW_S, [want])
            held.append(replica.book.hold(route, demand, uuid7(), {}, NOW_S * MILLION, 60))
    assert [type(each) for each in held] == [Hold] * 2 * len(ORGS)
    for replica in replicas:
        for hold_id in list(replica.book.holds):
            replica.book.settle(hold_id, Amounts(tokens=10, requests=1), NOW_S * MILLION)
    for replica in (*replicas, *replicas):
        for counter in replica.book.counters(NOW_S):
            replica.leases.due(counter)
        replica.exchange(ask, NOW_S)
    counter = replicas[0].book.find("all", "*")
    assert counter is not None
    assert counter.spent + counter.spent_elsewhere == 2 * 10 * len(ORGS)
    slots = {node.cluster("KEYSLOT", key) for key in node.scan_iter()}  # type: ignore[no-untyped-call]  # redis' own
    assert len(slots) == len(ORGS) + 1
