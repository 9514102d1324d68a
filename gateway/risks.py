"""Risk at one worker: takes up signals, answers the level of a request, and keeps both over restarts and replicas."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog
from redis.asyncio import Redis

from domain.intent import Principal
from ledger.journal import JournalError, system_now_us
from ledger.records import SNAPSHOT
from ledger.shared_scores import Score, SharedScores, Table, Terms, exchange
from ledger.shared_store import FAULTS
from policy.risk import APP, BACK_S_MAX, GRAINS, KINDS, RUN, SCOPES_MAX, TEAM, LevelChange, Scope, Tracker, scopes_of
from policy.scoring import LEVELS, SIGNALS, MalformedScoring, Scoring, parse_scoring
from policy.spend import SpendWatch

log = structlog.get_logger("gateway")
US = 1_000_000
PERIOD_S = 1.0
RISK_LEVEL = "risk_level"
SCORING_APPLIED = "risk_scoring_applied"
TABLES = tuple(Table(kind, scopes_max) for kind, scopes_max in zip(KINDS, SCOPES_MAX, strict=True))
EXCHANGES_MAX = 8
TOLD_MAX = 500
PAUSE_S_MAX = 5.0
REASON_MAX = 300
_NORMAL = LEVELS[0]
# Names are printable, so this stands in none of them.
_SEPARATOR = "\x1f"
_SCOPE_BYTES = 256
_NAMES_OF = {TEAM: ("org", "team"), APP: ("org", "team", "app"), RUN: ("org", "run_id")}


class Risks:
    """The scores and levels of one worker. `replay` what its journal has, then `apply` a scoring; else all is `normal`.

    `on_change` records a level change and `on_scoring` a scoring, both in the journal; what the first cannot record now
    is recorded later. Where the book is shared, `link` it before the first signal, or that is told as an old one.
    """

    def __init__(self) -> None:
        self.now_us: Callable[[], int] = system_now_us
        self.on_change: Callable[[LevelChange], None] = _ignore
        self.on_scoring: Callable[[dict[str, Any]], None] = _ignore
        self.tracker: Tracker | None = None
        self.shared: SharedScores | None = None
        self._client: Redis | None = None
        self.failures_in_row = 0
        self._spends = SpendWatch()
        # What the ledger says of the scopes that are not at `normal`: level, score and when that was.
        self._told: dict[Scope, tuple[str, int, int]] = {}
        self.is_behind = False
        self._is_new = True

    def level(self, principal: Principal, run_id: str) -> str:
        """The level that a request is decided on: the worst of its team, its app and its run."""
        tracker = self.tracker
        if tracker is None:
            return _NORMAL
        return tracker.level_of(principal.org, principal.team, principal.app, run_id)

    def told(self, principal: Principal, run_id: str) -> dict[str, str] | None:
        """The level that a request is decided on and whose it is, as its caller is told; None where it is normal."""
        tracker = self.tracker
        if tracker is None:
            return None
        scope = tracker.worst_of(principal.org, principal.team, principal.app, run_id)
        return None if scope is None else {"level": tracker.level(scope), "scope": scope.text}

    def consume(self, row: Mapping[str, Any]) -> None:
        """Take up a `signal` row that is in the journal; levels rise before this returns.

        It never fails for the journal. A signal of no team and no run is nobody's; rows of other names are not of risk.
        """
        tracker = self.tracker
        if tracker is None or row["name"] not in SIGNALS:
            return
        name, at_s, count = row["name"], row["ts_us"] // US, int(row["value"])
        who = row["org"], row["team"], row["app"], row.get("run_id", "")
        changes = tracker.observe(name, *who, at_s, count)
        amount = tracker.weight(name, count)
        if self.shared is not None and amount > 0:
            for scope in scopes_of(*who):
                self.shared.add(scope.kind, _key(scope), amount, at_s)
        self._tell(changes)

    def is_outburst(self, org: str, team: str, app: str, cost_nusd: int) -> bool:
        """Take up what an app spent; whether that is far more in a minute than it is used to, said once of a minute."""
        return self._spends.spend(org, team, app, cost_nusd, self._now_s())

    def apply(self, scoring: Scoring) -> None:
        """Go by a scoring from now on; raises JournalError, and changes nothing, where it cannot be recorded.

        One that is in force already is recorded anew where the clock has been set back, for scores go on from there.
        """
        now_s, tracker = self._now_s(), self.tracker
        is_known = tracker is not None and tracker.scoring == scoring and not self._is_back(tracker, now_s)
        if not is_known:
            self.on_scoring(scoring.document())
        if tracker is None:
            tracker = self.tracker = Tracker(scoring)
        for scope, (level, score, at_s) in self._told.items() if self._is_new else ():
            tracker.recall(scope, level, score, at_s, now_s)
        self._is_new = False
        self._tell(tracker.tick(now_s) if is_known else self._go_by(tracker, scoring, now_s))
        self._catch_up(tracker)
        if self.shared is not None:
            self.shared.terms = _terms(scoring)
        elif self._client is not None:
            self.link(self._client)

    def link(self, client: Redis) -> None:
        """Share scores with other replicas through the Redis of the book."""
        self._client = client
        if self.tracker is not None:
            self.shared = SharedScores(TABLES, _Own(self.tracker), _terms(self.tracker.scoring))

    def tick(self) -> None:
        """Let levels fall whose time has come, and record what could not be recorded before."""
        tracker = self.tracker
        if tracker is None:
            return
        if tracker.is_back(self._now_s()):
            with suppress(JournalError):  # until it can be recorded, scores stand still
                self.apply(tracker.scoring)
        self._tell(tracker.tick(self._now_s()))
        if self.is_behind:
            self._catch_up(tracker)

    async def run(self) -> None:
        """Tick, and share where the book is shared, each second until cancelled."""
        while True:
            await asyncio.sleep(PERIOD_S if self.failures_in_row < 2 else min(PAUSE_S_MAX, self.failures_in_row))
            self.tick()
            await self.share()

    async def share(self) -> None:
        """Tell other replicas what happened here and take up what happened there; what is away is asked again later."""
        if self._client is None or self.tracker is None or self.shared is None:
            return
        try:
            for _ in range(EXCHANGES_MAX):
                scores, is_more = await exchange(self._client, self.shared, self._now_s())
                self._take(self.tracker, scores)
                if not is_more:
                    break
        except FAULTS as error:
            self.failures_in_row += 1
            if self.failures_in_row == 2:
                log.error("risk scores are not shared", reason=" ".join(str(error).split())[:REASON_MAX])
        else:
            if self.failures_in_row > 1:
                log.info("risk scores are shared again")
            self.failures_in_row = 0

    def snapshot(self) -> dict[str, Any]:
        """What `replay` goes on from, for the snapshot that opens a segment of the journal."""
        tracker = None if self.tracker is None else self.tracker.snapshot()
        return {
            "tracker": tracker,
            "told": [(*scope, *told) for scope, told in self._told.items()],
            "spends": self._spends.snapshot(),
        }

    def snapshot_bytes(self) -> int:
        """About how large a snapshot is."""
        scopes = 0 if self.tracker is None else len(self.tracker)
        return (scopes + len(self._told) + len(self._spends)) * _SCOPE_BYTES

    def replay(self, kind: str, body: dict[str, Any]) -> None:
        """Take up one record of a journal that is read again."""
        if kind == SNAPSHOT:
            self._restore(body.get("risks") or {})
        elif kind == "control" and body["action"] == SCORING_APPLIED:
            self._rescore(body["detail"], int(body["ts_us"]) // US)
        elif kind == "signal" and body["name"] == RISK_LEVEL:
            self._recount(body)
        elif kind == "signal" and body["name"] in SIGNALS and self.tracker is not None:
            who = body["org"], body["team"], body["app"], body.get("run_id", "")
            self.tracker.observe(body["name"], *who, int(body["ts_us"]) // US, int(body["value"]))

    def _now_s(self) -> int:
        return self.now_us() // US

    def _take(self, tracker: Tracker, scores: Iterable[Score]) -> None:
        """Raise what others have seen more of; keys that are none of ours are nobody's."""
        now_s = self._now_s()
        for each in scores:
            scope = Scope(each.table, tuple(each.key.split(_SEPARATOR)))
            if len(scope.names) == len(_NAMES_OF[scope.kind]):
                self._tell(tracker.raise_to(scope, each.score, now_s))

    def _tell(self, changes: Sequence[LevelChange]) -> None:
        """Have level changes recorded; what the journal does not take now, or is too much at once, waits for a tick."""
        if len(changes) > TOLD_MAX:
            self.is_behind = True
        for change in changes[:TOLD_MAX]:
            try:
                self.on_change(change)
            except JournalError:
                self.is_behind = True
                continue
            if change.level == _NORMAL:
                self._told.pop(change.scope, None)
            else:
                self._told[change.scope] = change.level, change.score_milli * GRAINS, change.at_s

    def _catch_up(self, tracker: Tracker) -> None:
        """Record how levels stand where the ledger does not have it."""
        self.is_behind, now_s = False, self._now_s()
        changes = []
        for scope in dict.fromkeys((*tracker.raised(), *self._told)):
            was, level = self._told.get(scope, (_NORMAL, 0, 0))[0], tracker.level(scope)
            if was != level:
                score_milli = tracker.score(scope, now_s) // GRAINS
                changes.append(LevelChange(scope, was, level, score_milli, now_s, {}))
        self._tell(changes)

    def _restore(self, body: dict[str, Any]) -> None:
        try:
            tracker = body.get("tracker")
            self.tracker = None if tracker is None else Tracker.restored(tracker)
        except MalformedScoring as error:
            log.warning("the scores of before cannot be read", reason=str(error))
        self._told = {
            Scope(kind, tuple(names)): (level, score, at_s) for kind, names, level, score, at_s in body.get("told", ())
        }
        self._spends.restore(body.get("spends", []))

    def _rescore(self, document: object, at_s: int) -> None:
        try:
            scoring = parse_scoring(document)
        except MalformedScoring as error:
            log.warning("the scoring of before cannot be read", reason=str(error))
            return
        if self.tracker is None:
            self.tracker = Tracker(scoring)
        self._go_by(self.tracker, scoring, at_s)

    def _go_by(self, tracker: Tracker, scoring: Scoring, now_s: int) -> list[LevelChange]:
        """Configure the tracker; what a clock that was ahead has left in the ledger is as of now, too."""
        self._told = {scope: (level, score, min(at_s, now_s)) for scope, (level, score, at_s) in self._told.items()}
        return tracker.configure(scoring, now_s)

    def _is_back(self, tracker: Tracker, now_s: int) -> bool:
        """Whether the tracker, or what the ledger says, is of a time so late that the clock has been set back."""
        return tracker.is_back(now_s) or any(at_s > now_s + BACK_S_MAX for _, _, at_s in self._told.values())

    def _recount(self, body: dict[str, Any]) -> None:
        """Take up what the ledger says of a level; the signals behind it may stand in the journal after it."""
        scope, at_s = scope_of(body), int(body["ts_us"]) // US
        if body["level"] == _NORMAL:
            self._told.pop(scope, None)
        else:
            self._told[scope] = body["level"], int(body["value"]) * GRAINS, at_s
        if self.tracker is not None:
            self.tracker.fall(scope, at_s)  # or it would fall, and be recorded, once more


class _Own:
    """What the tracker of this replica knows, by the keys that replicas share."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def scored(self) -> list[tuple[int, str]]:
        return [(scope.kind, _key(scope)) for scope in self._tracker.scopes()]

    def score(self, table: int, key: str, now_s: int) -> int:
        return self._tracker.score(Scope(table, tuple(key.split(_SEPARATOR))), now_s)


def names_of(scope: Scope) -> dict[str, str]:
    """The columns of a row that name a scope; those that do not belong to it are empty."""
    named = dict(zip(_NAMES_OF[scope.kind], scope.names, strict=True))
    return {"org": "", "team": "", "app": "", "run_id": "", **named}


def scope_of(row: dict[str, Any]) -> Scope:
    """The scope that a row names."""
    kind = RUN if row.get("run_id") else APP if row["app"] else TEAM
    return Scope(kind, tuple(row[name] for name in _NAMES_OF[kind]))


def _key(scope: Scope) -> str:
    return _SEPARATOR.join(scope.names)


def _terms(scoring: Scoring) -> Terms:
    return Terms(scoring.half_life_s, scoring.score_max_milli * GRAINS, GRAINS)


def _ignore(_: object) -> None:
    """Nobody records it."""
