"""Governance: the parts of one gateway worker that every request passes, held together for the flow."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from domain.decision import Decision
from domain.ids import uuid7
from domain.intent import Intent
from gateway.catalogue import Catalogue
from gateway.recent import Recent
from gateway.repeats import Repeats
from gateway.rows import RISK_LEVEL
from gateway.waiting import Waiting
from gateway.webhooks import Webhooks
from ledger.book import Book, Crossing, Headroom, Settlement
from ledger.journal import Journal, JournalError
from ledger.lease_keeper import LeaseKeeper
from ledger.sequences import Sequences
from observability.metrics import Metrics
from policy.decider import Decider
from policy.port import PolicyInput


def system_now_us() -> int:
    """Unix time in microseconds."""
    return time.time_ns() // 1000


@dataclass(slots=True)
class Governance:
    """Book, journal, policy, catalogue and signals of one worker; `catalogue` is replaced whole on a reload.

    `keeper` is there when other workers share the book.
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
    hold_ttl_s: int
    now_us: Callable[[], int] = field(default=system_now_us)
    keeper: LeaseKeeper | None = None

    def decide(self, intent: Intent, model: str, headroom: Headroom) -> Decision:
        """What policy says of this intent on this model; raises PolicyUnavailable."""
        principal, run, catalogue = intent.principal, intent.run, self.catalogue
        return self.decider.decide(
            PolicyInput(
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
                RISK_LEVEL,
                catalogue.env_name,
                catalogue.freeze,
            )
        )

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

    def _cross(self, crossing: Crossing, row: dict[str, Any]) -> None:
        self._signal("budget_threshold", row, crossing.budget, crossing.band, crossing.spent, crossing._asdict())

    def _signal(
        self, name: str, row: dict[str, Any], subject: str, level: str, value: int, detail: dict[str, Any]
    ) -> None:
        now_us = self.now_us()
        signal = {
            "ts_us": now_us,
            "event_id": uuid7(now_us // 1000),
            "name": name,
            "org": row["org"],
            "team": row["team"],
            "app": row["app"],
            "subject": subject,
            "level": level,
            "value": value,
            "detail": detail,
        }
        self.journal.append("signal", signal)
        self.webhooks.publish(signal)
