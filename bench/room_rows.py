"""What the rooms of the flow cost by themselves: a policy decision, and a hold with its settlement."""

import os
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, Final

import uvloop

from bench.cpu import cpu_ns
from bench.harness import Harness
from bench.row import Row
from bench.teams import bundle, inputs
from domain.amounts import MILLION, Amounts
from ledger.book import Book
from ledger.budgets import Budget, Subject
from ledger.holds import Demand, Hold
from ledger.windows import parse_window
from policy.decider import Decider
from policy.embedded import EmbeddedEngine

ROUNDS: Final = 7
HITS: Final = 20_000
MISSES: Final = 3_000
HOLDS: Final = 5_000
PLENTY: Final = 10**15
NOW_US: Final = 1_800_000_000_000_000
SUBJECT: Final = Subject("acme", "team", "app", "", "key", "", "model", "sim")


def policy(harness: Harness) -> list[Row]:
    """A cached and an uncached decision of the shipped rules over a table of 100 teams."""
    hit_us, miss_us = uvloop.run(_decided())
    return [Row.at_most("policy_hit_us", "µs CPU", hit_us, 5), Row.at_most("policy_miss_us", "µs CPU", miss_us, 250)]


async def _decided() -> tuple[float, float]:
    """The CPU of a cached and of an evaluated decision; the latter in this process and in the engine's."""
    with tempfile.TemporaryDirectory() as folder:
        engine = await EmbeddedEngine.open(bundle(Path(folder) / "rego"))
    decider = Decider(engine)
    asked = inputs()
    known = next(asked)
    await decider.decide(known)
    hit_us = _median_us(lambda: decider.cached(known), HITS)
    rounds = []
    for _ in range(ROUNDS):
        began_ns = cpu_ns([os.getpid()])
        for _ in range(MISSES):
            await decider.decide(next(asked))
        rounds.append((cpu_ns([os.getpid()]) - began_ns) / MISSES / 1_000)
    await engine.close()
    return hit_us, median(rounds)


def hold_settle(harness: Harness) -> list[Row]:
    """A hold and its settlement over five budgets, in memory."""
    book = Book(_budgets(), NOW_US // MILLION)
    return [Row.at_most("hold_settle_memory_us", "µs CPU", _median_us(_holding(book), HOLDS), 15)]


def hold_settle_lease(harness: Harness) -> list[Row]:
    """A hold and its settlement over five budgets of a shared book, from leases that are large enough."""
    book = Book(_budgets(), NOW_US // MILLION, is_shared=True)
    for counter, _, _ in book.route(SUBJECT, NOW_US // MILLION).counters:
        counter.cell.lease = PLENTY
        counter.refit()
    return [Row.at_most("hold_settle_lease_us", "µs CPU", _median_us(_holding(book), HOLDS), 15)]


def _holding(book: Book) -> Callable[[], None]:
    """What holds and settles once."""
    demand = Demand(
        Amounts(tokens=100, list_cost_nusd=2_000, requests=1, concurrency=1),
        Amounts(tokens=MILLION, list_cost_nusd=5 * 10**9),
        64,
        64,
    )
    actual = Amounts(tokens=120, list_cost_nusd=4_000, requests=1)
    ids = map(str, count())
    row: dict[str, Any] = {}

    def once() -> None:
        hold_id = next(ids)
        route = book.route(SUBJECT, NOW_US // MILLION)
        assert isinstance(book.hold(route, demand, hold_id, row, NOW_US, 60), Hold)
        book.settle(hold_id, actual, NOW_US)

    return once


def _median_us(once: Callable[[], object], times: int) -> float:
    """The CPU of one call: the median over rounds."""
    rounds = []
    for _ in range(ROUNDS):
        began_ns = time.thread_time_ns()
        for _ in range(times):
            once()
        rounds.append((time.thread_time_ns() - began_ns) / times / 1_000)
    return median(rounds)


def _budgets() -> list[Budget]:
    shapes = (
        ("org-day", (("org", "acme"),), "list_cost_nusd", "day"),
        ("team-month", (("team", "*"),), "tokens", "month"),
        ("team-slots", (("team", "*"),), "concurrency", "total"),
        ("app-hour", (("app", "*"),), "list_cost_nusd", "rolling:1h"),
        ("key-minute", (("key", "*"),), "requests", "minute"),
    )
    return [
        Budget(name, "bench", scope, resource, PLENTY, parse_window(window)) for name, scope, resource, window in shapes
    ]
