"""Leases: what this replica may spend of a shared book, and what it tells the store that leases it. No I/O here.

A lease is debited in the store before it is used, so holds are granted from it without asking, and a replica that is
cut off can spend no more than its leases. One exchange a shard is under way at a time. What it gives back, this replica
stops to use before the exchange is sent; what it is given counts from the answer on. So each may be lost, repeated or
late without harm. A shard is all counters of one organisation, or all that name none: one hash slot of a cluster.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from math import ceil
from typing import Any

import orjson

from domain.decision import BANDS
from ledger.book import Book, Crossing, Route
from ledger.counters import Counter
from ledger.exchange_lines import UNSEEN, Need, Want, cells_of, given_up, name_of, needs, of_tag, tag_of
from ledger.holds import Demand
from ledger.shards import REPLY_HEAD, BadReply, Exchange, NameTaken, Shard, Told, channel, facts_of
from ledger.shares import Share
from ledger.windows import FOREVER_S

LINES_MAX = 256
CELLS_MAX = 1_024  # about 15 ms of the server, which does nothing else meanwhile
LIMIT_MAX = (1 << 53) - 1  # the store counts in doubles
HORIZON_S = 4.0
TELL_S = 2.0
IDLE_S = 2.0
LOOK_S = 0.25
LOOKED_AT_MAX = 2_000
QUIET_S = 10.0
LIVE_MS = 5_000
CALM_MS = 500
# How far clocks may be apart before what others have in a window that ended here is forgotten.
_SKEW_S = 60
_KEPT_S = 86_400
FENCE = "forgotten:"


class Leases:
    """The leases of one replica on the counters of a shared book, which has been rebuilt by then."""

    def __init__(self, book: Book, replica: str, replicas: int, nonce: str, *, horizon_s: float = HORIZON_S) -> None:
        self.book = book
        self.replica = replica
        self.replicas = replicas
        self.is_durable = False
        self.shards: dict[str, Shard] = {}
        self._nonce = nonce
        self._horizon_s = horizon_s
        self.built = 0
        self._shares: dict[str, Share] = {}
        self._looked_at_s = 0.0
        self._looking: Iterator[str] = iter(())
        for counter in book.every_counter():
            for cell in counter.cells:
                # An older process saw the thresholds that this crossed, and may have given back what corrections freed.
                cell.reported = cell.spent
                cell.lease = min(0, cell.spent + cell.held)
            counter.refit()

    def collect(self, at_s: float) -> None:
        """Note what the book has touched, and what lies idle, as due to be told."""
        for counter in self.book.touched:
            counter.is_touched = False
            self.due(counter).active_at_s = at_s
        self.book.touched.clear()
        for name in self._next_looked_at(at_s):
            share = self._known(name)
            if share is None:
                self._shares.pop(name, None)
                self.shard(tag_of(name.split("|", 3)[3])).due[name] = None
            elif share.is_watched:
                self.due(share.counter)

    def want(self, want: Want) -> None:
        """Let the next exchanges ask for what a request lacks here, and recall it where it is not free."""
        for share in self.lacking(want.route, want.demand):
            self.due(share.counter, is_urgent=True)

    def gone(self, want: Want, built: int) -> list[Share]:
        """The shares of which nobody has enough left for a request.

        That goes only by exchanges after the one of that number, each of which asked for it, and by recalls since then.
        """
        for counter, _, hard in want.route.counters:
            if hard and (share := self._share(counter)).answered > built:
                # What does not lack now may do so later.
                want.recalls.setdefault(share.name, share.recall)
        lacking = self.lacking(want.route, want.demand)
        short = [share for share in lacking if share.is_short and share.answered > built]
        return short if all(share.is_through(want.recalls[share.name]) for share in short) else []

    def lacking(self, route: Route, demand: Demand) -> list[Share]:
        """The shares that cannot hold a demand at its largest output cap as they are."""
        most = demand.at(demand.cap_max)
        return [self._share(counter) for counter, index, hard in route.counters if hard and counter.room < most[index]]

    def recall(self, names: Iterable[str]) -> bool:
        """Another replica needs what lies idle on these counters; whether this one may have any of it."""
        found = False
        for name in names:
            share = self._shares.get(name)
            if share is not None:
                share.is_recalled = found = True
                self.due(share.counter, is_urgent=True)
        return found

    def join(self, tag: str) -> None:
        """Another replica has joined an epoch of this shard, which may be new here too."""
        self.shard(tag).is_urgent = True

    def build(self, shard: Shard, wants: Iterable[Want], now_s: int, at_s: float) -> Exchange:
        """The next exchange of a shard: the one that was not answered yet, or a new one."""
        if shard.in_flight is not None:
            return shard.in_flight
        needed = needs(wants)
        is_join, names, is_last = self._next_page(shard)
        told: list[Told | None] = []
        lines, returns = [], False
        for name in names:
            share = self._known(name)
            if share is None:
                told.append(None)
                lines.append(given_up(name))
                continue
            line, said, gave = self._line(share, needed.get(name), now_s, at_s, is_join=is_join)
            told.append(said)
            lines.append(line)
            returns |= gave
        # What became urgent while a page was under way, and is not on this one, still is.
        shard.told_at_s, shard.is_urgent = at_s, shard.is_urgent and bool(shard.due)
        self.built += 1
        serial = f"{self.built}:{self._nonce}"
        ask = {
            "replica": self.replica,
            "epoch": shard.epoch,
            "serial": serial,
            "after": shard.serial,
            "durable": int(self.is_durable),
            "replicas": self.replicas,
            "now_s": now_s,
            "live_ms": LIVE_MS,
            "calm_ms": CALM_MS,
            "channel": channel(shard.tag),
            "join": is_join,
            "is_last": is_last,
            "returns": returns,
            "lines": lines,
        }
        at = f"bursar:{{{shard.tag}}}"
        mine = f"{at}:replica:{self.replica}"
        keys = [f"{at}:state", mine, f"{mine}:answer", *(f"{at}:counter:{name}" for name in names)]
        shard.in_flight = Exchange(self.built, keys, orjson.dumps(ask), serial, names, told, is_join, is_last)
        return shard.in_flight

    def apply(self, shard: Shard, reply: Sequence[bytes], now_s: int) -> list[Crossing]:
        """Take the answer to the exchange in flight, and say which budgets crossed a threshold by what it told.

        BadReply and NameTaken leave everything as it was.
        """
        exchange = shard.in_flight
        kind = bytes(reply[0]) if reply else b""
        if exchange is None or kind not in (b"ok", b"join", b"stale") or len(reply) < REPLY_HEAD:
            raise BadReply(f"the store answered {kind!r}")
        if kind == b"ok":
            facts = facts_of(reply, len(exchange.names))
            shard.in_flight, shard.serial = None, exchange.serial
            shard.is_open = reply[2] == b"1"
            return self._take(shard, exchange, facts)
        epoch, serial = reply[2].decode(), reply[3].decode()
        if self._is_mine(shard.serial) and epoch == shard.epoch and not (self._is_mine(serial) or _is_fence(serial)):
            raise NameTaken(
                f"another gateway exchanges as {self.replica}: its home is a copy of this one's; stop it, give it a "
                "home of its own without this one's journal, and start this one again"
            )
        shard.in_flight, shard.is_open = None, False
        shard.due |= dict.fromkeys(exchange.names)
        shard.epoch, shard.serial, shard.joining = "", "", None
        if kind == b"join":
            shard.epoch, shard.serial = epoch, serial
            shard.joining = self._kept_in(shard, [name.decode() for name in reply[REPLY_HEAD:]])
        return []

    @property
    def waiting(self) -> int:
        """How many shards wait until all replicas have reported."""
        return sum(not shard.is_open for shard in self.shards.values())

    def shard(self, tag: str) -> Shard:
        """The shard of a tag."""
        shard = self.shards.get(tag)
        if shard is None:
            shard = self.shards[tag] = Shard(tag)
        return shard

    def due(self, counter: Counter, *, is_urgent: bool = False) -> Share:
        """Let the store be told of a counter with the next exchange of its shard, which cannot wait if it is urgent."""
        share = self._share(counter)
        shard = self.shard(tag_of(counter.name))
        shard.due[share.name] = None
        shard.is_urgent |= is_urgent
        return share

    def is_pressing(self, shard: Shard, at_s: float) -> bool:
        """Whether a shard should be told now: others wait, a lease runs low, or it has not been told for a while."""
        if at_s < shard.resumes_at_s:
            return False
        if shard.in_flight is not None or shard.joining is not None or not shard.epoch or shard.is_urgent:
            return True
        if not shard.due:
            # Or else who has nothing to tell would never learn that a new epoch waits for all to join.
            return at_s - shard.told_at_s >= QUIET_S
        return at_s - shard.told_at_s >= TELL_S or any(
            share.is_low for share in map(self._shares.get, shard.due) if share
        )

    def _next_looked_at(self, at_s: float) -> Iterator[str]:
        """The shares whose turn it is: each once in IDLE_S, but never so many at once that requests would feel it."""
        elapsed_s = at_s - self._looked_at_s
        if elapsed_s < LOOK_S:
            return
        self._looked_at_s = at_s
        count = min(LOOKED_AT_MAX, len(self._shares), ceil(len(self._shares) * elapsed_s / IDLE_S))
        for _ in range(count):
            name = next(self._looking, None)
            if name is None:
                self._looking = iter(list(self._shares))
                name = next(self._looking, None)
            if name is not None:
                yield name

    def _is_mine(self, serial: str) -> bool:
        """Whether a serial is of this process."""
        return serial.endswith(f":{self._nonce}")

    def _next_page(self, shard: Shard) -> tuple[bool, list[str], bool]:
        """Whether the next exchange joins, the counters that it tells of, and whether the join is complete with it."""
        if shard.joining is not None:
            names = self._page(shard.joining)
            shard.joining = shard.joining[len(names) :] or None
            return True, names, shard.joining is None
        names = self._page(shard.due) if shard.epoch else []
        for name in names:
            del shard.due[name]
        return False, names, False

    def _page(self, names: Iterable[str]) -> list[str]:
        """As many of these counters, from the first, as one exchange takes: their cells are what it costs."""
        page: list[str] = []
        cells = 0
        for name in islice(names, LINES_MAX):
            share = self._known(name)
            cells += len(share.counter.cells) if share is not None else 1
            if page and cells > CELLS_MAX:
                break
            page.append(name)
        return page

    def _share(self, counter: Counter) -> Share:
        name = name_of(counter)
        share = self._shares.get(name)
        if share is None or share.counter is not counter:
            share = self._shares[name] = Share(name, counter)
        return share

    def _known(self, name: str) -> Share | None:
        """The share of that name; None when the book has no such counter, or counts it over another window now."""
        budget_id, resource, _, counter_name = name.split("|", 3)
        counter = self.book.known(budget_id, resource, counter_name)
        return self._share(counter) if counter is not None and name_of(counter) == name else None

    def _kept_in(self, shard: Shard, indexed: Iterable[str]) -> list[str]:
        """Every counter of a shard of which this replica may have something, here or in the store's index."""
        return list(dict.fromkeys((*indexed, *map(name_of, of_tag(self.book.every_counter(), shard.tag)))))

    def _line(
        self, share: Share, need: Need | None, now_s: int, at_s: float, *, is_join: bool
    ) -> tuple[dict[str, Any], Told, bool]:
        """What an exchange says of one counter, and whether it gives something back."""
        counter = share.counter
        if now_s >= counter.turns_s:
            counter.turn(now_s)
        cell, window = counter.cell, counter.budget.window
        used = cell.spent + cell.held
        is_leased = counter.budget.is_hard and self.book.find(counter.budget.id, counter.name) is counter
        needed = need.amount if need is not None else None
        if needed is not None:
            # How far it is short is not known again before this is answered.
            share.is_short, share.needed, share.active_at_s = False, max(share.needed, needed), at_s
        share.retarget(used, at_s, self._horizon_s if is_leased else 0.0)
        lease, is_tight = cell.lease, share.is_recalled
        if is_tight or not is_leased:
            lease = min(lease, used)
        elif lease - used > 4 * share.target:
            lease = min(lease, used + max(share.target, needed or 0))
        gave = lease < cell.lease
        if gave:
            # From here on it is not used any more, whether the exchange arrives or not.
            cell.lease = lease
            counter.refit()
        share.is_recalled = False
        is_whole = is_join or not share.is_known
        spent, cells = cells_of(counter, is_whole=is_whole)
        lacks = max(0, (needed or 0) - max(0, lease - used)) if is_leased and not is_join else 0
        gone_s = window.cell_gone_s(cell.start_s)
        line = {
            "name": share.name,
            "limit": min(counter.limit, LIMIT_MAX),
            "hard": is_leased,
            "from_s": cell.start_s,
            "old_s": window.cell_start_s(now_s - _SKEW_S),
            "span_s": window.duration_s + window.cell_s if window.kind == "rolling" else 0,
            "ttl_s": 0 if gone_s >= FOREVER_S else max(0, gone_s - now_s) + _KEPT_S,
            "whole": is_whole,
            "cells": cells,
            "need": lacks,
            "want": 0 if is_tight else max(0, share.target - max(0, lease - used)),
            "tight": is_tight,
            "gen": need.recall if need is not None else UNSEEN,
        }
        return line, Told(share, cell, spent, counter.limit, None if needed is None or is_join else lease + lacks), gave

    def _take(self, shard: Shard, exchange: Exchange, facts: list[list[int]]) -> list[Crossing]:
        is_summed = shard.is_open and not exchange.is_join
        crossings = []
        for told, fact in zip(exchange.told, facts, strict=True):
            if told is None:
                continue
            lease, spent_elsewhere, held_elsewhere, stranded, before, after, pending, recall, is_recalled = fact
            share, cell, counter = told.share, told.current, told.share.counter
            share.is_known = is_summed
            for each, spent in told.spent if is_summed else ():
                each.reported = spent
            if name_of(counter) != share.name:
                continue  # it counts over another window by now
            cell.lease = share.leased = lease
            is_late = cell is not counter.cell or counter.limit < told.limit
            if cell is counter.cell and is_late:
                # It was given under a larger limit.
                cell.lease = min(lease, cell.spent + cell.held)
            if is_recalled or is_late:
                share.is_recalled = True
                self.due(counter, is_urgent=True)
            # Before all have joined the store knows a part of them, and under a larger limit they may have more by now.
            is_all = is_summed and counter.limit >= told.limit
            if cell is counter.cell:
                share.see((spent_elsewhere, held_elsewhere, stranded), exchange.number, is_all=is_all)
            if is_summed and (cell is counter.cell or counter.budget.window.kind == "rolling"):
                crossings += _crossed(counter, spent_elsewhere + before, spent_elsewhere + after)
            counter.refit()
            counter.grade()
            if told.asked is not None:
                share.is_short = lease < told.asked or counter.available < 0
                share.answered, share.pending, share.recall = exchange.number, pending, recall
        return crossings


def _is_fence(serial: str) -> bool:
    """Whether an operator has fenced a replica off that was taken for lost."""
    return serial.startswith(FENCE)


def _crossed(counter: Counter, before: int, after: int) -> list[Crossing]:
    """The threshold between what all had spent before this replica told and after: each is seen by one replica."""
    old, new = counter.level_of(before), counter.level_of(after)
    if new <= old:
        return []
    budget, start_s = counter.budget, counter.cell.start_s
    return [Crossing(budget.id, counter.name, budget.resource, BANDS[new], after, counter.limit, start_s)]
