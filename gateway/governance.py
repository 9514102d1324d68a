"""Governance: the parts of one gateway worker that every request passes, held together for the flow."""

import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from domain.ids import uuid7
from domain.intent import Intent
from gateway.catalogue import Catalogue
from gateway.noticing import Noticing
from gateway.prompt_blocks import PromptBlocks
from gateway.recent import Recent
from gateway.repeats import Repeats
from gateway.risks import RISK_LEVEL, Risks, names_of
from gateway.waiting import Waiting
from gateway.webhooks import Webhooks
from ledger.book import Book, Crossing, Headroom, Settlement
from ledger.counters import Counter
from ledger.journal import Journal, JournalError, JournalFull
from ledger.lease_keeper import LeaseKeeper
from ledger.sequences import Sequences
from observability.metrics import Metrics
from policy.decider import Decider
from policy.port import PolicyInput
from policy.risk import LevelChange

US = 1_000_000


def system_now_us() -> int:
    """Unix time in microseconds."""
    return time.time_ns() // 1000


@dataclass(slots=True)
class Governance:
    """Book, journal, policy, catalogue and signals of one worker; `catalogue` is replaced whole on a reload.

    `keeper` is there when other workers share the book, `prompts` when it is recorded which prompts begin alike.
    """

    book: Book
    journal: Journal
    sequences: Sequences
    decider: Decider
    catalogue: Catalogue
    metrics: Metrics
    webhooks: Webhooks
    waiting: Waiting
    recent: Recent
    repeats: Repeats
    risks: Risks
    noticing: Noticing
    hold_ttl_s: int
    now_us: Callable[[], int] = field(default=system_now_us)
    keeper: LeaseKeeper | None = None
    prompts: PromptBlocks | None = None

    def policy_input(self, intent: Intent, model: str, headroom: Headroom) -> PolicyInput:
        """What policy is asked about this intent on this model."""
        principal, run, catalogue = intent.principal, intent.run, self.catalogue
        return PolicyInput(
            principal.org,
            principal.team,
            principal.app,
            principal.roles,
            principal.clearance,
            intent.endpoint,
            model,
            intent.tools,
            intent.stream,
            run.depth,
            run.steps_band,
            headroom.band,
            headroom.worst,
            headroom.per_resource,
            self.risks.level(principal, run.run_id),
            catalogue.env_name,
            catalogue.freeze,
        )

    async def look(self, counters: Collection[Counter]) -> bool:
        """Learn what other replicas have of some counters; whether what is known of all of them is as of now."""
        return self.keeper is None or await self.keeper.look(counters)

    def has_room(self) -> bool:
        """Whether the journal keeps room for the settlement of every open hold and of one more."""
        return self.journal.room_for(len(self.book.holds))

    def record_usage(self, more: dict[str, Any], row: dict[str, Any] | None = None, members: bytes = b"") -> None:
        """Write a `usage` row to the journal, numbered within its org, and keep it at hand for its caller.

        `row` is what it has in common with the record of its hold, and `members` the same as JSON.
        """
        self.sequences.append(self.journal, (row or more)["org"], more, members)
        self.recent.add(more["event_id"], row or {}, more)

    def announce(self, settlement: Settlement) -> None:
        """Record and publish what a settlement revealed: thresholds crossed and overages posted."""
        row = settlement.hold.row
        for crossing in settlement.crossings:
            self._cross(crossing, row)
        for overage in settlement.overages:
            self.metrics.overage(overage.budget)
            self._signal("overage", row, overage.budget, "alarm", overage.amount, overage._asdict())

    def announce_crossings(self, crossings: list[Crossing]) -> None:
        """Record and publish the thresholds that all replicas together have crossed."""
        for crossing in crossings:
            named = dict(part.split("=", 1) for part in crossing.counter.split(",") if "=" in part)
            # Nothing is admitted while the journal takes nothing, and the sweep says why; the shared book goes on.
            with suppress(JournalError):
                self._cross(crossing, {name: named.get(name, "") for name in ("org", "team", "app")})

    def announce_risk(self, change: LevelChange) -> None:
        """Record and publish that a risk level has changed; JournalError where that cannot be recorded now."""
        if not self.has_room():
            raise JournalFull("the room left in the journal belongs to the settlements of what is open")
        detail = {"was": change.was, "signals": change.signals}
        row = names_of(change.scope)
        self._signal(RISK_LEVEL, row, change.scope.text, change.level, change.score_milli, detail, change.at_s * US)

    def _cross(self, crossing: Crossing, row: dict[str, Any]) -> None:
        self._signal("budget_threshold", row, crossing.budget, crossing.band, crossing.spent, crossing._asdict())

    def _signal(
        self,
        name: str,
        row: dict[str, Any],
        subject: str,
        level: str,
        value: int,
        detail: dict[str, Any],
        at_us: int = 0,
    ) -> None:
        now_us = at_us or self.now_us()
        signal = {
            "ts_us": now_us,
            "event_id": uuid7(now_us // 1000),
            "name": name,
            "org": row["org"],
            "team": row["team"],
            "app": row["app"],
            "run_id": row.get("run_id", ""),
            "subject": subject,
            "level": level,
            "value": value,
            "detail": detail,
        }
        self.journal.append("signal", signal)
        self.webhooks.publish(signal)
