"""A plain dictionary model of the budget book, written from the contract: charges in a dict, everything summed anew.

It looks at every charge ever made whenever it is asked anything, and it finds caps by trying them.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction

from domain.amounts import RESOURCES
from ledger.budgets import Budget, Subject
from ledger.counters import Grant
from ledger.holds import Demand

FOREVER_S = 1 << 62
LEVELS = ("ok", "warn", "critical", "exhausted")


def span_s(window: str, at_s: int) -> tuple[int, int]:
    """When the cell holding a second begins, and from when on it no longer counts."""
    if window == "total":
        return 0, FOREVER_S
    if window.startswith("rolling:"):
        length_s = int(window[8:-1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[window[-1]]
        width_s = length_s // 60
        start_s = at_s // width_s * width_s
        return start_s, start_s + width_s + length_s
    at = datetime.fromtimestamp(at_s, UTC)
    if window == "month":
        start = at.replace(day=1, hour=0, minute=0, second=0)
        end = (start + timedelta(days=32)).replace(day=1)
        return int(start.timestamp()), int(end.timestamp())
    cleared: dict[str, dict[str, int]] = {
        "minute": {"second": 0},
        "hour": {"second": 0, "minute": 0},
        "day": {"second": 0, "minute": 0, "hour": 0},
    }
    start_s = int(at.replace(**cleared[window]).timestamp())  # type: ignore[arg-type]  # all of them are ints
    return start_s, start_s + {"minute": 60, "hour": 3600, "day": 86_400}[window]


def name_of(budget: Budget, subject: Subject) -> str | None:
    """The counter of a budget that a subject falls on, or None."""
    values = {dimension: getattr(subject, dimension) for dimension, _ in budget.scope}
    if any(
        not values[dimension] if wanted == "*" else values[dimension] != wanted for dimension, wanted in budget.scope
    ):
        return None
    return ",".join(f"{dimension}={value}" for dimension, value in values.items()) or "*"


def is_named(budget: Budget, name: str) -> bool:
    """Whether some subject falls on a counter of this name."""
    values = dict(part.split("=") for part in name.split(",")) if name != "*" else {}
    blank = dict.fromkeys(Subject._fields, "")
    return name_of(budget, Subject(**{**blank, **values})) == name


@dataclass(frozen=True)
class Line:
    """An amount on one counter in one window; `gone_s` is when that window no longer counts."""

    budget: str
    resource: str
    counter: str
    start_s: int
    gone_s: int
    amount: int


@dataclass
class DictBook:
    """What the book must say; `now_s` never goes back."""

    budgets: dict[str, Budget]
    now_s: int
    spent: list[Line] = field(default_factory=list)
    holds: dict[str, list[Line]] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    grants: dict[str, Grant] = field(default_factory=dict)

    def matching(self, subject: Subject) -> list[tuple[Budget, str]]:
        """The counters that a subject's requests are held on."""
        named = [(budget, name_of(budget, subject)) for budget in self.budgets.values()]
        return [(budget, name) for budget, name in named if name is not None]

    def sums(self, budget: Budget, name: str) -> tuple[int, int, int]:
        """(spent, held, limit) of one counter."""

        def counted(lines: list[Line]) -> int:
            wanted = (budget.id, budget.resource, name)
            return sum(
                line.amount
                for line in lines
                if (line.budget, line.resource, line.counter) == wanted and line.gone_s > self.now_s
            )

        granted = sum(
            grant.amount
            for grant in self.grants.values()
            if grant.budget == budget.id and grant.counter in ("*", name) and grant.expires_at_s > self.now_s
        )
        held = [line for lines in self.holds.values() for line in lines]
        return counted(self.spent), counted(held), budget.limit + granted

    def level(self, budget: Budget, name: str) -> int:
        """How bad a counter's band is, from 0 (ok) to 3 (exhausted)."""
        spent, _, limit = self.sums(budget, name)
        if spent >= limit:
            return 3
        if spent < 0:
            return 0
        used = Fraction(spent, limit)
        return 2 if used >= Fraction(str(budget.critical_ratio)) else int(used >= Fraction(str(budget.warn_ratio)))

    def available(self, budget: Budget, name: str) -> int:
        spent, held, limit = self.sums(budget, name)
        return limit - spent - held

    def cap_that_fits(self, subject: Subject, demand: Demand) -> int | None:
        """The largest output cap that every hard budget can hold, found by trying each."""
        limits = [
            (RESOURCES.index(budget.resource), self.available(budget, name))
            for budget, name in self.matching(subject)
            if budget.mode == "hard"
        ]
        caps = range(demand.cap_max, demand.cap_min - 1, -1)
        return next((cap for cap in caps if all(needed(demand, i, cap) <= left for i, left in limits)), None)

    def hold(self, hold_id: str, subject: Subject, demand: Demand, cap: int) -> None:
        """Set the demand aside at this cap."""
        self.holds[hold_id] = [
            Line(
                budget.id,
                budget.resource,
                name,
                *span_s(budget.window.text, self.now_s),
                needed(demand, RESOURCES.index(budget.resource), cap),
            )
            for budget, name in self.matching(subject)
        ]

    def end(self, hold_id: str, state: str, spent: list[Line]) -> None:
        """End a hold in a state, with what it is charged."""
        del self.holds[hold_id]
        self.ended[hold_id] = state
        self.spent += spent

    def is_live(self, line: Line) -> bool:
        """Whether a line stands on a counter that is in force and in a window that still counts."""
        budget = self.budgets.get(line.budget)
        return (
            budget is not None
            and budget.resource == line.resource
            and is_named(budget, line.counter)
            and line.gone_s > self.now_s
        )


def needed(demand: Demand, index: int, cap: int) -> int:
    """What a demand needs of one resource at a cap, with a part of a unit taken as a whole one."""
    output = Fraction(demand.per_output_mtok[index] * cap, 1_000_000)
    return demand.fixed[index] + -int(-output // 1)
