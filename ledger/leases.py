"""Leases: what this replica may spend of a shared book, and what it tells the store that leases it. No I/O here.

A lease is debited in the store before it is used, so holds are granted from it without asking, and a replica that is
cut off can spend no more than its leases. One exchange a shard is under way at a time. What it gives back, this replica
stops to use before the exchange is sent; what it is given counts from the answer on. So each may be lost, repeated or
late without harm. A shard is all counters of one organisation, or all that name none: one hash slot of a cluster.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson

from domain.decision import BANDS
from ledger.book import Book, Crossing, Route
from ledger.counters import Cell, Counter
from ledger.holds import Demand
from ledger.windows import FOREVER_S

LINES_MAX = 256
LIMIT_MAX = (1 << 53) - 1  # the store counts in doubles
HORIZON_S = 2.0
TELL_S = 1.0
IDLE_S = 2.0
LIVE_MS = 3_000
CALM_MS = 500
UNSEEN = -1
_KEPT_S = 86_400
_REPLY_HEAD, _REPLY_LINE = 4, 7


class BadReply(Exception):
    """The store answered what no exchange can be answered with."""


@dataclass(slots=True, eq=False)
class Share:
    """What this replica knows of its part in one shared counter.

    `recall` is the last recall that it saw, UNSEEN before it asks for something; `pending` others have not answered that.
    """

    name: str
    counter: Counter
    rate_per_s: float = 0.0
    used: int = 0
    used_in_s: int = -1
    seen_at_s: float = 0.0
    recall: int = UNSEEN
    pending: int = 0
    is_short: bool = False
    is_recalled: bool = False


class _Said(NamedTuple):
    """One cell as an exchange tells it."""

    share: Share
    cell: Cell
    spent: int
    is_current: bool


class Exchange(NamedTuple):
    """One exchange, kept as it is until it is answered."""

    keys: list[str]
    payload: bytes
    serial: str
    shares: list[Share]
    said: list[_Said]
    asked: dict[str, int]
    is_join: bool
    is_last: bool


@dataclass(slots=True, eq=False)
class Shard:
    """The counters of one hash slot: the epoch they are in, the last exchange, and what is still to be told."""

    tag: str
    epoch: str = ""
    serial: str = ""
    is_open: bool = False
    has_joined: bool = False
    due: dict[str, Share] = field(default_factory=dict)
    joining: list[str] | None = None
    told_at_s: float = 0.0
    is_urgent: bool = False
    in_flight: Exchange | None = None


class Leases:
    """The leases of one replica on the counters of a shared book."""

    def __init__(self, book: Book, replica: str, replicas: int, nonce: str) -> None:
        self.book = book
        self.replica = replica
        self.is_durable = False
        self.shards: dict[str, Shard] = {}
        self._replicas = replicas
        self._nonce = nonce
        self._count = 0
        self._shares: dict[str, Share] = {}
        self._looked_at_s = 0.0

    def collect(self, at_s: float) -> None:
        """Note what the book has touched, and what lies idle, as due to be told."""
        for counter in self.book.touched:
            counter.is_touched = False
            self.due(counter)
        self.book.touched.clear()
        if at_s - self._looked_at_s < IDLE_S:
            return
        self._looked_at_s = at_s
        for share in list(self._shares.values()):
            budget, cell = share.counter.budget, share.counter.cell
            if self.book.find(budget.id, share.counter.name) is not share.counter:
                del self._shares[share.name]
            elif cell.lease or cell.held or share.rate_per_s or share.counter.held_elsewhere:
                self.due(share.counter)

    def want(self, route: Route, demand: Demand) -> None:
        """Let the next exchanges ask for what a demand lacks here, and recall it where it is not free."""
        for share in self.lacking(route, demand):
            share.pending, share.is_short, share.recall = 0, False, UNSEEN
            self.due(share.counter, is_urgent=True)

    def lacking(self, route: Route, demand: Demand) -> list[Share]:
        """The shares that cannot hold a demand at its largest output cap as they are."""
        needs = demand.at(demand.cap_max)
        return [self._share(counter) for counter, index, hard in route.counters if hard and counter.room < needs[index]]

    def recall(self, names: Iterable[str]) -> bool:
        """Another replica needs what lies idle on these counters; whether this one keeps any of them."""
        found = False
        for name in names:
            share = self._shares.get(name)
            if share is not None:
                share.is_recalled = found = True
                self.due(share.counter, is_urgent=True)
        return found

    def build(self, shard: Shard, waiting: Sequence[tuple[Route, Demand]], now_s: int, at_s: float) -> Exchange:
        """The next exchange of a shard: the one that was not answered yet, or a new one."""
        if shard.in_flight is not None:
            return shard.in_flight
        needs = _needs(waiting)
        is_join, is_last = shard.joining is not None, False
        if shard.joining is not None:
            names, rest = shard.joining[:LINES_MAX], shard.joining[LINES_MAX:]
            is_last = not rest
            shard.joining = rest or None
        else:
            names = list(shard.due)[:LINES_MAX] if shard.epoch else []
            for name in names:
                del shard.due[name]
        shares, said, lines, returns = [], [], [], False
        for name in names:
            share = self._known(name, now_s)
            if share is None:
                lines.append(_release(name))
                continue
            cells = self._tell(share, now_s, is_join=is_join)
            line, gave = self._line(share, cells, needs.get(name, 0), (now_s, at_s), is_join=is_join)
            lines.append(line)
            said += cells
            shares.append(share)
            returns |= gave
        self._count += 1
        serial = f"{self._count}:{self._nonce}"
        shard.told_at_s, shard.is_urgent = at_s, False
        ask = {
            "replica": self.replica,
            "epoch": shard.epoch,
            "fresh": f"{now_s}-{self._nonce}-{self._count}",
            "serial": serial,
            "after": shard.serial,
            "durable": int(self.is_durable),
            "replicas": self._replicas,
            "now_s": now_s,
            "live_ms": LIVE_MS,
            "calm_ms": CALM_MS,
            "channel": channel(shard.tag),
            "join": is_join,
            "is_last": is_last,
            "returns": returns,
            "lines": lines,
        }
        prefix = f"bursar:{{{shard.tag}}}"
        keys = [f"{prefix}:state", f"{prefix}:replica:{self.replica}", *(f"{prefix}:counter:{name}" for name in names)]
        asked = {line["name"]: line["cells"][-1][2] + line["need"] for line in lines if line["need"] and not is_join}
        shard.in_flight = Exchange(keys, orjson.dumps(ask), serial, shares, said, asked, is_join, is_last)
        return shard.in_flight

    def apply(self, shard: Shard, reply: Sequence[bytes], now_s: int) -> list[Crossing]:
        """Take the answer to the exchange in flight, and say which budgets crossed a threshold by what it told.

        BadReply leaves everything as it was.
        """
        exchange = shard.in_flight
        kind = bytes(reply[0]) if reply else b""
        if exchange is None or kind not in (b"ok", b"join", b"stale"):
            raise BadReply(f"the store answered {kind!r}")
        if kind == b"ok":
            if len(reply) != _REPLY_HEAD + _REPLY_LINE * (len(exchange.keys) - 2):
                raise BadReply(f"the store answered {len(reply)} values to {len(exchange.keys) - 2} counters")
            shard.in_flight = None
            shard.serial = exchange.serial
            shard.is_open = reply[2] == b"1"
            crossings = self._take(shard, exchange, [int(value) for value in reply[_REPLY_HEAD:]])
            shard.has_joined |= exchange.is_last
            return crossings
        shard.in_flight, shard.is_open = None, False
        for share in exchange.shares:
            shard.due[share.name] = share
        shard.epoch, shard.serial, shard.joining = "", "", None
        if kind == b"join":
            shard.epoch, shard.serial = reply[2].decode(), reply[3].decode()
            shard.joining = self._held_in(shard, [name.decode() for name in reply[_REPLY_HEAD:]], now_s)
        return []

    def shard(self, tag: str) -> Shard:
        """The shard of a tag."""
        shard = self.shards.get(tag)
        if shard is None:
            shard = self.shards[tag] = Shard(tag)
        return shard

    def due(self, counter: Counter, *, is_urgent: bool = False) -> Share:
        """Let the store be told of a counter with the next exchange of its shard, which cannot wait if it is urgent."""
        share, shard = self._share(counter), self.shard(tag_of(counter.name))
        shard.due[share.name] = share
        shard.is_urgent |= is_urgent
        return share

    def is_pressing(self, shard: Shard, at_s: float) -> bool:
        """Whether a shard should be told now: others wait, a lease runs low, or it has not heard of this for a while."""
        if shard.in_flight is not None or shard.joining is not None or not shard.epoch or shard.is_urgent:
            return True
        if not shard.due:
            return False
        return at_s - shard.told_at_s >= TELL_S or any(_is_low(share) for share in shard.due.values())

    def _share(self, counter: Counter) -> Share:
        name = name_of(counter)
        share = self._shares.get(name)
        if share is None or share.counter is not counter:
            share = self._shares[name] = Share(name, counter)
        return share

    def _known(self, name: str, now_s: int) -> Share | None:
        """The share of that name; None when its budget is gone or counts otherwise now."""
        budget_id, _, _, counter_name = name.split("|", 3)
        counter = self.book.counter(budget_id, counter_name, now_s)
        return self._share(counter) if counter is not None and name_of(counter) == name else None

    def _held_in(self, shard: Shard, indexed: Iterable[str], now_s: int) -> list[str]:
        """Every counter of a shard of which this replica has something, here or in the store's index."""
        names = dict.fromkeys(indexed)
        for counter in self.book.counters(now_s):
            if tag_of(counter.name) == shard.tag:
                names[self._share(counter).name] = None
        return list(names)

    def _tell(self, share: Share, now_s: int, *, is_join: bool) -> list[_Said]:
        """The cells that the store must hear of, the current one last."""
        counter = share.counter
        if now_s >= counter.turns_s:
            counter.turn(now_s)
        told = []
        for cell in counter.cells:
            used = cell.spent + cell.held
            if cell is not counter.cell and (is_join or cell.lease != used or cell.reported != cell.spent):
                cell.lease = used
                told.append(_Said(share, cell, cell.spent, is_current=False))
        return [*told, _Said(share, counter.cell, counter.cell.spent, is_current=True)]

    def _line(
        self, share: Share, said: list[_Said], needed: int, times: tuple[int, float], *, is_join: bool
    ) -> tuple[dict[str, Any], bool]:
        """What an exchange says of one counter, and whether it gives something back."""
        now_s, at_s = times
        counter, budget = share.counter, share.counter.budget
        cell, window = counter.cell, budget.window
        used = cell.spent + cell.held
        target = _target(share, used, at_s)
        lease, is_tight = cell.lease, share.is_recalled and not is_join
        if is_join:
            lease = max(lease, used)
        elif is_tight:
            lease = min(lease, used)
        elif lease - used > 4 * target:
            lease = used + target
        gave = lease < cell.lease
        if gave:
            # From here on it is not used any more, whether the exchange arrives or not.
            cell.lease = lease
            counter.refit()
        share.is_recalled &= is_join
        leases = {each.cell.start_s: each.cell.lease for each in said} | {cell.start_s: lease}
        gone_s = window.cell_gone_s(cell.start_s)
        line = {
            "name": share.name,
            "limit": min(counter.limit, LIMIT_MAX),
            "hard": budget.is_hard,
            "from_s": cell.start_s,
            "span_s": window.duration_s + window.cell_s if window.kind == "rolling" else 0,
            "ttl_s": 0 if gone_s >= FOREVER_S else max(0, gone_s - now_s) + _KEPT_S,
            "cells": [[each.cell.start_s, each.spent, leases[each.cell.start_s]] for each in said],
            "need": max(0, needed - max(0, lease - used)),
            "want": 0 if is_tight else max(0, used + target - lease),
            "tight": is_tight,
            "gen": share.recall,
            "force": budget.on_unavailable == "allow",
        }
        return line, gave

    def _take(self, shard: Shard, exchange: Exchange, values: list[int]) -> list[Crossing]:
        # Thresholds are seen once all replicas are in the sums; a new process does not see again what an older one saw.
        is_summed = shard.is_open and not exchange.is_join
        is_first = exchange.is_join and not shard.has_joined
        names = [key.split(":counter:", 1)[1] for key in exchange.keys[2:]]
        facts = {name: values[at * _REPLY_LINE : (at + 1) * _REPLY_LINE] for at, name in enumerate(names)}
        before = {share.name: _reported(share.counter) for share in exchange.shares}
        crossings = []
        for share, cell, spent, is_current in exchange.said:
            counter = share.counter
            if is_summed or is_first:
                cell.reported = spent
            if not is_current:
                continue
            cell.lease, spent_elsewhere, held_elsewhere, stranded, *recall, recalled = facts[share.name]
            if share.name in exchange.asked:
                share.is_short = cell.lease < exchange.asked[share.name]
                share.pending, share.recall = recall
            share.is_recalled = share.is_recalled or recalled > 0
            if recalled or cell is not counter.cell:
                self.due(counter, is_urgent=True)
            if cell is counter.cell:
                counter.spent_elsewhere, counter.held_elsewhere = spent_elsewhere, held_elsewhere
                counter.stranded = stranded
                counter.refit()
                counter.grade()
                if is_summed:
                    told = spent_elsewhere + before[share.name], spent_elsewhere + _reported(counter)
                    crossings += _crossed(counter, *told)
        return crossings


