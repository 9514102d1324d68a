"""The journal, the signals and the risks of one worker, without the rest of it."""

from pathlib import Path
from typing import Any

import orjson

from domain.ids import uuid7
from domain.intent import Principal
from gateway.risks import RISK_LEVEL, SCORING_APPLIED, Risks, names_of
from gateway.signals import Signals
from ledger import recovery
from ledger.book import Book
from ledger.journal import Journal, JournalFull
from ledger.segments import read, replay_from_snapshot
from policy.risk import LevelChange
from policy.scoring import LEVELS, SIGNALS, Scoring, parse_scoring

US = 1_000_000
NOON_US = 1_772_280_000 * US  # 2026-02-28T12:00:00Z
SEGMENT_BYTES = 1 << 17
POINT = 1_000
WEB = Principal("acme", "search", "web", "", "k1")
OTHER = Principal("acme", "billing", "cron", "", "k2")


def scoring(**changes: Any) -> Scoring:
    """Each signal weighs 1, levels begin at 5, 10 and 20, and a score halves in 100 s."""
    return parse_scoring(
        {
            "half_life_s": 100,
            "weights_milli": dict.fromkeys(SIGNALS, POINT),
            "rises_at_milli": dict(zip(LEVELS[1:], (5_000, 10_000, 20_000), strict=True)),
            "falls_at_milli": dict(zip(LEVELS[1:], (2_500, 5_000, 10_000), strict=True)),
            "dwell_s": 60,
            "score_max_milli": 40_000,
        }
        | changes
    )


class Desk:
    """The journal, the signals and the risks of one worker that can die and be opened again on the same folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now_us = NOON_US
        self.is_full = False
        self.journal: Journal | None = None

    def open(self, by: Scoring | None = None) -> Risks:
        """Open it as the gateway does: replay, then apply the bundle's scoring."""
        is_new = not self.folder.exists()
        risks = self.risks = Risks()
        risks.now_us = lambda: self.now_us
        book = Book([], self.now_us // US)
        journal = self.journal = Journal.open(
            self.folder,
            segment_bytes=SEGMENT_BYTES,
            snapshot=lambda: {**recovery.snapshot(book), "risks": risks.snapshot()},
        )
        if not is_new:
            recovery.rebuild(book, replay_from_snapshot(self.folder), self.now_us // US, None, (risks.replay,))
        risks.on_change, risks.on_scoring = self._change, self._scoring
        self.signals = Signals(journal, lambda: not self.is_full, lambda: self.now_us, risks.consume)
        risks.apply(by or scoring())
        return risks

    def close(self) -> None:
        if self.journal is not None:
            self.journal.close()

    def happen(self, name: str, count: int = 1, who: Principal = WEB, run_id: str = "") -> None:
        """Something happens, and the second in which it did ends."""
        self.signals.note(name, org=who.org, team=who.team, app=who.app, run_id=run_id, count=count)
        self.signals.flush()

    def pass_s(self, seconds: int) -> None:
        """Time passes, and the worker ticks each second."""
        for _ in range(seconds):
            self.now_us += US
            self.risks.tick()

    def rows(self, kind: str = "signal", name: str = RISK_LEVEL) -> list[dict[str, Any]]:
        found = [orjson.loads(record.payload) for record in read(self.folder) if record.kind == kind]
        return [row for row in found if name in (row.get("name"), row.get("action"))]

    def steps(self) -> list[tuple[str, str, str]]:
        return [(row["subject"], row["detail"]["was"], row["level"]) for row in self.rows()]

    def _change(self, change: LevelChange) -> None:
        if self.is_full or self.journal is None:
            raise JournalFull("there is no room")
        row = {
            "ts_us": change.at_s * US,
            "name": RISK_LEVEL,
            **names_of(change.scope),
            "subject": change.scope.text,
            "level": change.level,
            "value": change.score_milli,
            "detail": {"was": change.was, "signals": change.signals},
        }
        self.journal.append("signal", row)

    def _scoring(self, document: dict[str, Any]) -> None:
        assert self.journal is not None
        row = {"action": SCORING_APPLIED, "actor": "start", "subject": "risk", "digest": "", "detail": document}
        self.journal.append("control", {"ts_us": self.now_us, "event_id": uuid7(), **row})
