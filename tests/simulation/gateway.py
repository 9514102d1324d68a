"""A gateway worker of a simulated run: the real book, journal, recovery, flow and sweep on another disk and clock."""

from __future__ import annotations

import asyncio
import atexit
import json
import random
from collections.abc import Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any

from domain.intent import Intent, Principal
from domain.prices import GpuRate, Prices
from gateway import flow, rows, sweep
from gateway.admission import Admitted, Ask
from gateway.bounds import Measure, count_bytes
from gateway.catalogue import Catalogue, Offer
from gateway.errors import Refusal
from gateway.flow import Outcome
from gateway.governance import Governance
from gateway.live import Live, LiveCall
from gateway.metering import Observed
from gateway.noticing import Noticing
from gateway.quality import Sampler
from gateway.quality_config import Quality
from gateway.recent import Recent
from gateway.repeats import Repeats
from gateway.risks import Risks
from gateway.signals import Signals
from gateway.tool_calls import ToolLog
from gateway.waiting import Waiting
from gateway.webhooks import Webhooks
from ledger import recovery
from ledger.book import Book
from ledger.budgets import Budget
from ledger.counters import Grant
from ledger.disk import Disk
from ledger.journal import Journal
from ledger.records import Record
from ledger.segments import replay_from_snapshot
from ledger.sequences import Sequences
from observability.metrics import Metrics
from policy.decider import Decider, Recorded
from policy.port import Answer
from runtime.client import RuntimeClient
from runtime.openai.usage import Report
from runtime.port import RuntimeSpec
from tests.simulation.faults import Plan

US = 1_000_000
JOURNALS = Path("journal")
WRITER = "gateway-0"
MODEL = "small"
PRICES = Prices("2025-01-01", 150_000_000, 15_000_000, 600_000_000)
METRICS = Metrics()
Rebuild = Callable[[Book, Iterable[Record], int, Sequences], int]


# One for all runs: nothing in it outlives an admission, so none can change what another one sees.
_LOOP = asyncio.new_event_loop()
atexit.register(_LOOP.close)


def _at_once(admission: Coroutine[Any, Any, Admitted | Refusal]) -> Admitted | Refusal:
    """What a coroutine returns that has nothing to wait for but the policy's answer."""
    return _LOOP.run_until_complete(admission)


class Yes:
    """A policy that admits, and lets the output shrink where the budget runs low."""

    revision = "sha256:0123456789abcdef"
    away_since_s = None

    async def evaluate(self, entry: str, input_json: bytes) -> Answer:
        terms = {"min_output_tokens": 4, "shrink_to_fit": json.loads(input_json)["budget"]["band"] != "ok"}
        return Answer({"allow": True, "reasons": [], "obligations": terms}, self.revision)

    async def close(self) -> None:
        """Nothing to end."""


class NoConnection:
    """A call whose client is nowhere: nothing interrupts it."""

    call = None
    task = None


class CallsInOrder(set[LiveCall]):
    """A set that is walked in the order in which it was filled, where others go by the addresses of their objects."""

    def __init__(self) -> None:
        super().__init__()
        self._order: dict[LiveCall, None] = {}

    def add(self, call: LiveCall) -> None:
        super().add(call)
        self._order[call] = None

    def discard(self, call: LiveCall) -> None:
        super().discard(call)
        self._order.pop(call, None)

    def __iter__(self) -> Iterator[LiveCall]:
        return iter(self._order)


