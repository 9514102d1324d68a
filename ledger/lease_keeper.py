"""The lease keeper: carries one replica's exchanges to Redis, and fetches from there for requests that wait.

Requests hold from leases and never wait for it unless a lease does not do. While Redis cannot be asked the book is
`away`, and each budget goes by its `on_unavailable`.
"""

import asyncio
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
from ledger.exchange_lines import Want, tag_of
from ledger.holds import Demand
from ledger.leases import Leases
from ledger.recalls import hear_recalls
from ledger.shard_names import NAMES, SHARED, learn_names, name_all, name_shard
from ledger.shards import BadReply, Shard
from ledger.shared_grants import GRANTS, share_grants
from ledger.shared_store import CONNECTIONS_MAX, FAULTS, ServerClock, keeps_all, ticks_us
from ledger.shares import Dry, Share

SCRIPT = (Path(__file__).parent / "lua" / "exchange.lua").read_text(encoding="utf-8")
TICK_S = 0.25
BEAT_S = 4.0
PROBE_S = 30.0
FETCH_S = 2.0
WAITING_MAX = 4_096
FAILURES_MAX = 2
_NOTHING = Demand(Amounts(), Amounts(), 0, 0)
_NOWHERE = Route(())
PAUSE_S_MAX = 2.0
REASON_MAX = 300
_PAUSE_S = 0.05
_EXCHANGES_MAX = 64
_RECALL_WAIT_S = 0.05
_RECALL_WAIT_S_MAX = 0.2
# A request that waited longer may have been told what was so a while ago: others had better ask themselves.
_TELLING_S = 0.5
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
    _change_came: asyncio.Event = field(default_factory=asyncio.Event)
    _waiting: dict[asyncio.Future[bool], Want] = field(default_factory=dict)
    _dry: Dry = field(default_factory=Dry)
    _failures_in_row: int = 0
    _beat_at_s: float = 0.0
    _probed_at_s: float = 0.0
    _is_probed: bool = False

    def __post_init__(self) -> None:
        self.leases.shard(SHARED)

    async def run(self) -> None:
        """Exchange until cancelled: when requests wait, when leases are recalled, and each TICK_S."""
        listening = asyncio.create_task(hear_recalls(self.leases, self.listener, self._wake.set, self._changed))
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
        loop = asyncio.get_running_loop()
        if self._dry.has_any(lacking, loop.time()) or _is_too_much(route, demand):
            return Fetched.SHORT
        self.stats.fetches += 1
        want = Want(route, demand, loop.time())
        deadline_s, pause_s = want.asked_at_s + timeout_s, _RECALL_WAIT_S
        while True:
            is_gone = await self._next_round(want, deadline_s - loop.time())
            if not self.leases.lacking(route, demand):
                return Fetched.READY
            if is_gone and not self.book.is_away:
                return Fetched.SHORT
            if self.book.is_away or loop.time() >= deadline_s:
                return Fetched.UNSURE
            await self._change(min(pause_s, deadline_s - loop.time()))
            # Who has given nothing back by now may not for a while, and all who wait ask each time.
            pause_s = min(2 * pause_s, _RECALL_WAIT_S_MAX)

    async def look(self, counters: Collection[Counter], timeout_s: float = FETCH_S) -> bool:
        """Ask what all others have of some counters; whether that is known as of now."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        built = self.leases.built
        while counters and not self.book.is_away and len(self._waiting) < WAITING_MAX:
            shares = [self.leases.due(counter, is_urgent=True) for counter in counters]
            if self._are_failing(shares):
                break
            await self._next_round(Want(_NOWHERE, _NOTHING), deadline_s - loop.time())
            if all(share.seen_by > built for share in shares):
                return True
            if loop.time() >= deadline_s or not self._are_open(shares):
                break
            await self._change(_RECALL_WAIT_S)
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
        # A window may have turned, or a limit fallen, while it was told.
        await self._exchange_all([shard for shard in self.leases.shards.values() if shard.due], ())

    async def _next_round(self, want: Want, timeout_s: float) -> bool:
        """Wait until a round has asked for a request too; whether it found out that nobody has enough left.

        Who leaves meanwhile asks for nothing any more.
        """
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[done] = want
        self._wake.set()
        try:
            await asyncio.wait((done,), timeout=max(0.0, timeout_s))
        finally:
            self._waiting.pop(done, None)
        return done.done() and done.result()

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
        built, wants = self.leases.built, list(waiting.values())
        for want in wants:
            self.leases.want(want)
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
            await self._exchange_all(due, wants)
        finally:
            self._answer(waiting, built)

    def _answer(self, waiting: dict[asyncio.Future[bool], Want], built: int) -> None:
        """Tell those who waited for a round that began after that exchange whether nobody has what they lack."""
        now_s = asyncio.get_running_loop().time()
        gone: dict[str, Share] = {}
        for done, want in waiting.items():
            short = self.leases.gone(want, built)
            is_gone = bool(short) and self._are_open(short)
            if is_gone and now_s - want.asked_at_s <= _TELLING_S:
                gone |= {share.name: share for share in short}
            if not done.done():
                done.set_result(is_gone)
        self._dry.note(gone.values(), now_s)

    async def _exchange_all(self, due: Iterable[Shard], wants: Sequence[Want]) -> None:
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
                    await self._exchange(shard, wants)
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

    async def _exchange(self, shard: Shard, wants: Sequence[Want]) -> None:
        """Tell all that is due of a shard now; what becomes due meanwhile is for the next round."""
        left, built = set(shard.due), self.leases.built
        for _ in range(_EXCHANGES_MAX):
            born = await self._named(shard)
            sent_us = ticks_us()
            exchange = self.leases.build(shard, wants, self.clock.now_us() // US, time.monotonic())
            self.stats.exchanges += 1
            reply = await self._call(exchange.keys, [exchange.payload, born])
            crossings = self.leases.apply(shard, reply, self.clock.now_us() // US)
            self.clock.learn(int(reply[1]), sent_us)
            shard.failures = 0
            if crossings:
                self.on_crossings(crossings)
            if shard.serial == exchange.serial and exchange.number > built and not exchange.is_join:
                left.difference_update(exchange.names)
            if shard.epoch and shard.joining is None and not left:
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

    def _changed(self) -> None:
        """Let those who wait for others look again."""
        changed, self._change_came = self._change_came, asyncio.Event()
        changed.set()

    async def _change(self, timeout_s: float) -> None:
        """Wait until another replica has given something back, or for a moment."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._change_came.wait(), max(0.0, timeout_s))

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
