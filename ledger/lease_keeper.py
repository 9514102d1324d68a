"""The lease keeper: carries one replica's exchanges to Redis, and fetches from there for requests that wait.

Requests hold from leases and never wait for it unless a lease does not do. While Redis cannot be asked the book is
`away`, and each budget goes by its `on_unavailable`.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from domain.amounts import Amounts
from domain.tasks import AGAIN_S, end
from ledger.book import Book, Crossing, Route
from ledger.counters import Counter
from ledger.exchange_lines import tag_of
from ledger.holds import Demand
from ledger.leases import Leases
from ledger.shard_names import NAMES, SHARED, learn_names, name_all, name_shard, text
from ledger.shards import BadReply, Shard, channel
from ledger.shared_grants import GRANTS, share_grants
from ledger.shared_store import CONNECTIONS_MAX, FAULTS, ServerClock, keeps_all, ticks_us
from ledger.shares import Share

SCRIPT = (Path(__file__).parent / "lua" / "exchange.lua").read_text(encoding="utf-8")
TICK_S = 0.25
BEAT_S = 4.0
PROBE_S = 30.0
SILENCE_S = 5.0
FETCH_S = 0.5
DRY_S = 0.05
WAITING_MAX = 4_096
FAILURES_MAX = 2
_NOTHING = Demand(Amounts(), Amounts(), 0, 0)
_NOWHERE = Route(())
PAUSE_S_MAX = 2.0
DRY_MAX = 10_000
REASON_MAX = 300
_PAUSE_S = 0.05
_EXCHANGES_MAX = 64
_RECALL_WAIT_S = 0.05
US = 1_000_000
# What may be wrong with one shard alone.
_SHARD_FAULTS = (ResponseError, BadReply)


class Fetched(Enum):
    """What asking the store came to: another try may hold, nobody has enough left, or that could not be found out."""

    READY = 0
    SHORT = 1
    UNSURE = 2


@dataclass(slots=True)
class KeeperStats:
    """What the keeper has done so far."""

    exchanges: int = 0
    failures: int = 0
    fetches: int = 0
    away_since_us: int = 0
    reason: str = ""


@dataclass(slots=True)
class LeaseKeeper:
    """The link of one replica's leases to Redis; `run` is its loop, `fetch` is for requests."""

    book: Book
    leases: Leases
    clock: ServerClock
    client: "Redis"
    listener: "Redis"
    on_crossings: Callable[[list[Crossing]], None] = field(default=lambda _: None)
    on_away: Callable[[str], None] = field(default=lambda _: None)
    on_failing: Callable[[str, str], None] = field(default=lambda tag, reason: None)
    stats: KeeperStats = field(default_factory=KeeperStats)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _returned: asyncio.Event = field(default_factory=asyncio.Event)
    _waiting: dict[asyncio.Future[None], tuple[Route, Demand]] = field(default_factory=dict)
    _dry: dict[str, float] = field(default_factory=dict)
    _failures_in_row: int = 0
    _beat_at_s: float = 0.0
    _probed_at_s: float = 0.0
    _is_probed: bool = False

    def __post_init__(self) -> None:
        self.leases.shard(SHARED)

    async def run(self) -> None:
        """Exchange until cancelled: when requests wait, when leases are recalled, and each TICK_S."""
        listening = asyncio.create_task(self._listen_forever())
        try:
            while True:
                await self._next_turn()
                try:
                    await self._round()
                except FAULTS as error:
                    self._failed(error)
                else:
                    self._succeeded()
        finally:
            # Sooner than whoever ends this would again.
            await end([listening], AGAIN_S / 4)

    async def fetch(self, route: Route, demand: Demand, timeout_s: float = FETCH_S) -> Fetched:
        """Ask for what a demand lacks here, recalling it from other replicas where need be."""
        lacking = self.leases.lacking(route, demand)
        if self.book.is_away or len(self._waiting) >= WAITING_MAX or self._are_failing(lacking):
            return Fetched.UNSURE
        if self._is_dry(lacking) or _is_too_much(route, demand):
            return Fetched.SHORT
        self.stats.fetches += 1
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        self.leases.want(route, demand)
        while lacking:
            await self._next_round(route, demand, deadline_s - loop.time())
            lacking = self.leases.lacking(route, demand)
            if not lacking:
                break
            if self.book.is_away or loop.time() >= deadline_s:
                return Fetched.UNSURE
            short = [share for share in lacking if share.is_short]
            if short and not any(share.pending for share in short) and self._are_open(short):
                self._note_dry(short)
                return Fetched.SHORT
            await self._change(min(_RECALL_WAIT_S, deadline_s - loop.time()))
            for share in lacking:
                self.leases.due(share.counter, is_urgent=True)
        return Fetched.READY

    async def look(self, counters: Collection[Counter], timeout_s: float = FETCH_S) -> bool:
        """Ask what all others have of some counters; whether that is known as of now."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        built = self.leases.built
        while counters and not self.book.is_away and len(self._waiting) < WAITING_MAX:
            shares = [self.leases.due(counter, is_urgent=True) for counter in counters]
            if self._are_failing(shares):
                break
            await self._next_round(_NOWHERE, _NOTHING, deadline_s - loop.time())
            if all(share.seen_by > built for share in shares):
                return True
            if loop.time() >= deadline_s or not self._are_open(shares):
                break
        return not counters

    async def close(self) -> None:
        """Tell what there is to tell a last time, as far as that goes at once, and close the connections."""
        if not self.book.is_away:
            try:
                await asyncio.wait_for(self._give_back(), PAUSE_S_MAX)
            except FAULTS as error:
                self.on_away(f"the last exchange failed: {_line(error)}")
        for connection in (self.client, self.listener):
            with suppress(*FAULTS):
                await connection.aclose()

    async def _give_back(self) -> None:
        """Report what was spent, and keep no more lease than open holds need."""
        for counter in self.book.counters(self.clock.now_us() // US):
            self.leases.recall([self.leases.due(counter).name])
        await self._exchange_all(self.leases.shards.values(), ())

    async def _next_round(self, route: Route, demand: Demand, timeout_s: float) -> None:
        """Wait until a round has asked for a demand too; who leaves meanwhile asks for nothing any more."""
        done = asyncio.get_running_loop().create_future()
        self._waiting[done] = route, demand
        self._wake.set()
        try:
            await asyncio.wait((done,), timeout=max(0.0, timeout_s))
        finally:
            self._waiting.pop(done, None)

    async def _next_turn(self) -> None:
        if self._failures_in_row:
            await asyncio.sleep(_pause_s(self._failures_in_row))
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), TICK_S)

    async def _round(self) -> None:
        """One exchange of every shard that has something to say, for all who wait now."""
        self._wake.clear()
        waiting, self._waiting = self._waiting, {}
        try:
            now_s = time.monotonic()
            if not self._is_probed or now_s - self._probed_at_s >= PROBE_S:
                await self._probe()
                self._probed_at_s = now_s
            if now_s - self._beat_at_s >= BEAT_S:
                self._beat_at_s = now_s
                await self._meet()
            self.leases.collect(now_s)
            due = [shard for shard in self.leases.shards.values() if self.leases.is_pressing(shard, now_s)]
            names = self.leases.shard(SHARED)
            if names in due:
                # Before any shard is begun: only then can one be known to be new to all replicas.
                due.remove(names)
                await self._exchange(names, ())
            await self._exchange_all(due, list(waiting.values()))
        finally:
            for done in waiting:
                if not done.done():
                    done.set_result(None)

    async def _exchange_all(self, due: Iterable[Shard], demands: Sequence[tuple[Route, Demand]]) -> None:
        """Exchange these shards, a few at a time; returns or raises only once none of them is under way any more.

        Else the answer to one that was still under way could be taken for that to the next. What is wrong with some of
        them alone takes only these away.
        """
        left = list(due)
        failures: list[Exception] = []

        async def work() -> None:
            while left and not failures:
                shard = left.pop()
                try:
                    await self._exchange(shard, demands)
                except _SHARD_FAULTS as error:
                    self._rest(shard, error)
                except FAULTS as failed:
                    failures.append(failed)

        await asyncio.gather(*(work() for _ in range(min(len(left), CONNECTIONS_MAX))))
        if failures:
            raise failures[0]

    def _rest(self, shard: Shard, error: Exception) -> None:
        """Leave a shard alone for a while; requests that need more of it than lies here are told so at once."""
        shard.failures += 1
        shard.is_open = False
        shard.resumes_at_s = time.monotonic() + _pause_s(shard.failures)
        self.stats.failures += 1
        # Where the fault is not of this shard alone, that of the names has it too, and then the book is away.
        self.leases.join(SHARED)
        if shard.failures == FAILURES_MAX:
            self.on_failing(shard.tag, _line(error))

    async def _exchange(self, shard: Shard, demands: Sequence[tuple[Route, Demand]]) -> None:
        for _ in range(_EXCHANGES_MAX):
            born = await self._named(shard)
            sent_us = ticks_us()
            exchange = self.leases.build(shard, demands, self.clock.now_us() // US, time.monotonic())
            self.stats.exchanges += 1
            reply = await self._call(exchange.keys, [exchange.payload, born])
            crossings = self.leases.apply(shard, reply, self.clock.now_us() // US)
            self.clock.learn(int(reply[1]), sent_us)
            shard.failures = 0
            if crossings:
                self.on_crossings(crossings)
            if shard.epoch and shard.joining is None and not shard.due:
                return

    async def _named(self, shard: Shard) -> str:
        """Let all learn of a shard before it is told anything; the run of the server when it is new to all of them."""
        if shard.tag != SHARED:
            return await name_shard(self.client, self.leases, shard.tag)
        if shard.joining is not None:
            await name_all(self.client, self.leases)
        return ""

    async def _call(self, keys: list[str], args: list[bytes | str]) -> list[bytes]:
        script = self.client.register_script(SCRIPT)
        reply = await script(keys=keys, args=args)
        if not isinstance(reply, list):
            raise BadReply(f"the store answered {reply!r:.100}")
        return reply

    async def _meet(self) -> None:
        """Learn what other replicas have begun and granted, and tell them of grants."""
        async with self.client.pipeline(transaction=False) as pipeline:
            pipeline.hgetall(GRANTS)
            pipeline.scard(NAMES)
            grants, count = await pipeline.execute()
        await share_grants(self.client, self.book, self.clock.now_us() // US, grants)
        await learn_names(self.client, self.leases, count)

    async def _probe(self) -> None:
        """Learn whether this Redis keeps what it has acknowledged."""
        self.leases.is_durable = await keeps_all(self.client)
        self._is_probed = True

    async def _listen_forever(self) -> None:
        """Hear what other replicas need back or have given back; without it, exchanges tell the same a little later."""
        while True:
            with suppress(*FAULTS):
                await self._listen()
            await asyncio.sleep(_PAUSE_S * 4)

    async def _listen(self) -> None:
        """Hear until the connection breaks, or does not answer when it is asked after a silence."""
        async with self.listener.pubsub(ignore_subscribe_messages=True) as pubsub:
            await pubsub.psubscribe(channel("*"))
            is_asked = False
            while True:
                message = await pubsub.get_message(timeout=SILENCE_S)
                if message is not None:
                    is_asked = False
                    if message["type"] == "pmessage":
                        self._hear(text(message["channel"]), message["data"])
                elif is_asked:
                    return
                else:
                    await pubsub.ping()
                    is_asked = True

    def _hear(self, where: str, data: bytes) -> None:
        said = json.loads(data)
        if not isinstance(said, list) or not said or said[0] == self.leases.replica:
            return
        tag = where.partition("{")[2].rpartition("}")[0]
        if tag not in self.leases.shards:
            self.leases.shard(tag)
            self._wake.set()
        if len(said) > 2:
            self.leases.join(tag)
            self._wake.set()
        wanted = said[1] if len(said) > 1 and isinstance(said[1], list) else []
        if wanted:
            if self.leases.recall(text(name) for name in wanted):
                self._wake.set()
        else:
            returned, self._returned = self._returned, asyncio.Event()
            returned.set()

    async def _change(self, timeout_s: float) -> None:
        """Wait until another replica has given something back, or for a moment."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._returned.wait(), max(0.0, timeout_s))

    def _is_dry(self, lacking: list[Share]) -> bool:
        """Whether all replicas were found a moment ago to have nothing left of what is lacking."""
        now_s = asyncio.get_running_loop().time()
        return any(self._dry.get(share.name, 0.0) > now_s for share in lacking)

    def _note_dry(self, short: list[Share]) -> None:
        now_s = asyncio.get_running_loop().time()
        if len(self._dry) >= DRY_MAX:
            self._dry = {name: until_s for name, until_s in self._dry.items() if until_s > now_s}
        if len(self._dry) < DRY_MAX:
            self._dry |= {share.name: now_s + DRY_S for share in short}

    def _are_failing(self, shares: list[Share]) -> bool:
        """Whether what is lacking is of a shard that cannot be exchanged for a reason of its own."""
        return any(self.leases.shard(tag_of(share.counter.name)).failures >= FAILURES_MAX for share in shares)

    def _are_open(self, shares: list[Share]) -> bool:
        """Whether all replicas have reported on these, so that what the store says of them is the whole."""
        return all(self.leases.shard(tag_of(share.counter.name)).is_open for share in shares)

    def _failed(self, error: Exception) -> None:
        self.stats.failures += 1
        self._failures_in_row += 1
        self._is_probed = False
        self.stats.reason = _line(error)
        if self._failures_in_row >= FAILURES_MAX and not self.book.is_away:
            self.book.set_away(is_away=True)
            self.stats.away_since_us = self.clock.now_us()
            self.on_away(self.stats.reason)

    def _succeeded(self) -> None:
        self._failures_in_row, self.stats.reason = 0, ""
        if self.book.is_away:
            self.book.set_away(is_away=False)
            self.stats.away_since_us = 0
            self.on_away("")


def _pause_s(failures: int) -> float:
    """How long to wait after so many failures in a row."""
    pause_s: float = min(PAUSE_S_MAX, _PAUSE_S * 2 ** min(failures - 1, 10))
    return pause_s * random.uniform(0.5, 1.0)  # noqa: S311 it spreads replicas, it hides nothing


def _is_too_much(route: Route, demand: Demand) -> bool:
    """Whether a demand is more than a whole limit, so that there is nothing to recall for it."""
    least = demand.at(demand.cap_min)
    return any(hard and least[index] > counter.limit for counter, index, hard in route.counters)


def _line(error: Exception) -> str:
    """What went wrong as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:REASON_MAX]
