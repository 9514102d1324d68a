"""Headroom: how much room a scope has left for spending, for risk and for failing, and what binds it.

Each part is a whole number of thousandths, and the least of the three is the headroom. What is not known is no room:
its part is 0 and says so, and a policy that would go on without it can tell by the parts.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from domain.intent import Principal
from gateway.consistency import nearest
from gateway.slos import measure, percent, policy_input
from ledger.book import Book, Route
from ledger.budgets import Subject
from ledger.client import LedgerClient, LedgerUnavailable, QueryFailed
from ledger.counters import Counter
from ledger.slo import Measured, Objective, Status
from policy.risk import APP, TEAM, Tracker
from policy.risk import Scope as RiskScope
from policy.scoring import LEVELS

FULL = 1_000
RISK_PERMILLE = {"normal": 1_000, "elevated": 500, "high": 200, "critical": 0}
US = 1_000_000
# The threads that wait for the ledger are also those that wait for keys, files and reloads.
MEASURED_AT_ONCE_MAX = 2
_NO_ONE = "no application has a key for {}: look at `bursar key list`, or make one with `bursar key create`"


class UnknownScope(LookupError):
    """No application could call in this scope, so nothing can be said of it; the message says what to do."""


class Scope(NamedTuple):
    """What headroom is asked of; an empty dimension is not named, and none at all is the whole deployment."""

    org: str = ""
    team: str = ""
    app: str = ""
    model: str = ""

    def __str__(self) -> str:
        named = [f"{dimension}={value}" for dimension, value in zip(self._fields, self, strict=True) if value]
        return ", ".join(named) or "the whole deployment"


class Risk(NamedTuple):
    """The worst risk level of a scope and whose it is; None where it cannot be told, and then `where` says why."""

    level: str | None
    where: str


@dataclass(frozen=True, slots=True)
class Part:
    """Thousandths that are left of one thing, what binds it, and that in words; 0 where it is not `known`."""

    permille: int
    limited_by: str
    why: str
    known: bool = True


@dataclass(frozen=True, slots=True)
class Headroom:
    """The room of one scope, and the SLOs that were looked at."""

    scope: Scope
    budget: Part
    risk: Part
    error_budget: Part
    statuses: tuple[Status, ...]

    @property
    def parts(self) -> dict[str, Part]:
        """The parts by name, in the order in which they bind where they are equal."""
        return {"budget": self.budget, "risk": self.risk, "error_budget": self.error_budget}

    @property
    def binding(self) -> str:
        """The name of the part with the least room."""
        return min(self.parts, key=lambda name: self.parts[name].permille)

    @property
    def overall(self) -> int:
        return self.parts[self.binding].permille

    @property
    def known(self) -> bool:
        """Whether every part could be looked at."""
        return all(part.known for part in self.parts.values())

    def policy_input(self) -> dict[str, Any]:
        """The members `headroom` and `slos` of what the policies of changes and releases are asked."""
        rooms = {name: part.permille for name, part in self.parts.items()}
        return {"headroom": {**rooms, "overall": self.overall}, "slos": policy_input(self.statuses)}

    def view(self) -> dict[str, Any]:
        """As JSON: what policies see, what binds, and why."""
        bound = self.parts[self.binding]
        return {
            "scope": self.scope._asdict(),
            **self.policy_input(),
            "known": self.known,
            "limited_by": {"part": self.binding, "name": bound.limited_by, "why": bound.why},
            "parts": {
                name: {
                    "permille": part.permille,
                    "known": part.known,
                    "limited_by": part.limited_by,
                    "why": part.why,
                }
                for name, part in self.parts.items()
            },
        }


@dataclass(frozen=True, slots=True)
class Headrooms:
    """Gathers the headroom of scopes from one worker's book, its ledger and its risk scores.

    `principals` are those that have a key; `models` and `objectives` are those in force. `look` learns
    what other replicas have of counters, and `risk_of` tells of a scope's risk.
    """

    book: Book
    now_us: Callable[[], int]
    look: Callable[[Collection[Counter]], Awaitable[bool]]
    principals: Callable[[], Iterable[Principal]]
    models: Callable[[], Collection[str]]
    objectives: Callable[[], Sequence[Objective]]
    find_ledger: Callable[[], LedgerClient | None]
    risk_of: Callable[[Scope], Risk]
    _turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MEASURED_AT_ONCE_MAX))

    async def answer(self, org: str = "", team: str = "", app: str = "", model: str = "") -> dict[str, Any]:
        """The headroom of a scope as JSON; dimensions above a named one are found by who has a key. UnknownScope."""
        scope = resolved(Scope(org, team, app, model), self.principals(), self.models())
        return (await self.of(scope)).view()

    async def of(self, scope: Scope) -> Headroom:
        """The headroom of a scope now; what cannot be asked is a part that is not known."""
        binding = tuple(each for each in self.objectives() if covers(each, scope))
        async with self._turns:
            statuses, trouble = await asyncio.to_thread(self._measured, binding, self.now_us() // US + 1)
        subject = Subject(scope.org, scope.team, scope.app, user="", key="", run="", model=scope.model, runtime="")
        route = self.book.route(subject, self.now_us() // US)
        hard = [counter for counter, _, is_hard in route.counters if is_hard]
        is_fresh = await self.look(hard)
        now_s = self.now_us() // US
        return Headroom(
            scope,
            budget_part(self.book.route(subject, now_s), scope, now_s, is_fresh=is_fresh),
            risk_part(self.risk_of(scope)),
            error_budget_part(statuses, scope, trouble),
            tuple(statuses),
        )

    def _measured(self, objectives: Sequence[Objective], now_s: int) -> tuple[list[Status], str]:
        """How objectives stand, or that nothing is known of them and why."""
        if not objectives:
            return [], ""
        client = self.find_ledger()
        if client is None:
            return _unmeasured(objectives, "no ledger process runs on this home")
        try:
            return measure(client, objectives, now_s), ""
        except (LedgerUnavailable, QueryFailed) as error:
            return _unmeasured(objectives, f"the ledger cannot be asked: {error}")


def resolved(scope: Scope, principals: Iterable[Principal], models: Collection[str]) -> Scope:
    """The scope with the org and team that a named team or app is of; UnknownScope for one that nobody calls from.

    Otherwise a name with a mistake in it would have all the room there is.
    """
    if scope.model and scope.model not in models:
        raise UnknownScope(f"there is no model {scope.model}{nearest(scope.model, models)}")
    asked = scope[:3]
    depth = max((place for place, value in enumerate(asked, start=1) if value), default=0)
    if not depth:
        return scope
    known = {principal[:3] for principal in principals}
    found = {each[:depth] for each in known if all(value in ("", has) for value, has in zip(asked, each, strict=True))}
    if len(found) == 1:
        return Scope(*found.pop())._replace(model=scope.model)
    if found:
        several = " and ".join(f"({Scope(*each)})" for each in sorted(found)[:3])
        raise UnknownScope(f"{scope} is not one scope but {len(found)}, as {several}: name the org and the team too")
    alike = {str(Scope(*(has if value else "" for value, has in zip(asked, each, strict=True)))) for each in known}
    raise UnknownScope(_NO_ONE.format(scope) + nearest(str(scope._replace(model="")), alike))


def covers(objective: Objective, scope: Scope) -> bool:
    """Whether an SLO binds a scope: it is over all requests of the scope, or its own promise about one of its models.

    So an SLO of `app=chat, model=small` binds the app, and one of `model=small` only scopes that name that model.
    """
    named = dict(objective.scope)
    model = named.pop("model", "")
    if any(value != getattr(scope, dimension) for dimension, value in named.items()):
        return False
    own = next((dimension for dimension in ("app", "team", "org") if getattr(scope, dimension)), "")
    return model in ("", scope.model) or (not scope.model and (own in named or not own))


def budget_part(route: Route, scope: Scope, now_s: int, *, is_fresh: bool = True) -> Part:
    """The least that is left of the hard budgets that every request of a scope falls on, grants included.

    Budgets of a user, key, run or runtime, and of a model unless the scope names it, bind only a part of its requests.
    """
    route.headroom(now_s)  # turns the counters to the windows of now
    hard = [counter for counter, _, is_hard in route.counters if is_hard]
    if not hard:
        return Part(FULL, "", f"no hard budget is over all of {scope}")
    least = min(hard, key=_left_permille)
    budget, name = least.budget, f"{least.budget.id} ({least.name})"
    if not is_fresh:
        why = f"what other gateways leave of the shared budget {name} could not be found out now"
        return Part(0, name, why, known=False)
    left = f"{max(0, least.available):,} of {least.limit:,} {budget.resource}"
    why = f"budget {name} has {left} left, window {budget.window.text}"
    return Part(_left_permille(least), name, why)


def risk_of(tracker: Tracker | None, scope: Scope) -> Risk:
    """The worst level of a scope's team and app; without a team there is none, for each team has its own."""
    if tracker is None:
        return Risk(None, "no scoring is in force")
    names = (scope.org, scope.team, scope.app)
    scopes = [RiskScope(kind, names[: kind + 2]) for kind in (TEAM, APP) if all(names[: kind + 2])]
    if not scopes:
        return Risk(LEVELS[0], "")
    worst = max(scopes, key=lambda each: LEVELS.index(tracker.level(each)))
    return Risk(tracker.level(worst), worst.text)


