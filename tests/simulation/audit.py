"""The audit of a simulated run: what was promised, remembered as it was told, and whether it was kept."""

from __future__ import annotations

import hashlib
from collections import Counter as Tally
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from ledger.disk import Disk
from ledger.holds import Hold
from ledger.journal import Journal
from ledger.records import GENESIS_SHA256, CorruptJournal, Record, chained
from ledger.segments import read
from ledger.shipper import Shipper
from ledger.windows import ROLLING_CELLS
from tests.simulation.gateway import JOURNALS, US, WRITER, SimGateway
from tests.simulation.store import by_day

if TYPE_CHECKING:  # the world makes its audit, and the audit looks at the world
    from tests.simulation.world import World

POWER_LOSS_US = 10_000
NOTICE_US = 1_000_000
PASSING = ("was lost", "no answer", "Input/output error", "No such file")


class Violation(AssertionError):
    """A promise that a run did not keep."""


class Told(NamedTuple):
    """The end of the journal as a caller was told of it, and when."""

    at_us: int
    seq: int
    sha256: bytes


class Audit:
    """What one run has promised so far."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._told: list[Told] = []
        self._must_seq = 0
        self._has_committed = False
        self._may_lose = self._is_frozen = False
        self._opened_at_us = 0
        self._chain: dict[int, bytes] = {}
        self._ceilings: Tally[str] = Tally()
        self.restarts = 0
        self.lost = 0
        self.configured()

    def told(self, journal: Journal) -> None:
        """The gateway's appends have returned: from now on no kill may take them away."""
        if not self._told or journal.tail_seq > self._told[-1].seq:
            self._told.append(Told(self._world.clock.us, journal.tail_seq, journal._tail_sha256))

    def committed(self, gateway: SimGateway | None) -> None:
        """The fsync thread has had its turn."""
        if gateway is not None and not self.has_failed:
            self._has_committed = True
            self._renew_promise()

    @property
    def has_failed(self) -> bool:
        """Whether the gateway's journal takes nothing more before a restart."""
        gateway = self._world.gateway
        return gateway is not None and gateway.journal.failure is not None

    def sync_failed(self) -> None:
        """What was not on the medium before may never be."""
        self._renew_promise()
        self._is_frozen = self._may_lose = True

    def power_lost(self) -> None:
        """What was appended within the last 10 ms may go, and nothing else."""
        self._renew_promise()
        self._may_lose = True

    def gateway_died(self, gateway: SimGateway | None) -> None:
        """Nobody commits any more until the next one has begun to."""
        if gateway is not None:
            self._renew_promise()
        self._has_committed = False

    def opened(self, gateway: SimGateway) -> None:
        """A gateway has started: everything that it should find is there, whole and in order."""
        self.restarts += 1
        tail_seq = gateway.journal.tail_seq
        records = self._kept()
        if records[-1].seq < tail_seq:
            raise Violation(f"the journal goes on behind record {tail_seq}, but ends with {records[-1].seq}")
        shipped = self._world.tables.rows["events"]
        # What the store has may have left the journal.
        hashes = {event["seq"]: bytes.fromhex(event["sha256"]) for event in shipped}
        hashes.update((record.seq, record.sha256) for record in records)
        last_seq = self._told[-1].seq if self._told else 0
        floor_seq = self._must_seq if self._may_lose else last_seq
        if tail_seq < floor_seq:
            raise Violation(f"records {tail_seq + 1} to {floor_seq} are lost")
        self.lost += max(0, last_seq - tail_seq)
        while self._told and hashes.get(self._told[-1].seq) != self._told[-1].sha256:
            if self._told[-1].seq <= floor_seq:
                raise Violation(f"record {self._told[-1].seq} is not the one that was written")
            # Another has its number since the power loss.
            self._told.pop()
        self._must_seq = min(self._must_seq, tail_seq)
        self._may_lose = self._is_frozen = self._has_committed = False
        self._opened_at_us = self._world.clock.us
        self.told(gateway.journal)

    def held(self, gateway: SimGateway, hold: Hold) -> None:
        """A hold was granted: no hard budget that it is on holds more than its limit."""
        for counter, _, _ in hold.lines:
            if counter.budget.is_hard and counter.spent + counter.held > counter.limit:
                raise Violation(f"{counter.budget.id} {counter.name} is overspent: {counter}")

    def configured(self) -> None:
        """Limits may have changed; what was spent under a higher one stays spent."""
        for budget in self._world.budgets:
            self._ceilings[budget.id] = max(self._ceilings[budget.id], budget.limit)

    def swept(self, gateway: SimGateway) -> None:
        """No hold without an owner is open longer than its time, and the second that the sweep may take."""
        owned = {call.hold.hold_id for call in gateway.live.calls if call.hold is not None}
        if self.has_failed or not gateway.journal.room_for(0):
            return
        now_us = self._world.clock.wall_us()
        for hold in gateway.book.holds.values():
            if hold.hold_id not in owned and hold.expires_at_us + NOTICE_US < now_us:
                raise Violation(f"the hold {hold.hold_id} is still open")

    def shipped(self, shipper: Shipper) -> None:
        """A round is over: whatever stopped it passes by itself."""
        for why in shipper.stalled().values():
            if not any(passing in why for passing in PASSING):
                raise Violation(f"the shipper stands still: {why}")

    def fingerprint(self) -> str:
        """What tells two runs apart: the hash of everything that was recorded, in order."""
        hashes = [event["sha256"] for event in self._world.tables.rows["events"]]
        return f"{len(hashes)} records, {hashlib.sha256(''.join(hashes).encode()).hexdigest()}"

    def at_rest(self) -> None:
        """All is well again, every hold had time to end and everything was shipped: do the accounts agree?"""
        gateway, rows = self._world.gateway, self._world.tables.rows
        assert gateway is not None
        records = self._kept()
        if [record.seq for record in records] != list(range(records[0].seq, gateway.journal.tail_seq + 1)):
            raise Violation("the journal has a gap")
        if gateway.book.holds:
            raise Violation(f"{len(gateway.book.holds)} holds leaked")
        self._compare_events(rows["events"], records)
        self._compare_requests(rows["usage"], rows["hold"])
        self._compare_counters(gateway, rows["usage"])
        self._compare_rollup(rows["usage"])
        self._compare_limits(rows["usage"])

    def _compare_events(self, events: list[dict[str, Any]], records: list[Record]) -> None:
        """The store has every record once, and it is the one in the journal."""
        seqs = [event["seq"] for event in events]
        doubled = len(seqs) - len(set(seqs))
        if doubled:
            raise Violation(f"{doubled} rows are doubled")
        missing = set(range(1, records[-1].seq + 1)).difference(seqs)
        if missing:
            raise Violation(f"{len(missing)} rows are lost, the first is {min(missing)}")
        hashes = {event["seq"]: event["sha256"] for event in events}
        for record in records:
            if hashes[record.seq] != record.sha256.hex():
                raise Violation(f"row {record.seq} is not that record")

    @staticmethod
    def _compare_requests(usage: list[dict[str, Any]], holds: list[dict[str, Any]]) -> None:
        """Every request has one row, and every hold one end."""
        for name in ("event_id", "request_id", "seq"):
            counts = Tally(row[name] for row in usage)
            doubled = [value for value, count in counts.items() if count > 1]
            if doubled:
                raise Violation(f"{name} {doubled[0]} has {counts[doubled[0]]} usage rows")
        if sorted(row["org_seq"] for row in usage) != list(range(1, len(usage) + 1)):
            raise Violation("the rows of the organisation are not numbered 1, 2, 3")
        opened = Tally(row["hold_id"] for row in holds if row["action"] == "opened")
        ended = Tally(row["hold_id"] for row in usage if "hold_id" in row)
        ended.update(row["hold_id"] for row in holds if row["action"] == "voided")
        if opened != ended:
            raise Violation(f"holds that were opened and those that ended differ: {opened - ended}, {ended - opened}")

    @staticmethod
    def _compare_counters(gateway: SimGateway, usage: list[dict[str, Any]]) -> None:
        """Every counter is the sum of the charges in the windows that still count, and holds nothing."""
        now_s = gateway.of.now_us() // US
        counters = {
            (counter.budget.id, counter.name, counter.budget.resource): counter.spent
            for counter in gateway.book.counters(now_s)
            if counter.spent or counter.held
        }
        sums: Tally[tuple[str, str, str]] = Tally()
        for budget_id, name, start_s, resource, amount in _charges(usage):
            budget = gateway.book.budgets.get(budget_id)
            if budget is not None and budget.window.cell_gone_s(start_s) > now_s:
                sums[budget_id, name, resource] += amount
        if counters != +sums:
            raise Violation(f"counters and charges differ: {counters.items() ^ (+sums).items()}")

    def _compare_rollup(self, usage: list[dict[str, Any]]) -> None:
        """What the rollup adds up to is what the rows add up to."""
        if self._world.tables.rollup != by_day(usage):
            raise Violation("the rollup and its table differ")

    def _compare_limits(self, usage: list[dict[str, Any]]) -> None:
        """No window of a hard budget was charged more than the highest limit that it ever had."""
        budgets = {budget.id: budget for budget in self._world.budgets if budget.is_hard}
        granted: Tally[str] = Tally()
        for row in self._world.tables.rows["control"]:
            granted[row["grant"]["budget"]] += row["grant"]["amount"]
        spans: dict[tuple[str, str], Tally[int]] = {}
        for budget_id, name, start_s, _, amount in _charges(usage):
            spans.setdefault((budget_id, name), Tally())[start_s] += amount
        for (budget_id, name), spent in spans.items():
            budget = budgets.get(budget_id)
            if budget is None:
                continue
            span_s = budget.window.cell_s * ROLLING_CELLS
            for first_s in spent:
                within = sum(amount for start_s, amount in spent.items() if 0 <= start_s - first_s < max(1, span_s))
                if within > self._ceilings[budget_id] + granted[budget_id]:
                    raise Violation(f"{budget_id} {name} was charged {within} from {first_s} on")

    def _renew_promise(self) -> None:
        """What was told more than 10 ms ago, to somebody whose fsync thread works, is on the medium."""
        if self._has_committed and not self._is_frozen and not self.has_failed:
            before_us = self._world.clock.us - POWER_LOSS_US
            for told in reversed(self._told):
                if told.at_us < before_us:
                    self._must_seq = max(self._must_seq, told.seq)
                    break

    def _kept(self) -> list[Record]:
        """What the journal holds; Violation when its chain does not hold."""
        disk: Disk = self._world.machine.process("auditor")
        try:
            records = list(read(JOURNALS / WRITER, disk=disk))
        except CorruptJournal as error:
            raise Violation(f"the journal is damaged: {error}") from error
        for before, after in pairwise([None, *records]):
            assert after is not None
            previous = before.sha256 if before is not None else GENESIS_SHA256
            if (before is not None or after.seq == 1) and chained(previous, after.payload) != after.sha256:
                raise Violation(f"record {after.seq} is not bound to the one before")
        return records


def _charges(usage: list[dict[str, Any]]) -> Iterator[tuple[str, str, int, str, int]]:
    for row in usage:
        yield from row.get("charges", ())
