"""How many requests share one round trip to the Redis of a shared book, at steady load."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Final

from bench.errors import MeasurementError
from bench.harness import Harness
from bench.room_rows import SUBJECT
from bench.row import Row
from domain.amounts import MILLION, Amounts
from domain.ids import uuid7
from ledger.book import Book
from ledger.budgets import Budget
from ledger.holds import Demand, Hold
from ledger.lease_keeper import Fetched, LeaseKeeper
from ledger.leases import Leases
from ledger.shared_store import ServerClock, connect
from ledger.windows import parse_window
from tests.fault_proxy import FaultProxy
from tests.local_server import HOST
from tests.redis_server import RedisServer

REPLICAS: Final = 3
REQUESTS_PER_S: Final = 300
WARM_UP_S: Final = 6.0
MEASURED_S: Final = 12.0
REQUESTS_MIN: Final = 50
SERVED_S: Final = 0.05
READY_S: Final = 20.0
TIMEOUT_MS: Final = 1_000
TRIES: Final = 8
PLENTY: Final = 10**13
_DEMAND: Final = Demand(
    Amounts(tokens=100, list_cost_nusd=2_000, requests=1, concurrency=1),
    Amounts(tokens=MILLION, list_cost_nusd=5 * 10**9),
    50,
    50,
)
_ACTUAL: Final = Amounts(tokens=120, list_cost_nusd=9_000, requests=1)


def round_trips(harness: Harness) -> list[Row]:
    """Requests over five budgets per time that a replica spoke to Redis, the sharing of grants included."""
    return round_trips_at(REQUESTS_PER_S, WARM_UP_S, MEASURED_S)


def round_trips_at(requests_per_s: int, warm_up_s: float, measured_s: float) -> list[Row]:
    """The same at such a load, for so long."""
    ratio = asyncio.run(_ratio(requests_per_s, warm_up_s, measured_s))
    return [Row.at_least("lease_requests_per_round_trip", "requests", ratio, REQUESTS_MIN)]


async def _ratio(requests_per_s: int, warm_up_s: float, measured_s: float) -> float:
    with RedisServer() as server:
        async with FaultProxy(HOST, server.port) as proxy, _keepers(proxy.url) as keepers:
            await _load(keepers, requests_per_s, warm_up_s)
            before = proxy.counts.round_trips
            done = await _load(keepers, requests_per_s, measured_s)
            trips = proxy.counts.round_trips - before
            if not trips or any(keeper.stats.failures for keeper in keepers):
                raise MeasurementError(f"{trips} round trips, {[keeper.stats.reason for keeper in keepers]}")
            return done / trips


@asynccontextmanager
async def _keepers(url: str) -> AsyncIterator[list[LeaseKeeper]]:
    """Replicas that run until the context ends, once all have reported."""
    made = []
    for index in range(REPLICAS):
        clock = ServerClock()
        book = Book(_budgets(), clock.now_us() // MILLION, is_shared=True)
        leases = Leases(book, f"r{index}", REPLICAS, uuid7())
        made.append(LeaseKeeper(book, leases, clock, *connect(url, TIMEOUT_MS, None)))
        book.route(SUBJECT, clock.now_us() // MILLION)
    running = [asyncio.create_task(keeper.run()) for keeper in made]
    try:
        async with asyncio.timeout(READY_S):
            while not all(_is_open(keeper) for keeper in made):  # noqa: ASYNC110 a keeper tells nobody
                await asyncio.sleep(0.01)
        yield made
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for keeper in made:
            await keeper.close()


def _is_open(keeper: LeaseKeeper) -> bool:
    shards = keeper.leases.shards.values()
    return bool(shards) and all(shard.is_open for shard in shards)


async def _load(keepers: list[LeaseKeeper], requests_per_s: int, lasts_s: float) -> int:
    """Send requests to the replicas in turn, evenly spread; returns how many there were once all have ended."""
    requests = []
    began_s = time.perf_counter()
    for index in count():
        due_s = began_s + index / requests_per_s
        if due_s >= began_s + lasts_s:
            break
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        requests.append(asyncio.create_task(_request(keepers[index % len(keepers)])))
    await asyncio.gather(*requests)
    return len(requests)


async def _request(keeper: LeaseKeeper) -> None:
    hold_id = uuid7()
    for _ in range(TRIES):
        now_us = keeper.clock.now_us()
        route = keeper.book.route(SUBJECT, now_us // MILLION)
        if isinstance(keeper.book.hold(route, _DEMAND, hold_id, {}, now_us, 60), Hold):
            break
        if await keeper.fetch(route, _DEMAND) is not Fetched.READY:
            raise MeasurementError("a request was refused although there is plenty")
    else:
        raise MeasurementError(f"a request did not get a lease within {TRIES} tries")
    await asyncio.sleep(SERVED_S)
    keeper.book.settle(hold_id, _ACTUAL, keeper.clock.now_us())


def _budgets() -> list[Budget]:
    """Five, of two hash slots: some name the organisation, some do not."""
    total, day, month, rolling = (parse_window(text) for text in ("total", "day", "month", "rolling:1h"))
    return [
        Budget("org-day", "finance", (("org", "*"),), "tokens", PLENTY, day),
        Budget("org-slots", "finance", (("org", "acme"),), "concurrency", PLENTY, total),
        Budget("team-cost", "finance", (("team", "*"),), "list_cost_nusd", PLENTY, month),
        Budget("app-requests", "finance", (("app", "*"),), "requests", PLENTY, rolling),
        Budget("key-tokens", "finance", (("key", "*"),), "tokens", PLENTY, month),
    ]
