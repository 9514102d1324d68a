"""Several replicas on one Redis that look like one book: what the tests of the book in memory ask of a shared one."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import redis

import ledger.leases
from domain.charges import Charge
from domain.ids import uuid7
from ledger import recovery
from ledger.book import Book, Crossing, Headroom, Route, Settlement
from ledger.budgets import Budget, Subject
from ledger.counters import Counter, Grant
from ledger.exchange_lines import Want
from ledger.holds import Demand, Hold, Shortfall, State
from ledger.leases import Leases
from ledger.records import Record
from ledger.shard_names import NAMES, SHARED, STATE, is_whole, known_tags, learn, text
from ledger.shards import Exchange, Shard, channel

SCRIPT = (Path(ledger.leases.__file__).parent / "lua" / "exchange.lua").read_text(encoding="utf-8")
TIME = "redis.call('TIME')"
RUN = "redis.call('INFO', 'server')"
PUBLISH = "redis.call('PUBLISH'"
US = 1_000_000
ROUNDS_MAX = 20
STEP_MS = 20
Ask = Callable[[Exchange], Sequence[bytes]]
Fate = Literal["answered", "lost", "unanswered", "twice"]


class Clock:
    """The time of the server, and which run of it this is where the test sets that; each exchange takes a moment."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.run = ""

    def follow(self, now_s: int) -> None:
        self.now_ms = max(self.now_ms, now_s * 1000)


def asks(client: "redis.Redis[bytes]", clock: Clock) -> Ask:
    """What carries an exchange to a Redis whose time is the clock's, and its answer back.

    What the script would publish is kept in a list, where the test finds it.
    """
    assert TIME in SCRIPT
    assert PUBLISH in SCRIPT
    assert RUN in SCRIPT
    source = SCRIPT.replace(TIME, "{ARGV[3], ARGV[4]}").replace(PUBLISH, "redis.call('RPUSH'")
    script = client.register_script(source.replace(RUN, f"ARGV[5] == '' and {RUN} or 'run_id:' .. ARGV[5]"))

    def ask(exchange: Exchange, born: str = "") -> Sequence[bytes]:
        clock.now_ms += STEP_MS
        seconds, ms = divmod(clock.now_ms, 1000)
        args = [exchange.payload, born, seconds, ms * 1000, clock.run]
        answer: Sequence[bytes] = script(keys=exchange.keys, args=args)
        return answer

    return ask


class Lost(Exception):
    """An exchange or its answer did not arrive."""


class Carrier:
    """Carries exchanges as a bad network does: `fates` are those of the next ones, `sent` is all that ever left."""

    def __init__(self, client: "redis.Redis[bytes]", clock: Clock) -> None:
        self.client = client
        self.clock = clock
        self.ask = asks(client, clock)
        self.fates: deque[Fate] = deque(maxlen=8)
        self.sent: list[Exchange] = []
        self.born: dict[str, str] = {}
        self.arrived: set[str] = set()
        self.lost = 0

    def __call__(self, exchange: Exchange) -> Sequence[bytes]:
        self.sent.append(exchange)
        fate = self.fates.popleft() if self.fates else "answered"
        self.lost += fate in ("lost", "unanswered")
        if fate == "lost":
            raise Lost
        answer = self.deliver(exchange)
        if fate == "unanswered":
            raise Lost
        if fate == "twice" and answer[0] == b"ok":
            assert self.deliver(exchange) == answer, "a repetition was answered otherwise"
        return answer

    def heard(self, tag: str) -> list[list[Any]]:
        """What was said on a channel of recalls since the last time: who says it, and what it needs back."""
        said = self.client.lrange(channel(tag), 0, -1)
        self.client.delete(channel(tag))
        return [json.loads(each) for each in said]

    def deliver(self, exchange: Exchange) -> Sequence[bytes]:
        """Let an exchange arrive, whenever it was sent."""
        self.arrived.add(exchange.serial)
        return self.ask(exchange, self.born.get(exchange.serial, ""))

    def name(self, leases: Leases, shard: Shard) -> str:
        """Let all learn of a shard, as keepers do; the server's run when it is new to all."""
        if shard.tag == SHARED:
            if shard.joining is not None:
                learn(leases, known_tags(leases))
                self.client.sadd(NAMES, *leases.shards)
            return ""
        if shard.is_named:
            return ""
        shard.is_named = True
        added, state = self.client.sadd(NAMES, shard.tag), self.client.hgetall(STATE)
        facts = {text(key): text(value) for key, value in state.items()}
        epoch, run = leases.shard(SHARED).epoch, self.clock.run
        return run if added and is_whole(facts, epoch, run, leases.replicas) else ""


