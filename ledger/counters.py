"""Counters: what has been spent and is held on one budget for one value of its scope."""

from collections import deque
from dataclasses import dataclass, field

from domain.amounts import MILLION, ceil_div
from domain.decision import BANDS, Band
from ledger.budgets import Budget
from ledger.windows import FOREVER_S


@dataclass(slots=True)
class Cell:
    """One span of a counter: a calendar window, a sixtieth of a rolling one, or all time."""

    start_s: int
    spent: int = 0
    held: int = 0
    live: bool = True


@dataclass(frozen=True, slots=True)
class Grant:
    """Extra limit given by a person for a while; `counter` is one counter's name or `*` for all of the budget's."""

    grant_id: str
    budget: str
    counter: str
    amount: int
    expires_at_s: int
    actor: str
    reason: str


# Stands in a counter that has not been turned yet; nothing is ever charged to it.
_NO_CELL = Cell(-1)


@dataclass(slots=True)
class Counter:
    """The cells of one counter that still count, with their sums, and the one that is charged now.

    Time is passed in and only ever moves forward. Cells are ordered by when they stop to count.
    """

    budget: Budget
    name: str
    cells: deque[Cell] = field(default_factory=deque)
    cell: Cell = field(default_factory=lambda: _NO_CELL)
    spent: int = 0
    held: int = 0
    limit: int = 0
    level: int = 0
    turns_s: int = 0
    grants: tuple[Grant, ...] = ()
    _warn_at: int = 0
    _critical_at: int = 0

    @property
    def available(self) -> int:
        """What can still be held; negative when an overage or a lowered limit took it below zero."""
        return self.limit - self.spent - self.held

    @property
    def band(self) -> Band:
        return BANDS[self.level]

    def configure(self, budget: Budget, grants: tuple[Grant, ...], now_s: int) -> None:
        """Take over a revision of the budget and the grants that concern this counter.

        Under another window each cell counts as if all of it had been charged when it began.
        """
        if budget.window != self.budget.window:
            self.cell = _NO_CELL
            self._sort(budget)
        self.budget = budget
        self.grants = grants
        self.turn(now_s)

    def turn(self, now_s: int) -> None:
        """Move to the cell and the grants of `now_s`: the cells and grants that ended no longer count."""
        window = self.budget.window
        start_s = window.cell_start_s(now_s)
        if start_s > self.cell.start_s:
            self.cell = self.cell_at(start_s)
        while window.cell_gone_s(self.cells[0].start_s) <= now_s:
            gone = self.cells.popleft()
            gone.live = False
            self.spent -= gone.spent
            self.held -= gone.held
        self.grants = tuple(grant for grant in self.grants if grant.expires_at_s > now_s)
        self.limit = self.budget.limit + sum(grant.amount for grant in self.grants)
        self._warn_at = _share(self.limit, self.budget.warn_ratio)
        self._critical_at = _share(self.limit, self.budget.critical_ratio)
        self.turns_s = min(
            window.cell_end_s(self.cell.start_s),
            window.cell_gone_s(self.cells[0].start_s),
            min((grant.expires_at_s for grant in self.grants), default=FOREVER_S),
        )
        self.grade()

    def grade(self) -> bool:
        """Set the band from what is spent; returns whether it fell to a worse one."""
        before = self.level
        spent = self.spent
        if spent < self._warn_at:
            self.level = 0
        elif spent < self._critical_at:
            self.level = 1
        else:
            self.level = 2 if spent < self.limit else 3
        return self.level > before

    def cell_at(self, start_s: int) -> Cell:
        """The cell that began at `start_s`, made in its place when there is none."""
        for cell in self.cells:
            if cell.start_s == start_s:
                return cell
        made = Cell(start_s)
        self.cells.append(made)
        self._sort(self.budget)
        return made

    @property
    def is_idle(self) -> bool:
        """Whether forgetting this counter loses nothing: nothing held and nothing spent that still counts."""
        return not self.held and not self.spent and not self.grants

    def resets_at_s(self, needed: int) -> int | None:
        """The Unix second at which `needed` would fit if nothing else were spent; None where waiting does not help."""
        if self.budget.window.kind == "total" or needed > self.limit:
            return None
        freed = self.available
        for cell in self.cells:
            freed += cell.spent + cell.held
            if freed >= needed:
                return self.budget.window.cell_gone_s(cell.start_s)
        return None

    def _sort(self, budget: Budget) -> None:
        self.cells = deque(sorted(self.cells, key=lambda cell: budget.window.cell_gone_s(cell.start_s)))


def _share(limit: int, ratio: float) -> int:
    """The least whole amount that is at least this part of a limit."""
    return ceil_div(limit * round(ratio * MILLION), MILLION)