def name_of(counter: Counter) -> str:
    """The name of a counter in the store; another resource or window is another account."""
    budget = counter.budget
    return f"{budget.id}|{budget.resource}|{budget.window.text}|{counter.name}"


def tag_of(counter_name: str) -> str:
    """The hash tag of a counter: its organisation, or `-` when its scope names none."""
    first = counter_name.split(",", 1)[0]
    return quote(first.removeprefix("org=")) if first.startswith("org=") else "-"


def channel(tag: str) -> str:
    """Where replicas tell one another that they need something back, or have given it."""
    return f"bursar:{{{tag}}}:recall"


def _needs(waiting: Sequence[tuple[Route, Demand]]) -> Mapping[str, int]:
    """What those who wait need together of each counter, at their largest output caps."""
    needs: dict[str, int] = {}
    for route, demand in waiting:
        amounts = demand.at(demand.cap_max)
        for counter, index, hard in route.counters:
            if hard and amounts[index]:
                name = name_of(counter)
                needs[name] = needs.get(name, 0) + amounts[index]
    return needs


def _target(share: Share, used: int, at_s: float) -> int:
    """What should lie ready: what is used in HORIZON_S at the present rate."""
    cell = share.counter.cell
    if share.used_in_s == cell.start_s:
        elapsed_s = max(at_s - share.seen_at_s, 0.001)
        share.rate_per_s = (share.rate_per_s + max(0, used - share.used) / elapsed_s) / 2
        is_idle = used <= share.used and elapsed_s >= HORIZON_S
        if is_idle or share.rate_per_s * HORIZON_S < 1:
            share.rate_per_s = 0.0
    share.used, share.used_in_s, share.seen_at_s = used, cell.start_s, at_s
    return int(share.rate_per_s * HORIZON_S) + 1 if share.rate_per_s else 0


def _is_low(share: Share) -> bool:
    """Whether half of what should lie ready is used up."""
    counter = share.counter
    return counter.budget.is_hard and 2 * counter.room < share.rate_per_s * HORIZON_S


def _release(name: str) -> dict[str, Any]:
    """A line that gives back all that the store still has for this replica on a counter that it does not keep."""
    said: dict[str, Any] = {"name": name, "limit": 0, "hard": False, "from_s": 0, "span_s": 0, "ttl_s": 0}
    return said | {"cells": [], "need": 0, "want": 0, "tight": True, "gen": 0, "force": False}


def _reported(counter: Counter) -> int:
    """What the store knows to be spent here in the cells that count."""
    return sum(cell.reported for cell in counter.cells)


def _crossed(counter: Counter, before: int, after: int) -> list[Crossing]:
    """The threshold between what all had spent before this replica told and after: each is seen by one replica."""
    old, new = counter.level_of(before), counter.level_of(after)
    if new <= old:
        return []
    budget, start_s = counter.budget, counter.cell.start_s
    return [Crossing(budget.id, counter.name, budget.resource, BANDS[new], after, counter.limit, start_s)]