class Replica:
    """One book with its leases."""

    def __init__(self, name: str, replicas: int, book: Book, clock: Clock, horizon_s: float) -> None:
        self.book = book
        self.leases = Leases(book, name, replicas, uuid7(), horizon_s=horizon_s)
        self.clock = clock

    @property
    def at_s(self) -> float:
        return self.clock.now_ms / 1000

    def exchange(self, ask: Ask, now_s: int, waiting: Sequence[tuple[Route, Demand]] = ()) -> list[Crossing]:
        """Tell the store all that there is to tell, and take what it answers; what is lost is sent again next time."""
        crossings: list[Crossing] = []
        self.leases.collect(self.at_s)
        for shard in sorted(self.leases.shards.values(), key=lambda each: each.tag != SHARED):
            for _ in range(ROUNDS_MAX):
                born = ask.name(self.leases, shard) if isinstance(ask, Carrier) else ""
                self.leases.build(shard, waiting, now_s, self.at_s)
                assert shard.in_flight is not None
                if born:
                    assert isinstance(ask, Carrier)
                    ask.born[shard.in_flight.serial] = born
                try:
                    crossings += self.leases.apply(shard, ask(shard.in_flight), now_s)
                except Lost:
                    break
                self.leases.collect(self.at_s)
                if shard.epoch and shard.joining is None and not shard.due:
                    break
            else:
                raise AssertionError(f"{ROUNDS_MAX} exchanges and no end")
        return crossings


@dataclass(frozen=True)
class SharedRoute:
    """A subject's route on every replica."""

    of: "SharedBook"
    subject: Subject

    def headroom(self, now_s: int) -> Headroom:
        """The bands, once all replicas have told what they know."""
        for replica in self.of.replicas:
            replica.book.counters(now_s)  # a route is of the counters that are not forgotten
        routes = [replica.book.route(self.subject, now_s) for replica in self.of.replicas]
        self.of.tell_all(now_s)
        found = {route.headroom(now_s) for route in routes}
        assert len(found) == 1, f"the replicas differ: {found}"
        return found.pop()


