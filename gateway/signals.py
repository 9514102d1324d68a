"""Signals: what requests did that their team, app and run answer for, counted by the second and written to the ledger.

Risk weighs them, so a flood of them must stay small and may never be lost in count: what cannot be told apart any more
is counted together, first by app and then for all.
"""

import asyncio
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import structlog

from domain.ids import uuid7
from ledger.journal import JournalError

log = structlog.get_logger(__name__)

PERIOD_S = 1.0
GROUPS_MAX = 256
OTHERS_MAX = 256
OTHER = "other"

POLICY_VIOLATION = "policy_violation"
TOOL_BLOCKED = "tool_blocked"
VERIFICATION_FAILED = "verification_failed"
UPSTREAM_FAILED = "upstream_error"
SPEND_ANOMALY = "spend_anomaly"
ROLLBACK = "rollback"
QUALITY_FAILED = "quality_failed"
QUALITY = "quality"
VERIFICATION_PASSED = "verification_passed"
VERIFICATION_UNMADE = "verification_unmade"


class Producer(NamedTuple):
    """Where a signal comes from, what one of it means, and the level that its rows have."""

    noted_by: str
    means: str
    level: str


PRODUCERS: Mapping[str, Producer] = MappingProxyType(
    {
        POLICY_VIOLATION: Producer(
            "`signal_sources.refused`, of a 403 whose reasons are not all circumstances",
            "a request that policy does not allow its caller",
            "warn",
        ),
        TOOL_BLOCKED: Producer(
            "`signal_sources.tools_blocked` and `tool_denied`, of tools taken out of a request or denied",
            "a tool that policy does not allow",
            "warn",
        ),
        VERIFICATION_FAILED: Producer(
            "`signal_sources.verified`, of a check that did not pass",
            "an answer or a tool call that a check of policy stopped",
            "alarm",
        ),
        UPSTREAM_FAILED: Producer(
            "`signal_sources.settled` and `refused`, of a runtime that failed or timed out",
            "a request that its runtime did not serve",
            "info",
        ),
        SPEND_ANOMALY: Producer(
            "`signal_sources.spend_anomaly`, of the detector in `gateway/risks.py`",
            "an app that spends far more than it is used to",
            "warn",
        ),
        ROLLBACK: Producer(
            "`signal_sources.Revisions`, of a bundle that was in force before, and `rolled_back`, of the loop",
            "a change that was taken back",
            "warn",
        ),
        QUALITY_FAILED: Producer(
            "`signal_sources.judged`, of a sampled answer under the passing score",
            "an answer that is empty, loops, refuses, is cut or breaks its schema",
            "warn",
        ),
    }
)


# What is counted beside them, so that a rate can be made of both, and weighs nothing.
UNWEIGHED: Mapping[str, str] = MappingProxyType({QUALITY: "ok", VERIFICATION_PASSED: "ok", VERIFICATION_UNMADE: "info"})


class Journal(Protocol):
    """What signals need of a journal."""

    def append(self, kind: str, body: Mapping[str, Any], /) -> int:
        """Writes one record; JournalError."""


class _Key(NamedTuple):
    name: str
    org: str
    team: str
    app: str
    run_id: str
    subject: str
    level: str


class _Group(NamedTuple):
    """What was noted under one key: since when, how often, and the first of it as an example."""

    since_us: int
    times: int
    request_id: str
    detail: Mapping[str, Any]


class Signals:
    """Counts what one worker notes and writes it as `signal` rows, of which `value` is how many.

    `consume` is given each row that risk weighs, once it is in the journal. While the journal takes nothing, or
    `has_room` says that what is left belongs to the settlements of open holds, the counts wait, in groups whose number
    is bounded.
    """

    def __init__(
        self,
        journal: Journal,
        has_room: Callable[[], bool],
        now_us: Callable[[], int],
        consume: Callable[[Mapping[str, Any]], None] = lambda row: None,
        *,
        groups_max: int = GROUPS_MAX,
        others_max: int = OTHERS_MAX,
    ) -> None:
        self._journal = journal
        self._has_room = has_room
        self._now_us = now_us
        self._consume = consume
        self._groups_max = groups_max
        self._others_max = others_max
        self._groups: dict[_Key, _Group] = {}
        self._said = ""

    @property
    def waiting(self) -> int:
        """How many groups are counted and not written yet."""
        return len(self._groups)

    def note(
        self,
        name: str,
        *,
        org: str = "",
        team: str = "",
        app: str = "",
        run_id: str = "",
        request_id: str = "",
        subject: str = "",
        count: int = 1,
        detail: Mapping[str, Any] | None = None,
        level: str = "",
    ) -> None:
        """Count something that happened; the first request and detail of a group stand for the others."""
        key = _Key(name, org, team, app, run_id, subject, level or _level_of(name))
        if key not in self._groups and len(self._groups) >= self._groups_max:
            key = self._folded(key)
            detail = {"folded": True}
        group = self._groups.get(key)
        if group is None:
            self._groups[key] = _Group(self._now_us(), count, request_id, detail or {})
        else:
            self._groups[key] = group._replace(times=group.times + count)

    def flush(self) -> int:
        """Write what was counted and return how many rows that made; what the journal does not take stays."""
        written = 0
        for key, group in list(self._groups.items()):
            if not self._has_room():
                self._say("the room left in the journal belongs to the settlements of what is open")
                return written
            row = _row(key, group, self._now_us())
            try:
                self._journal.append("signal", row)
            except JournalError as error:
                self._say(str(error))
                return written
            del self._groups[key]
            written += 1
            if key.name in PRODUCERS:
                self._consume(row)
        self._said = ""
        return written

    async def run(self) -> None:
        """Flush each second until cancelled, and then once more."""
        try:
            while True:
                await asyncio.sleep(PERIOD_S)
                self.flush()
        finally:
            self.flush()
            if self._groups:
                log.error("signals were not recorded", counts=self._counts())

    def _folded(self, key: _Key) -> _Key:
        """The group of an app for what is too much to tell apart, so that one that floods hides no other."""
        of_app = key._replace(run_id="", subject=OTHER)
        if of_app in self._groups or len(self._groups) < self._groups_max + self._others_max:
            return of_app
        return _Key(key.name, "", "", "", "", OTHER, key.level)

    def _say(self, reason: str) -> None:
        if reason != self._said:
            log.error("signals wait to be recorded", reason=reason, counts=self._counts())
            self._said = reason

    def _counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for key, group in self._groups.items():
            counts[key.name] = counts.get(key.name, 0) + group.times
        return counts


def _level_of(name: str) -> str:
    producer = PRODUCERS.get(name)
    return producer.level if producer is not None else UNWEIGHED[name]


def _row(key: _Key, group: _Group, now_us: int) -> dict[str, Any]:
    """The record of a group; a column that is empty is left out, as in every row.

    It is of the time when it is written, as are the records around it, for levels change meanwhile: whoever reads them
    again in this order must find what happened in it.
    """
    row: dict[str, Any] = {
        "ts_us": now_us,
        "event_id": uuid7(now_us // 1000),
        "name": key.name,
        "org": key.org,
        "team": key.team,
        "app": key.app,
        "level": key.level,
        "value": group.times,
        "detail": {**group.detail, "since_us": group.since_us},
    }
    if key.run_id:
        row["run_id"] = key.run_id
    if group.request_id:
        row["request_id"] = group.request_id
    if key.subject:
        row["subject"] = key.subject
    return row
