"""Risk: signals that fade into a score per team, app and run, and the level that each of these stands at.

A level rises as soon as the score is at its threshold. It falls by one only when the score has been under a lower
threshold for the whole dwell time, so that it never goes up and down with single signals. Scores are kept in grains, a
millionth of a milli, as whole numbers: what happened within one second comes to the same in any order.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from policy.scoring import LEVELS, SIGNALS, Scoring, parse_scoring

GRAINS = 1_000_000
KINDS = ("team", "app", "run")
TEAM, APP, RUN = range(3)
# A run costs its caller nothing, so runs have a table of their own and push out nothing but runs.
SCOPES_MAX = (1_000, 4_000, 4_000)
COUNT_MAX = 1_000_000
FALLS_MAX = 500
# A clock is set back by less than this now and then, and scores then stand still for as long.
BACK_S_MAX = 5
_ROUNDING_S = 1e-3
ELSEWHERE = "elsewhere"
_WEIGHT_AT = {signal: at for at, signal in enumerate(SIGNALS)}

Names = tuple[str, ...]


class Scope(NamedTuple):
    """What has a score: team (org, team), app (org, team, app) or run (org, run id)."""

    kind: int
    names: Names

    @property
    def text(self) -> str:
        """The scope for people: `app acme/search/web`."""
        return f"{KINDS[self.kind]} {'/'.join(self.names)}"


class LevelChange(NamedTuple):
    """A scope went from one level to another, at a Unix second; `signals` are the parts of its score by their names."""

    scope: Scope
    was: str
    level: str
    score_milli: int
    at_s: int
    signals: dict[str, int]


@dataclass(slots=True)
class _Entry:
    """One scope: its score as it was at `at_s`, its level, and from when on the score is too low for that level."""

    score: int
    at_s: int
    level: int
    low_from_s: int
    parts: dict[str, int]


class _Table:
    """The scopes of one kind, those at `normal` apart, each in the order in which they were last touched."""

    __slots__ = ("calm", "dropped", "raised", "scopes_max")

    def __init__(self, scopes_max: int) -> None:
        self.scopes_max = scopes_max
        self.calm: dict[Names, _Entry] = {}
        self.raised: dict[Names, _Entry] = {}
        self.dropped = 0

    def take(self, names: Names, now_s: int) -> _Entry | None:
        """The entry of a scope, taken out until it is put back; None where all there is room for is raised."""
        entry = self.raised.pop(names, None) or self.calm.pop(names, None)
        if entry is not None:
            return entry
        if len(self.calm) + len(self.raised) >= self.scopes_max:
            self.dropped += 1
            if not self.calm:
                return None
            del self.calm[next(iter(self.calm))]
        return _Entry(0, now_s, 0, 0, {})

    def put(self, names: Names, entry: _Entry) -> None:
        (self.raised if entry.level else self.calm)[names] = entry

    def entries(self) -> Iterator[tuple[Names, _Entry]]:
        yield from self.calm.items()
        yield from self.raised.items()


class Tracker:
    """The scores and levels of all scopes; it has one user at a time, and is told the time.

    Levels change in `observe`, `raise_to`, `configure` and `tick`, which return the changes, and in `recall` and
    `fall`, which take up what is on record.
    Scores stand still while the time is before theirs: where it `is_back`, `configure` has them go on.
    """

    def __init__(self, scoring: Scoring, scopes_max: tuple[int, int, int] = SCOPES_MAX) -> None:
        self._tables = tuple(_Table(most) for most in scopes_max)
        self._latest_s = 0
        self._use(scoring)

    def _use(self, scoring: Scoring) -> None:
        self.scoring = scoring
        self._rises = tuple(milli * GRAINS for milli in scoring.rises_at_milli)
        self._falls = tuple(milli * GRAINS for milli in scoring.falls_at_milli)
        self._score_max = scoring.score_max_milli * GRAINS

    def __len__(self) -> int:
        return sum(len(table.calm) + len(table.raised) for table in self._tables)

    @property
    def dropped(self) -> int:
        """How many scopes were pushed out at `normal`, or found only raised ones and were not taken up."""
        return sum(table.dropped for table in self._tables)

    def is_back(self, now_s: int) -> bool:
        """Whether there are scores of a time so long after now that the clock was ahead and has been set back."""
        return self._latest_s > now_s + BACK_S_MAX

    def level_of(self, org: str, team: str, app: str, run_id: str = "") -> str:
        """The worst level of a request's team, app and run."""
        teams, apps, runs = self._tables
        worst = 0
        if teams.raised and (found := teams.raised.get((org, team))) is not None:
            worst = found.level
        if apps.raised and (found := apps.raised.get((org, team, app))) is not None and found.level > worst:
            worst = found.level
        if runs.raised and (found := runs.raised.get((org, run_id))) is not None and found.level > worst:
            worst = found.level
        return LEVELS[worst]

    def worst_of(self, org: str, team: str, app: str, run_id: str) -> Scope | None:
        """Which of a request's team, app and run stands at the worst level, the widest of several; None at normal."""
        scopes = [scope for scope in scopes_of(org, team, app, run_id) if self.level(scope) != LEVELS[0]]
        return max(scopes, key=lambda scope: LEVELS.index(self.level(scope)), default=None)

    def level(self, scope: Scope) -> str:
        """The level of one scope."""
        entry = self._tables[scope.kind].raised.get(scope.names)
        return LEVELS[entry.level] if entry is not None else LEVELS[0]

    def score(self, scope: Scope, now_s: int) -> int:
        """The score of one scope now, in grains."""
        table = self._tables[scope.kind]
        entry = table.raised.get(scope.names) or table.calm.get(scope.names)
        return 0 if entry is None else self._faded(entry.score, now_s - entry.at_s)

    def scopes(self) -> list[Scope]:
        """Every scope that has a score."""
        return [Scope(kind, names) for kind, table in enumerate(self._tables) for names, _ in table.entries()]

    def raised(self) -> list[Scope]:
        """Every scope above `normal`."""
        return [Scope(kind, names) for kind, table in enumerate(self._tables) for names in table.raised]

    def weight(self, signal: str, count: int = 1) -> int:
        """What so many signals add, in grains; KeyError for one that is none of SIGNALS."""
        return min(count, COUNT_MAX) * self.scoring.weights_milli[_WEIGHT_AT[signal]] * GRAINS

    def observe(
        self, signal: str, org: str, team: str, app: str, run_id: str, now_s: int, count: int = 1
    ) -> list[LevelChange]:
        """Take up signals of one request, and say which levels that changes; KeyError for an unknown one."""
        amount = self.weight(signal, count)
        changes: list[LevelChange] = []
        if amount > 0:
            for scope in scopes_of(org, team, app, run_id):
                self._add(scope, signal, amount, now_s, changes)
        return changes

    def raise_to(self, scope: Scope, score: int, now_s: int) -> list[LevelChange]:
        """Let a score be no less than other replicas together say, in grains; one that is more already stays."""
        changes: list[LevelChange] = []
        missing = min(score, self._score_max) - self.score(scope, now_s)
        if missing > 0:
            self._add(scope, ELSEWHERE, missing, now_s, changes)
        return changes

    def recall(self, scope: Scope, level: str, score: int, at_s: int, now_s: int) -> None:
        """Let a scope be no lower than what became by now of this level and score, which were recorded at `at_s`.

        What a clock that was ahead has recorded is as of now.
        """
        at_s = min(at_s, now_s)
        told = _Entry(min(score, self._score_max), at_s, LEVELS.index(level), at_s, {ELSEWHERE: score})
        if told.level:
            told.low_from_s = self._low_from_s(told)
        self._fall(scope, told, now_s, [])
        table = self._tables[scope.kind]
        entry = table.take(scope.names, now_s)
        if entry is None:
            return
        self._fall(scope, entry, now_s, [])
        self._fade(told, now_s)
        missing = told.score - self._faded(entry.score, now_s - entry.at_s)
        if missing > GRAINS:  # less is lost in recording and in fading by steps
            self._fade(entry, now_s)
            entry.score += missing
            entry.parts[ELSEWHERE] = entry.parts.get(ELSEWHERE, 0) + missing
        if told.level > entry.level:
            entry.level, entry.low_from_s = told.level, told.low_from_s
        table.put(scope.names, entry)

    def fall(self, scope: Scope, now_s: int) -> None:
        """Let one scope's level fall as far as was due until then, which somebody has recorded already."""
        table = self._tables[scope.kind]
        entry = table.raised.pop(scope.names, None)
        if entry is not None:
            self._fall(scope, entry, now_s, [])
            table.put(scope.names, entry)

    def tick(self, now_s: int) -> list[LevelChange]:
        """Let levels fall whose time has come, FALLS_MAX of a kind at a time, and forget what has faded at `normal`."""
        changes: list[LevelChange] = []
        due_s = now_s - self.scoring.dwell_s
        for kind, table in enumerate(self._tables):
            due = (names for names, entry in table.raised.items() if entry.low_from_s <= due_s)
            for names in list(islice(due, FALLS_MAX)):
                entry = table.raised.pop(names)
                self._fall(Scope(kind, names), entry, now_s, changes)
                table.put(names, entry)
            while table.calm:
                names, entry = next(iter(table.calm.items()))
                if self._faded(entry.score, now_s - entry.at_s):
                    break
                del table.calm[names]
        return changes

    def configure(self, scoring: Scoring, now_s: int) -> list[LevelChange]:
        """Go by this scoring from now on: what it finds too high rises at once, and what is too low dwells anew.

        Scores of a later time than now, which a clock that was ahead has left, fade from now on.
        """
        changes: list[LevelChange] = []
        entries = [
            (Scope(kind, names), entry) for kind, table in enumerate(self._tables) for names, entry in table.entries()
        ]
        for scope, entry in entries:
            self._fall(scope, entry, now_s, changes)
            self._fade(entry, now_s)
        self._use(scoring)
        for table in self._tables:
            table.calm, table.raised = {}, {}
        for scope, entry in entries:
            entry.score = min(entry.score, self._score_max)
            entry.low_from_s = entry.at_s = now_s
            self._rise(scope, entry, changes)
            self._tables[scope.kind].put(scope.names, entry)
        self._latest_s = now_s
        return changes

    def snapshot(self) -> dict[str, Any]:
        """All of it as JSON takes it; `restored` makes the same of it."""
        return {
            "scoring": self.scoring.document(),
            "scopes": [
                (kind, names, entry.level, entry.score, entry.at_s, entry.low_from_s, entry.parts)
                for kind, table in enumerate(self._tables)
                for names, entry in table.entries()
            ],
        }

    @classmethod
    def restored(cls, body: dict[str, Any], scopes_max: tuple[int, int, int] = SCOPES_MAX) -> "Tracker":
        """The tracker of a snapshot, with at most as many scopes as there is room for now."""
        tracker = cls(parse_scoring(body["scoring"]), scopes_max)
        for kind, names, level, score, at_s, low_from_s, parts in body["scopes"]:
            table = tracker._tables[kind]
            if table.take(tuple(names), at_s) is not None:
                table.put(tuple(names), _Entry(score, at_s, level, low_from_s, dict(parts)))
                tracker._latest_s = max(tracker._latest_s, at_s)
        return tracker

    def _add(self, scope: Scope, part: str, amount: int, now_s: int, changes: list[LevelChange]) -> None:
        table = self._tables[scope.kind]
        entry = table.take(scope.names, now_s)
        if entry is None:
            return
        self._fall(scope, entry, now_s, changes)
        self._fade(entry, now_s)
        entry.score = min(entry.score + amount, self._score_max)
        entry.parts[part] = min(entry.parts.get(part, 0) + amount, self._score_max)
        self._rise(scope, entry, changes)
        table.put(scope.names, entry)

    def _fade(self, entry: _Entry, now_s: int) -> None:
        """Let a score be as of now; a clock that went back stands still meanwhile."""
        passed_s = now_s - entry.at_s
        self._latest_s = max(self._latest_s, now_s)
        if passed_s > 0:
            entry.score, entry.at_s = self._faded(entry.score, passed_s), now_s
            entry.parts = {name: left for name, part in entry.parts.items() if (left := self._faded(part, passed_s))}

    def _faded(self, score: int, passed_s: int) -> int:
        """What is left of a score after some seconds: under a milli, nothing."""
        if passed_s <= 0:
            return score
        left = int(score * 2.0 ** -(passed_s / self.scoring.half_life_s))
        return left if left >= GRAINS else 0

    def _rise(self, scope: Scope, entry: _Entry, changes: list[LevelChange]) -> None:
        was = entry.level
        while entry.level < len(self._rises) and entry.score >= self._rises[entry.level]:
            entry.level += 1
        if entry.level and entry.score >= self._falls[entry.level - 1]:
            entry.low_from_s = self._low_from_s(entry)
        if entry.level > was:
            changes.append(self._change(scope, was, entry, entry.at_s))

    def _fall(self, scope: Scope, entry: _Entry, now_s: int, changes: list[LevelChange]) -> None:
        """Let a level fall as often as was due until now, each time when it was."""
        while entry.level and now_s >= (due_s := entry.low_from_s + self.scoring.dwell_s):
            entry.level -= 1
            if entry.level:
                entry.low_from_s = max(due_s, self._low_from_s(entry))
            changes.append(self._change(scope, entry.level + 1, entry, due_s))

    def _low_from_s(self, entry: _Entry) -> int:
        """The first second at which the score is too low for the level, if nothing is added."""
        falls_at = self._falls[entry.level - 1]
        if entry.score < falls_at:
            return entry.at_s
        lasts_s = self.scoring.half_life_s * math.log2(entry.score / falls_at)
        # Whole seconds stay whole, whatever has been rounded off the score on the way.
        return entry.at_s + math.floor(lasts_s + _ROUNDING_S) + 1

    def _change(self, scope: Scope, was: int, entry: _Entry, at_s: int) -> LevelChange:
        passed_s = at_s - entry.at_s
        parts = {name: self._faded(part, passed_s) // GRAINS for name, part in entry.parts.items()}
        score_milli = self._faded(entry.score, passed_s) // GRAINS
        return LevelChange(scope, LEVELS[was], LEVELS[entry.level], score_milli, at_s, parts)


def scopes_of(org: str, team: str, app: str, run_id: str) -> list[Scope]:
    """The scopes of a request: its team, its app and its run; what is empty names none."""
    scopes = []
    if org and team:
        scopes.append(Scope(TEAM, (org, team)))
        if app:
            scopes.append(Scope(APP, (org, team, app)))
    if org and run_id:
        scopes.append(Scope(RUN, (org, run_id)))
    return scopes
