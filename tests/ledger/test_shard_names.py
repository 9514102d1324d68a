"""New organisations of a shared book: one that is new to all replicas is served although some of them are away."""

import redis

from domain.ids import uuid7
from ledger.exchange_lines import Want
from ledger.holds import Hold, Shortfall
from tests.ledger.replicas import NOW_S, NOW_US, SEARCH, TTL_S, budget, demand, together
from tests.ledger.shared_book import Clock, Replica, SharedBook

LIMIT = 100
ANY = budget(LIMIT, (("org", "*"),))
NEW = SEARCH._replace(org="new")


def tried(of: SharedBook, at: int, tokens: int = LIMIT) -> Hold | Shortfall:
    """What one replica holds of a new organisation by what it is given in two exchanges, the others saying nothing."""
    replica = of.replicas[at]
    route = replica.book.route(NEW, NOW_S)
    want = Want(route, demand(tokens))
    replica.leases.want(want)
    for _ in range(2):
        replica.exchange(of.ask, NOW_S, [want])
    return replica.book.hold(route, demand(tokens), uuid7(), {}, NOW_US, TTL_S)


def joined(client: "redis.Redis[bytes]", clock: Clock, count: int = 2) -> SharedBook:
    """Replicas that know of each other, and of no organisation yet."""
    clock.run = "1"
    of = together(client, clock, count, [ANY])
    of.tell_all(NOW_S)
    return of


def forget(client: "redis.Redis[bytes]", clock: Clock) -> None:
    """The server restarts with nothing."""
    client.flushall()
    clock.run += "0"


def is_open(replica: Replica) -> bool:
    return replica.leases.shard("new").is_open


def test_a_new_organisation_is_served_while_a_replica_is_away(redis_client: "redis.Redis[bytes]", clock: Clock) -> None:
    of = joined(redis_client, clock, 3)
    assert isinstance(tried(of, 0), Hold)
    refused = tried(of, 1, 1)
    assert is_open(of.replicas[1])
    assert isinstance(refused, Shortfall)


def test_an_organisation_is_not_new_where_a_replica_has_not_yet_told_what_it_has(
    redis_client: "redis.Redis[bytes]", clock: Clock
) -> None:
    clock.run = "1"
    of = together(redis_client, clock, 2, [ANY])
    assert isinstance(tried(of, 0), Shortfall)
    assert not is_open(of.replicas[0])
    tried(of, 1, 0)
    assert isinstance(tried(of, 0), Hold)


def test_after_redis_forgot_what_a_silent_replica_may_have_spent_is_not_given_to_others(
    redis_client: "redis.Redis[bytes]", clock: Clock
) -> None:
    of = joined(redis_client, clock)
    held = tried(of, 0)
    assert isinstance(held, Hold)
    forget(redis_client, clock)
    assert isinstance(tried(of, 1), Shortfall)
    assert not is_open(of.replicas[1])
    assert isinstance(tried(of, 0, 0), Hold)
    assert isinstance(tried(of, 1, 1), Shortfall)
    assert is_open(of.replicas[1])


def test_what_a_replica_has_from_its_journal_is_named_before_it_joins(
    redis_client: "redis.Redis[bytes]", clock: Clock
) -> None:
    of = joined(redis_client, clock)
    assert isinstance(tried(of, 0), Hold)
    book = of.replicas[0].book
    forget(redis_client, clock)
    again = of.replicas[0] = Replica("r0", 2, book, clock, 0.0)
    names = again.leases.shard("shared")
    for _ in range(2):  # it has said no word of the organisation itself
        of.ask.name(again.leases, names)
        again.leases.apply(names, of.ask(again.leases.build(names, (), NOW_S, again.at_s)), NOW_S)
    assert isinstance(tried(of, 1), Shortfall)
    assert not is_open(of.replicas[1])


def test_an_organisation_that_two_begin_at_once_is_opened_by_the_one_that_was_first(
    redis_client: "redis.Redis[bytes]", clock: Clock
) -> None:
    of = joined(redis_client, clock, 3)
    first, second = of.replicas[0], of.replicas[1]
    shard = first.leases.shard("new")
    born = of.ask.name(first.leases, shard)
    assert born == clock.run
    assert isinstance(tried(of, 1), Shortfall)
    hello = first.leases.build(shard, (), NOW_S, first.at_s)
    of.ask.born[hello.serial] = born
    first.leases.apply(shard, of.ask(hello), NOW_S)
    assert isinstance(tried(of, 1), Hold)
    assert is_open(second)


def test_what_was_new_to_a_server_that_has_restarted_since_is_not_opened(
    redis_client: "redis.Redis[bytes]", clock: Clock
) -> None:
    of = joined(redis_client, clock)
    leases = of.replicas[0].leases
    shard = leases.shard("new")
    born = of.ask.name(leases, shard)
    assert born == "1"
    forget(redis_client, clock)
    of.ask.born[leases.build(shard, (), NOW_S, 0.0).serial] = born
    assert isinstance(tried(of, 0), Shortfall)
    assert not is_open(of.replicas[0])
