"""The lease keeper: carries one replica's exchanges to Redis, and fetches from there for requests that wait.

Requests hold from leases and never wait for it unless a lease does not do. While Redis cannot be asked the book is
`away`, and each budget goes by its `on_unavailable`.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from ledger.book import Book, Crossing, Route
from ledger.counters import Grant
from ledger.holds import Demand
from ledger.leases import BadReply, Leases, Shard, Share, channel
from ledger.recovery import grant_record

SCRIPT = (Path(__file__).parent / "lua" / "exchange.lua").read_text(encoding="utf-8")
TICK_S = 0.25
BEAT_S = 2.0
FETCH_S = 0.5
DRY_S = 0.05
WAITING_MAX = 4_096
FAILURES_MAX = 2
PAUSE_S_MAX = 2.0
GRANTS_MAX = 10_000
_PAUSE_S = 0.05
_EXCHANGES_MAX = 64
_RECALL_WAIT_S = 0.05
TRUSTED_US = 50_000
CONNECTIONS_MAX = 16
_SHARED = "bursar:{shared}"
US = 1_000_000


class _Waiter(NamedTuple):
    """A request that waits for the next round."""

    route: Route
    demand: Demand
    done: asyncio.Future[None]


@dataclass(slots=True)
class ServerClock:
    """Unix time in microseconds by Redis' clock, so that all replicas charge the same windows."""

    offset_us: int = 0

    def now_us(self) -> int:
        """The server's time now, as far as it is known."""
        return time.time_ns() // 1000 + self.offset_us

    def learn(self, server_ms: int, sent_us: int, took_us: int) -> None:
        """Take the server's time out of an answer that was not long under way."""
        if took_us < TRUSTED_US:
            self.offset_us = server_ms * 1000 - (sent_us + took_us // 2)


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
    stats: KeeperStats = field(default_factory=KeeperStats)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _returned: asyncio.Event = field(default_factory=asyncio.Event)
    _waiting: list[_Waiter] = field(default_factory=list)
    _dry: dict[str, float] = field(default_factory=dict)
    _failures_in_row: int = 0
    _beat_at_s: float = 0.0
    _is_probed: bool = False

    async def run(self) -> None:
        """Exchange until cancelled: when requests wait, when leases are recalled, and each TICK_S."""
        listening = asyncio.create_task(self._listen_forever())
        try:
            while True:
                await self._next_turn()
                try:
                    await self._round()
                except (RedisError, OSError, BadReply, TimeoutError, ValueError) as error:
                    self._failed(error)
                else:
                    self._succeeded()
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def fetch(self, route: Route, demand: Demand) -> bool:
        """Ask for what a demand lacks here, recalling it from other replicas where need be.

        True when a hold should be tried again; False when it would not help, or Redis cannot be asked.
        """
        lacking = self.leases.lacking(route, demand)
        if self.book.is_away or len(self._waiting) >= WAITING_MAX or self._is_dry(lacking):
            return False
        self.stats.fetches += 1
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + FETCH_S
        self.leases.want(route, demand)
        while lacking:
            waiter = _Waiter(route, demand, loop.create_future())
            self._waiting.append(waiter)
            self._wake.set()
            await asyncio.wait((waiter.done,), timeout=max(0.0, deadline_s - loop.time()))
            lacking = self.leases.lacking(route, demand)
            short = [share for share in lacking if share.is_short]
            if loop.time() >= deadline_s or self.book.is_away:
                return not lacking
            if short and not any(share.pending for share in short) and self._is_open():
                for share in short:
                    self._dry[share.name] = loop.time() + DRY_S
                return False
            if lacking:
                await self._change(min(_RECALL_WAIT_S, deadline_s - loop.time()))
                for share in lacking:
                    self.leases.due(share.counter, is_urgent=True)
        return True

    async def close(self) -> None:
        """Tell what there is to tell a last time, as far as that goes at once, and close the connections."""
        try:
            await asyncio.wait_for(self._give_back(), PAUSE_S_MAX)
        except (RedisError, OSError, BadReply, TimeoutError, ValueError) as error:
            self.on_away(f"the last exchange failed: {error}")
        await self.client.aclose()
        await self.listener.aclose()

    async def _give_back(self) -> None:
        """Report what was spent, and keep no more lease than open holds need."""
        for shard in self.leases.shards.values():
            for counter in self.book.counters(self.clock.now_us() // US):
                self.leases.recall([self.leases.due(counter).name])
            await self._exchange(shard, ())

    async def _next_turn(self) -> None:
        if self._failures_in_row:
            pause_s = min(PAUSE_S_MAX, _PAUSE_S * 2 ** min(self._failures_in_row - 1, 10))
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311 it spreads replicas, it hides nothing
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), TICK_S)

    async def _round(self) -> None:
        """One exchange of every shard that has something to say, for all who wait now."""
        self._wake.clear()
        waiting, self._waiting = self._waiting, []
        try:
            await self._probe()
            now_s = time.monotonic()
            if now_s - self._beat_at_s >= BEAT_S:
                self._beat_at_s = now_s
                await self._beat()
            self.leases.collect(now_s)
            demands = [(waiter.route, waiter.demand) for waiter in waiting]
            due = [shard for shard in self.leases.shards.values() if self.leases.is_pressing(shard, now_s)]
            await asyncio.gather(*(self._exchange(shard, demands) for shard in due))
        finally:
            for waiter in waiting:
                if not waiter.done.done():
                    waiter.done.set_result(None)

    async def _exchange(self, shard: Shard, demands: Sequence[tuple[Route, Demand]]) -> None:
        for _ in range(_EXCHANGES_MAX):
            sent_us = time.time_ns() // 1000
            exchange = self.leases.build(shard, demands, self.clock.now_us() // US, time.monotonic())
            self.stats.exchanges += 1
            reply = await self._call(exchange.keys, exchange.payload)
            crossings = self.leases.apply(shard, reply, self.clock.now_us() // US)
            self.clock.learn(int(reply[1]), sent_us, time.time_ns() // 1000 - sent_us)
            if crossings:
                self.on_crossings(crossings)
            if shard.epoch and shard.joining is None and not shard.due:
                return

    async def _call(self, keys: list[str], payload: bytes) -> list[bytes]:
        script = self.client.register_script(SCRIPT)
        reply = await script(keys=keys, args=[payload])
        if not isinstance(reply, list):
            raise BadReply(f"the store answered {reply!r:.100}")
        return reply

    async def _probe(self) -> None:
        """Learn whether this Redis keeps what it has acknowledged; one that does not say is taken not to."""
        if self._is_probed:
            return
        await self.client.ping()
        try:
            said = await self.client.config_get("append*")
        except RedisError:
            said = {}
        facts = {_text(key): _text(value) for key, value in said.items()}
        self.leases.is_durable = facts.get("appendonly") == "yes" and facts.get("appendfsync") == "always"
        self._is_probed = True

    async def _beat(self) -> None:
        """Share grants, and learn of shards that other replicas have begun."""
        async with self.client.pipeline(transaction=False) as pipeline:
            pipeline.hgetall(f"{_SHARED}:grants")
            pipeline.smembers(f"{_SHARED}:shards")
            grants, tags = await pipeline.execute()
        for tag in tags:
            self.leases.shard(_text(tag))
        known = {_text(grant_id): value for grant_id, value in grants.items()}
        now_s = self.clock.now_us() // US
        for value in list(known.values())[:GRANTS_MAX]:
            self.book.grant(Grant(**json.loads(value)), now_s)
        mine = {each.grant_id: each for each in self.book.grants.values() if each.expires_at_s > now_s}
        new_grants = {key: orjson.dumps(grant_record(each)) for key, each in mine.items() if key not in known}
        new_tags = self.leases.shards.keys() - {_text(tag) for tag in tags}
        gone = [key for key, value in known.items() if json.loads(value)["expires_at_s"] <= now_s]
        if new_grants or new_tags or gone:
            async with self.client.pipeline(transaction=False) as pipeline:
                for key, value in new_grants.items():
                    pipeline.hset(f"{_SHARED}:grants", key, value)
                if new_tags:
                    pipeline.sadd(f"{_SHARED}:shards", *new_tags)
                if gone:
                    pipeline.hdel(f"{_SHARED}:grants", *gone)
                await pipeline.execute()

    async def _listen_forever(self) -> None:
        """Hear what other replicas need back or have given back; without it, exchanges tell the same a little later."""
        while True:
            try:
                async with self.listener.pubsub(ignore_subscribe_messages=True) as pubsub:
                    await pubsub.psubscribe(channel("*"))
                    while True:
                        message = await pubsub.get_message(timeout=BEAT_S)
                        if message is not None:
                            self._hear(_text(message["channel"]), message["data"])
            except (RedisError, OSError, ValueError):
                await asyncio.sleep(_PAUSE_S * 4)

    def _hear(self, where: str, data: bytes) -> None:
        sender, *wanted = json.loads(data)
        if sender == self.leases.replica:
            return
        tag = where.split("{", 1)[1].rsplit("}", 1)[0]
        if tag not in self.leases.shards:
            self.leases.shard(tag)
            self._wake.set()
        if wanted and wanted[0]:
            if self.leases.recall(wanted[0]):
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

    def _is_open(self) -> bool:
        return all(shard.is_open for shard in self.leases.shards.values())

    def _failed(self, error: Exception) -> None:
        self.stats.failures += 1
        self._failures_in_row += 1
        self._is_probed = False
        self.stats.reason = f"{type(error).__name__}: {error}"
        if self._failures_in_row >= FAILURES_MAX and not self.book.is_away:
            self.book.set_away(is_away=True)
            self.stats.away_since_us = self.clock.now_us()
            self.on_away(self.stats.reason)

    def _succeeded(self) -> None:
        self._failures_in_row = 0
        if self.book.is_away:
            self.book.set_away(is_away=False)
            self.stats.away_since_us, self.stats.reason = 0, ""
            self.on_away("")


def connect(url: str, timeout_ms: int, password: str | None) -> tuple["Redis", "Redis"]:
    """A client that asks and one that listens; they try nothing twice, as repeating is the keeper's to decide."""
    timeout_s = timeout_ms / 1000

    def client(answer_s: float | None) -> "Redis":
        return Redis.from_url(
            url,
            password=password,
            socket_connect_timeout=timeout_s,
            socket_timeout=answer_s,
            retry=Retry(NoBackoff(), 0),
            max_connections=CONNECTIONS_MAX,
        )

    return client(timeout_s), client(None)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