class SimGateway:
    """One incarnation of the worker; it is gone once it is killed, and the next one is opened on the same disk."""

    def __init__(
        self, plan: Plan, budgets: Iterable[Budget], disk: Disk, now_us: Callable[[], int], rebuild: Rebuild
    ) -> None:
        now_s = now_us() // US
        self.book, self.sequences = Book(budgets, now_s), Sequences()
        self.journal = Journal.open(
            JOURNALS / WRITER,
            segment_bytes=plan.segment_bytes,
            bytes_max=plan.segments_max * plan.segment_bytes,
            snapshot=lambda: {**recovery.snapshot(self.book), "org_seqs": self.sequences.snapshot()},
            disk=disk,
            now_us=now_us,
            commits_itself=False,
        )
        rebuild(self.book, replay_from_snapshot(JOURNALS / WRITER, disk), now_s, self.sequences)
        self.live = Live(1_000, calls=CallsInOrder())
        self.admitted: list[tuple[Admitted, LiveCall]] = []
        self.of = self._governance(plan, now_us)

    def _governance(self, plan: Plan, now_us: Callable[[], int]) -> Governance:
        client = RuntimeClient(
            RuntimeSpec("sim", "http://127.0.0.1:9", GpuRate(2_500_000_000, 25_000_000, 500_000_000))
        )
        offer = Offer(
            MODEL, MODEL, frozenset({"chat"}), (client,), Measure(count_bytes, 4096, 4, 4), 256, lambda _: PRICES
        )
        risks = Risks()
        risks.now_us = now_us

        def has_room() -> bool:
            return self.journal.room_for(len(self.book.holds))

        signals = Signals(self.journal, has_room, now_us, risks.consume)
        tools = ToolLog(self.journal, has_room, now_us)
        return Governance(
            book=self.book,
            journal=self.journal,
            sequences=self.sequences,
            decider=Decider(Yes(), record=self._record_decision),
            catalogue=Catalogue({MODEL: offer}, {"sim": client}, "test", freeze=False),
            metrics=METRICS,
            webhooks=Webhooks((), None),
            waiting=Waiting(0),
            recent=Recent(10),
            repeats=Repeats(1, 1, 1),
            risks=risks,
            noticing=Noticing(signals, tools, Sampler(signals, Quality(sample=0)), risks.is_outburst),
            hold_ttl_s=plan.hold_ttl_s,
            now_us=now_us,
        )

    def _record_decision(self, recorded: Recorded) -> None:
        self.journal.append("decision_inputs", {"decision_id": recorded.decision.decision_id, "input": "x" * 200})

    def ask(self, dice: random.Random, request_id: str) -> Admitted | Refusal:
        """A request arrives, and is admitted or refused."""
        principal = Principal("acme", dice.choice("st"), dice.choice("wb"), "", dice.choice("kl"))
        intent = Intent(request_id, principal, "chat", MODEL, dice.random() < 0.5, 40, dice.choice((8, 60, 200)))
        ask = Ask(intent, self.of.now_us(), rows.identity(intent, ""))
        result = _at_once(flow.admit(self.of, ask))
        if isinstance(result, Refusal):
            flow.refuse(self.of, ask, result)
        else:
            call = LiveCall(NoConnection(), float("inf"), result.hold)
            self.live.calls.add(call)
            self.admitted.append((result, call))
        return result

    def end(self, dice: random.Random) -> None:
        """A request in flight ends: it is settled in one of the ways there are, or was never sent and is voided."""
        admitted, call = self.admitted.pop(dice.randrange(len(self.admitted)))
        self.live.calls.discard(call)
        if dice.random() < 0.1:
            flow.void(self.of, admitted)
            return
        output_tokens = dice.randrange(admitted.hold.cap + 1)
        report = Report(dice.randrange(1, 41), 0, output_tokens, 0)
        outcome = dice.choice(
            (
                Outcome(Observed(sent=True, is_complete=True, report=report), "ok", 200),
                Outcome(Observed(sent=True, streamed=True, report=report), "cut", 499),
                Outcome(Observed(sent=True), "failed", 502, "upstream_error"),
                Outcome(Observed(sent=True, is_complete=True, is_error=True), "failed", 500),
            )
        )
        flow.settle(self.of, admitted, outcome)

    def grant(self, dice: random.Random) -> Grant:
        """A person raises a limit for a while, as `gateway.controls.Controls.grant` does."""
        now_us = self.of.now_us()
        budget = dice.choice(sorted(self.book.budgets))
        grant = Grant(
            f"g{now_us}-{dice.random()}", budget, "*", 50, now_us // US + dice.choice((2, 30)), "ann", "launch"
        )
        record = {"ts_us": now_us, "action": "grant", "grant": recovery.grant_record(grant)}
        self.journal.append("control", record)
        self.book.grant(grant, now_us // US)
        return grant

    def sweep(self) -> None:
        """What the worker does twice a second."""
        sweep.sweep(self.of, self.live)
