"""Replicas of a shared book for tests of what passes between them, at a time that the test sets."""

import redis

from domain.amounts import MILLION, Amounts
from domain.ids import uuid7
from ledger.book import Book
from ledger.budgets import Budget, Subject
from ledger.counters import Counter
from ledger.holds import Demand, Hold, Shortfall
from ledger.windows import parse_window
from tests.ledger.shared_book import Ask, Carrier, Clock, Replica, SharedBook

NOW_S = 1_772_323_200
NOW_US = NOW_S * MILLION
TTL_S = 60
SEARCH = Subject("acme", "search", "web", "", "k1", "", "small", "sim")


def budget(limit: int, scope: tuple[tuple[str, str], ...] = (("org", "acme"),), **more: object) -> Budget:
    return Budget("b", "finance", scope, "tokens", limit, parse_window("day"), **more)  # type: ignore[arg-type]  # the test's own


def replica(clock: Clock, budgets: list[Budget], name: str = "r0", *, of: int = 1, horizon_s: float = 0.0) -> Replica:
    return Replica(name, of, Book(budgets, NOW_S, is_shared=True), clock, horizon_s)


def together(
    client: "redis.Redis[bytes]", clock: Clock, count: int, budgets: list[Budget], horizon_s: float = 0.0
) -> SharedBook:
    return SharedBook(count, Carrier(client, clock), clock, budgets, NOW_S, horizon_s)


def two(clock: Clock, ask: Ask, budgets: list[Budget], horizon_s: float = 0.0) -> tuple[Replica, Replica]:
    """Two replicas that have joined the shard of acme."""
    first, second = (replica(clock, budgets, name, of=2, horizon_s=horizon_s) for name in ("r0", "r1"))
    for each in (first, second, first, second):
        each.leases.shard("acme")
        each.exchange(ask, NOW_S)
    return first, second


def demand(tokens: int) -> Demand:
    return Demand(Amounts(tokens=tokens), Amounts(), 0, 0)


def hold(on: Replica, tokens: int, now_us: int = NOW_US, subject: Subject = SEARCH) -> Hold | Shortfall:
    """Hold from the leases that are there."""
    return on.book.hold(on.book.route(subject, now_us // MILLION), demand(tokens), uuid7(), {}, now_us, TTL_S)


def fetched(on: Replica, ask: Ask, tokens: int, subject: Subject = SEARCH, now_s: int = NOW_S) -> Hold:
    """Hold what one exchange brings."""
    route = on.book.route(subject, now_s)
    on.leases.want(route, demand(tokens))
    on.exchange(ask, now_s, [(route, demand(tokens))])
    held = hold(on, tokens, now_s * MILLION, subject)
    assert isinstance(held, Hold), held
    return held


def counter_of(on: Replica, name: str = "org=acme") -> Counter:
    counter = on.book.find("b", name)
    assert counter is not None
    return counter
