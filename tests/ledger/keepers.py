"""Several lease keepers in one process on one Redis, each through a fault proxy of its own."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from domain.amounts import Amounts
from domain.ids import uuid7
from domain.tasks import end
from ledger.book import Book
from ledger.budgets import Budget, Subject
from ledger.holds import Demand, Hold, Shortfall
from ledger.lease_keeper import FETCH_S, US, Fetched, LeaseKeeper
from ledger.leases import Leases
from ledger.shared_store import ServerClock, connect
from ledger.windows import parse_window
from tests.fault_proxy import FaultProxy
from tests.local_server import HOST
from tests.redis_server import RedisServer

TIMEOUT_MS = 150
TRIES = 8
WAIT_S = 30.0
POLL_S = 0.01
TTL_S = 600
_ALL = "bursar:{-}:counter:all|tokens|total|*"
SUBJECT = Subject("acme", "search", "web", "", "k", "", "small", "sim")


def budget(name: str, limit: int, **more: object) -> Budget:
    """A hard limit on tokens over everything and all time, unless told otherwise."""
    values = {"scope": (), "resource": "tokens", "window": parse_window("total")} | more
    return Budget(name, "finance", limit=limit, **values)  # type: ignore[arg-type]  # mixed on purpose


def demand(tokens: int) -> Demand:
    """One request that needs so many tokens."""
    return Demand(Amounts(tokens=tokens, requests=1, concurrency=1), Amounts(), 0, 0)


@dataclass
class Node:
    """One replica: its keeper, its proxy, and all that it ever heard from the keeper."""

    keeper: LeaseKeeper
    proxy: FaultProxy
    running: asyncio.Task[None]
    said: list[str] = field(default_factory=list)

    @property
    def book(self) -> Book:
        return self.keeper.book

    def hold_here(self, tokens: int, subject: Subject = SUBJECT, asked: Demand | None = None) -> Hold | Shortfall:
        """Hold from what lies here."""
        now_us = self.keeper.clock.now_us()
        route = self.book.route(subject, now_us // US)
        return self.book.hold(route, asked or demand(tokens), uuid7(), {}, now_us, TTL_S)

    async def hold(
        self, tokens: int, subject: Subject = SUBJECT, asked: Demand | None = None, timeout_s: float = FETCH_S
    ) -> Hold | Shortfall:
        """Hold as the gateway does: from leases, with what can be fetched, or not at all."""
        asked = asked or demand(tokens)
        for _ in range(TRIES):
            held = self.hold_here(tokens, subject, asked._replace(cap_min=asked.cap_max))
            if isinstance(held, Hold):
                break
            if await self.fetch(tokens, subject, asked, timeout_s) is not Fetched.READY:
                break
        return held if isinstance(held, Hold) else self.hold_here(tokens, subject, asked)

    async def fetch(
        self, tokens: int, subject: Subject = SUBJECT, asked: Demand | None = None, timeout_s: float = FETCH_S
    ) -> Fetched:
        """Ask for what so many tokens lack here."""
        route = self.book.route(subject, self.keeper.clock.now_us() // US)
        return await self.keeper.fetch(route, asked or demand(tokens), timeout_s)

    def spend(self, hold: Hold, tokens: int) -> None:
        """End a hold with what was used."""
        self.book.settle(hold.hold_id, Amounts(tokens=tokens, requests=1), self.keeper.clock.now_us())

    def used(self, name: str) -> int:
        """What is spent and held here on the counters of a budget."""
        return sum(each.spent + each.held for each in self.book.every_counter() if each.budget.id == name)

    @property
    def is_open(self) -> bool:
        """Whether Redis answers, all replicas have reported, and nothing is under way any more."""
        shards = self.keeper.leases.shards.values()
        is_idle = all(each.is_open and each.in_flight is None and not each.due for each in shards)
        return bool(shards) and is_idle and not self.book.is_away


async def until(is_so: Callable[[], bool], what: str) -> None:
    """Wait until something is so; AssertionError naming it when that takes too long."""
    deadline_s = asyncio.get_running_loop().time() + WAIT_S
    while not is_so():
        assert asyncio.get_running_loop().time() < deadline_s, f"not within {WAIT_S:g} s: {what}"
        await asyncio.sleep(POLL_S)


def sums(server: RedisServer) -> tuple[int, int]:
    """What Redis says is spent of the budget `all`, and debited."""
    lines = server.ask(f"HGETALL {_ALL}").split(b"\r\n")
    values = dict(zip(lines[2::4], lines[4::4], strict=False))
    spent = sum(int(value) for name, value in values.items() if name.startswith(b"s|"))
    return spent, sum(int(value) for name, value in values.items() if name.startswith(b"g|"))


@asynccontextmanager
async def node(
    server: RedisServer,
    name: str,
    replicas: int,
    budgets: Sequence[Budget],
    *,
    password: str | None = None,
    timeout_ms: int = TIMEOUT_MS,
) -> AsyncIterator[Node]:
    """One replica, until it is closed."""
    async with FaultProxy(HOST, server.port) as proxy:
        clock = ServerClock()
        book = Book(budgets, clock.now_us() // US, is_shared=True)
        client, listener = connect(proxy.url, timeout_ms, password)
        keeper = LeaseKeeper(book, Leases(book, name, replicas, uuid7()), clock, client, listener)
        running = asyncio.create_task(keeper.run())
        it = Node(keeper, proxy, running)
        keeper.on_away = it.said.append
        try:
            yield it
        finally:
            await stop(it)


async def stop(it: Node) -> None:
    """End a replica as its gateway does; a fault of ours in its loop is raised here."""
    await end([it.running])
    if not it.running.cancelled():
        it.running.result()
    await it.keeper.close()


@asynccontextmanager
async def nodes(
    server: RedisServer, count: int, budgets: Sequence[Budget], *, timeout_ms: int = TIMEOUT_MS
) -> AsyncIterator[list[Node]]:
    """So many replicas, once each has a counter of the subject and all have reported."""
    async with AsyncExitStack() as stack:
        made = [
            await stack.enter_async_context(node(server, f"r{i}", count, budgets, timeout_ms=timeout_ms))
            for i in range(count)
        ]
        for each in made:
            each.book.route(SUBJECT, each.keeper.clock.now_us() // US)
        await until(lambda: all(each.is_open for each in made), "all replicas have reported")
        yield made