def risk_part(risk: Risk) -> Part:
    """What the risk level of a scope leaves, by the table."""
    if risk.level not in RISK_PERMILLE:
        return Part(0, "", f"the risk level cannot be told: {risk.where}", known=False)
    why = f"the risk of {risk.where} is {risk.level}" if risk.where else "risk is of teams and apps, and none is named"
    return Part(RISK_PERMILLE[risk.level], risk.where, why)


def error_budget_part(statuses: Sequence[Status], scope: Scope, trouble: str = "") -> Part:
    """The least that is left of the error budgets of a scope; where no SLO covers it, nothing was promised."""
    if not statuses:
        return Part(FULL, "", f"no SLO is over {scope}: nothing was promised")
    least = min(statuses, key=lambda status: (status.remaining_permille, status.state == "no_data"))
    known = all(status.state != "no_data" for status in statuses)
    name = least.objective.id
    if trouble:
        return Part(0, name, trouble, known=False)
    if least.state == "no_data":
        return Part(0, name, f"SLO {name} cannot be judged: {least.why}", known=False)
    why = f"SLO {name} has {percent(least.remaining_permille, FULL, 1)} of its error budget left"
    return Part(least.remaining_permille, name, why, known=known)


def _unmeasured(objectives: Sequence[Objective], why: str) -> tuple[list[Status], str]:
    return [Status(each, Measured(), "no_data", why=why) for each in objectives], why


def _left_permille(counter: Counter) -> int:
    return max(0, counter.available) * FULL // counter.limit
