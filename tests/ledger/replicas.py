"""Replicas of a shared book for tests of what passes between them, at a time that the test sets."""

import orjson
import redis

from domain.amounts import MILLION, Amounts
from domain.ids import uuid7
from ledger.book import Book, Crossing
from ledger.budgets import Budget, Subject
from ledger.counters import Counter
from ledger.exchange_lines import Want
from ledger.holds import Demand, Hold, Shortfall
from ledger.shards import channel
from ledger.windows import parse_window
from tests.ledger.shared_book import Ask, Carrier, Clock, Replica, SharedBook

NOW_S = 1_772_323_200
NOW_US = NOW_S * MILLION
TTL_S = 60
SEARCH = Subject("acme", "search", "web", "", "k1", "", "small", "sim")


def budget(limit: int, scope: tuple[tuple[str, str], ...] = (("org", "acme"),), **more: object) -> Budget:
    return Budget("b", "finance", scope, "tokens", limit, parse_window("day"), **more)  # type: ignore[arg-type]  # the test's own


def over(window: str, limit: int = 100) -> Budget:
    """A budget like `budget`, over another window than a day."""
    return Budget("b", "finance", (("org", "acme"),), "tokens", limit, parse_window(window))


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
    want = Want(route, demand(tokens))
    on.leases.want(want)
    on.exchange(ask, now_s, [want])
    held = hold(on, tokens, now_s * MILLION, subject)
    assert isinstance(held, Hold), held
    return held


def counter_of(on: Replica, name: str = "org=acme") -> Counter:
    counter = on.book.find("b", name)
    assert counter is not None
    return counter


def step(on: Replica, ask: Ask, now_s: int = NOW_S, wanted: int = 0) -> list[Crossing]:
    """One exchange of the shard of acme and its answer, where `Replica.exchange` goes on until nothing is left to tell.

    It asks for `wanted` tokens, if any.
    """
    route = on.book.route(SEARCH, now_s)
    if wanted:
        want = Want(route, demand(wanted))
        on.leases.want(want)
    on.leases.collect(on.at_s)
    shard = on.leases.shard("acme")
    exchange = on.leases.build(shard, [want] if wanted else [], now_s, on.at_s)
    return on.leases.apply(shard, ask(exchange), now_s)


def charge(on: Replica, ask: Ask, tokens: int, now_s: int = NOW_S, held: int | None = None) -> None:
    """Fetch, hold and spend tokens; more than were held where `held` is less."""
    hold_id = fetched(on, ask, tokens if held is None else held, now_s=now_s).hold_id
    on.book.settle(hold_id, Amounts(tokens=tokens), now_s * MILLION)


def ready(on: Replica, ask: Ask, tokens: int, now_s: int = NOW_S) -> int:
    """What can be held here once so many tokens have been asked for, by those who ask alone."""
    route = on.book.route(SEARCH, now_s)
    want = Want(route, demand(tokens))
    on.leases.want(want)
    on.exchange(ask, now_s, [want])
    return counter_of(on).room


def idle(on: Replica, ask: Ask, tokens: int, now_s: int = NOW_S) -> None:
    """Let so much be leased and not used."""
    on.book.void(fetched(on, ask, tokens, now_s=now_s).hold_id)


def said(client: "redis.Redis[bytes]") -> list[list[object]]:
    """What was said on the channel of acme since the last time."""
    found = [orjson.loads(each) for each in client.lrange(channel("acme"), 0, -1)]
    client.delete(channel("acme"))
    return found