class SharedBook:
    """Replicas that hold in turn; what is asked of the book is asked of all, or of the one that has the hold."""

    def __init__(
        self, count: int, ask: Carrier, clock: Clock, budgets: Iterable[Budget], now_s: int, horizon_s: float
    ) -> None:
        self.ask = ask
        self.clock = clock
        self.configured = list(budgets)
        self.horizon_s = horizon_s
        self.replicas = [self._replica(at, count, Book(self.configured, now_s, is_shared=True)) for at in range(count)]
        self.home: dict[str, int] = {}
        self.crossings: list[Crossing] = []
        self._corrected: set[str] = set()
        self._turn = 0

    @property
    def holds(self) -> dict[str, Hold]:
        return {name: hold for replica in self.replicas for name, hold in replica.book.holds.items()}

    @property
    def _ended(self) -> dict[str, State]:
        return {name: state for replica in self.replicas for name, state in replica.book._ended.items()}

    def route(self, subject: Subject, now_s: int) -> SharedRoute:
        return SharedRoute(self, subject)

    def hold(
        self, route: SharedRoute, demand: Demand, hold_id: str, row: dict[str, Any], now_us: int, ttl_s: int
    ) -> Hold | Shortfall:
        """Hold on the next replica in turn as a gateway does: from its leases, from what it fetches, or not at all."""
        replica = self._next(hold_id, now_us // US)
        self._keep_up(replica.book.now_s)
        here = replica.book.route(route.subject, replica.book.now_s)
        whole, want = demand._replace(cap_min=demand.cap_max), Want(here, demand)
        for _ in range(ROUNDS_MAX):
            held = replica.book.hold(here, whole, hold_id, row, now_us, ttl_s)
            if isinstance(held, Hold):
                return held
            built = replica.leases.built
            replica.leases.want(want)
            self._exchange(replica, replica.book.now_s, [want])
            is_open = all(shard.is_open for shard in replica.leases.shards.values())
            if replica.leases.gone(want, built) and is_open:
                return replica.book.hold(here, demand, hold_id, row, now_us, ttl_s)
            self._listen()
        raise AssertionError("others go on having something to give back")

    def hold_cut_off(
        self, route: SharedRoute, demand: Demand, hold_id: str, row: dict[str, Any], now_us: int, ttl_s: int
    ) -> Hold | Shortfall:
        """Hold on the next replica in turn while it cannot ask the store."""
        book = self._next(hold_id, now_us // US).book
        here = book.route(route.subject, book.now_s)
        book.set_away(is_away=True)
        held = book.hold(here, demand, hold_id, row, now_us, ttl_s)
        book.set_away(is_away=False)
        return held

    def _next(self, hold_id: str, now_s: int) -> Replica:
        """The replica whose turn it is to hold, at a time that is not before that of any."""
        self._turn += 1
        self.home[hold_id] = self._turn % len(self.replicas)
        replica = self.replicas[self.home[hold_id]]
        replica.book.counters(max([now_s, *(each.book.now_s for each in self.replicas)]))
        return replica

    def _keep_up(self, now_s: int) -> None:
        """Let pass the time in which every replica tells what presses, as its keeper does each moment."""
        if self.clock.now_ms < now_s * 1000:
            self.clock.follow(now_s)
            self._meet()
            self._exchange_pressing()

    def _meet(self) -> None:
        """Let every replica learn of the shards that others have begun, as their keepers do."""
        tags = dict.fromkeys(tag for replica in self.replicas for tag in replica.leases.shards)
        for replica in self.replicas:
            for tag in tags:
                replica.leases.shard(tag)

    def _listen(self) -> None:
        """Let the others join, and give back what was recalled, as their keepers do when they hear of it."""
        self._meet()
        for tag in self.replicas[0].leases.shards:
            for sender, *said in self.ask.heard(tag):
                for leases in (replica.leases for replica in self.replicas if replica.leases.replica != sender):
                    if len(said) > 1:
                        leases.join(tag)
                    if said:
                        leases.recall(said[0])
        self._exchange_pressing()

    def _exchange_pressing(self) -> None:
        """Let all tell what presses, and again what was lost, as keepers do within moments."""
        lost = -1
        while lost != self.ask.lost:
            lost = self.ask.lost
            self._exchange_once()

    def _exchange_once(self) -> None:
        for replica in self.replicas:
            replica.leases.collect(replica.at_s)
            if any(replica.leases.is_pressing(shard, replica.at_s) for shard in replica.leases.shards.values()):
                self._exchange(replica, replica.book.now_s)

    def _exchange(self, replica: Replica, now_s: int, waiting: Sequence[tuple[Route, Demand]] = ()) -> None:
        self.crossings += replica.exchange(self.ask, now_s, waiting)

    def settle(self, hold_id: str, actual: Any, now_us: int) -> Settlement | None:
        if hold_id in self.holds:
            self.tell_all(now_us // US)
        return self._told(hold_id, self._at(hold_id).book.settle(hold_id, actual, now_us))

    def expire(self, hold_id: str, now_us: int) -> Settlement:
        if hold_id in self.holds:
            self.tell_all(now_us // US)
        settlement = self._told(hold_id, self._at(hold_id).book.expire(hold_id, now_us))
        assert settlement is not None
        return settlement

    def void(self, hold_id: str) -> Hold | None:
        return self._at(hold_id).book.void(hold_id)

    def renew(self, hold_id: str, now_us: int, ttl_s: int) -> Hold:
        return self._at(hold_id).book.renew(hold_id, now_us, ttl_s)

    def grant(self, grant: Grant, now_s: int) -> None:
        for replica in self.replicas:
            replica.book.grant(grant, now_s)

    def configure(self, budgets: Iterable[Budget], now_s: int) -> None:
        self.configured = list(budgets)
        for replica in self.replicas:
            replica.book.configure(self.configured, now_s)
        self.tell_all(now_s)
        # What corrections crossed of a budget that was not in force is told once it is; one book never says it.
        self.crossings = [each for each in self.crossings if each.budget not in self._corrected]

    def adjust(self, charges: Iterable[Charge], now_s: int) -> list[Crossing]:
        told = list(charges)
        self._corrected |= {charge.budget for charge in told}
        self.tell_all(now_s)
        assert self.replicas[0].book.adjust(told, now_s) == []
        self.tell_all(now_s)
        crossings, self.crossings = self.crossings, []
        return crossings

    def counters(self, now_s: int) -> list[Counter]:
        """One counter for each of the name, with the sums of all replicas, which must know each other's."""
        self.tell_all(now_s)
        merged: dict[tuple[str, str], Counter] = {}
        for replica in self.replicas:
            for counter in replica.book.counters(now_s):
                known = merged.get((counter.budget.id, counter.name))
                if known is None:
                    merged[counter.budget.id, counter.name] = replace(counter)
                else:
                    assert known.level == counter.level
                    known.spent, known.held = known.spent + counter.spent, known.held + counter.held
        return list(merged.values())

    def spent_charges(self) -> list[Charge]:
        return [charge for replica in self.replicas for charge in replica.book.spent_charges()]

    def die(self, at: int, now_s: int, records: Iterable[Record]) -> None:
        """Lose a replica's memory, with its leases; its book is rebuilt from what it journalled."""
        book = Book(self.configured, now_s, is_shared=True)
        recovery.rebuild(book, records, now_s)
        self.replicas[at] = self._replica(at, len(self.replicas), book)

    def _replica(self, at: int, count: int, book: Book) -> Replica:
        replica = Replica(f"r{at}", count, book, self.clock, self.horizon_s)
        replica.leases.shard(SHARED)
        return replica

    def tell_all(self, now_s: int) -> None:
        """Let every replica tell what it has spent and learn what the others have."""
        now_s = max([now_s, *(replica.book.now_s for replica in self.replicas)])
        self.clock.follow(now_s)
        lost = -1
        for _ in range(ROUNDS_MAX):
            told, lost = lost, self.ask.lost
            for replica in self.replicas:
                self._meet()
                for counter in replica.book.counters(now_s):
                    replica.leases.due(counter)
                self._exchange(replica, now_s)
            if told == lost == self.ask.lost:
                return
        raise AssertionError("more was lost than the test meant to lose")

    def _at(self, hold_id: str) -> Replica:
        return self.replicas[self.home[hold_id]]

    def _told(self, hold_id: str, settlement: Settlement | None) -> Settlement | None:
        if settlement is None:
            return None
        assert settlement.crossings == ()
        self.tell_all(0)
        crossings, self.crossings = self.crossings, []
        order = [(charge[0], charge[1]) for charge in settlement.charges]
        crossings.sort(key=lambda crossing: order.index((crossing.budget, crossing.counter)))
        return replace(settlement, crossings=tuple(crossings))
