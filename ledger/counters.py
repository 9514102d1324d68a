"""Counters: what has been spent and is held on one budget for one value of its scope."""

from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum

from domain.amounts import MILLION, ceil_div
from domain.decision import BANDS, Band
from ledger.budgets import Budget
from ledger.windows import FOREVER_S


@dataclass(slots=True)
class Cell:
    """One span of a counter: a calendar window, a sixtieth of a rolling one, or all time.

    In a shared book `lease` is what the store has set aside for this replica in it, and `reported` what the store knows
    to be spent of that.
    """

    start_s: int
    spent: int = 0
    held: int = 0
    live: bool = True
    lease: int = 0
    reported: int = 0


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


class Tenure(IntEnum):
    """Whose limit a counter goes by: its own, its lease of a shared one, or neither while the store is away."""

    OWN = 0
    LEASED = 1
    CLOSED = 2
    OPEN = 3


# Stands in a counter that has not been turned yet; nothing is ever charged to it.
_NO_CELL = Cell(-1)


@dataclass(slots=True)
class Counter:
    """The cells of one counter that still count, with their sums, and the one that is charged now.

    Time is passed in and only ever moves forward. Cells are ordered by when they stop to count. `limit` is what all may
    spend, and `holds` how many are open, of nothing too. `ceiling` is what may be spent and held here: the limit, or in
    a shared book the lease. There `…_elsewhere` is what other replicas had when the store was last asked.
    """

    budget: Budget
    name: str
    cells: deque[Cell] = field(default_factory=deque)
    cell: Cell = field(default_factory=lambda: _NO_CELL)
    spent: int = 0
    held: int = 0
    holds: int = 0
    limit: int = 0
    ceiling: int = 0
    spent_elsewhere: int = 0
    held_elsewhere: int = 0
    stranded: int = 0
    tenure: Tenure = Tenure.OWN
    is_touched: bool = False
    level: int = 0
    turns_s: int = 0
    grants: tuple[Grant, ...] = ()
    _warn_at: int = 0
    _critical_at: int = 0

    @property
    def available(self) -> int:
        """What can still be held by anyone; negative when an overage or a lowered limit took it below zero."""
        return self.limit - self.spent - self.held - self.spent_elsewhere - self.held_elsewhere

    @property
    def room(self) -> int:
        """What can still be held here without asking anyone."""
        return self.ceiling - self.spent - self.held

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
            for cell in self.cells:
                # The store keeps another account for another window, where nothing is leased yet.
                cell.lease = 0
        self.budget = budget
        self.grants = grants
        self.turn(now_s)

    def turn(self, now_s: int) -> None:
        """Move to the cell and the grants of `now_s`: the cells and grants that ended no longer count."""
        window = self.budget.window
        start_s = window.cell_start_s(now_s)
        if start_s > self.cell.start_s:
            self.cell = self.cell_at(start_s)
            if window.kind != "rolling":
                self.spent_elsewhere = self.held_elsewhere = self.stranded = 0
        while window.cell_gone_s(self.cells[0].start_s) <= now_s:
            gone = self.cells.popleft()
            gone.live = False
            self.spent -= gone.spent
            self.held -= gone.held
        self.grants = tuple(grant for grant in self.grants if grant.expires_at_s > now_s)
        limit = self.budget.limit + sum(grant.amount for grant in self.grants)
        if limit < self.limit:
            # What was leased under a larger limit may not fit any more. Until the store was asked, nothing is free here
            # when a hold ends either, as others may have all the rest of that limit.
            self.cell.lease = min(self.cell.lease, self.cell.spent + self.cell.held)
            if self.tenure is not Tenure.OWN:
                rest = self.limit - self.spent - self.held - self.spent_elsewhere
                self.held_elsewhere = max(self.held_elsewhere, rest)
        self.limit = limit
        self._warn_at = _share(self.limit, self.budget.warn_ratio)
        self._critical_at = _share(self.limit, self.budget.critical_ratio)
        self.turns_s = min(
            window.cell_end_s(self.cell.start_s),
            window.cell_gone_s(self.cells[0].start_s),
            min((grant.expires_at_s for grant in self.grants), default=FOREVER_S),
        )
        self.refit()
        self.grade()

    def refit(self) -> None:
        """Set the ceiling anew: of a shared limit the lease in the cell charged now, as far as it still fits."""
        if self.tenure is Tenure.OWN:
            self.ceiling = self.limit
        elif self.tenure is Tenure.LEASED:
            cell = self.cell
            idle = cell.lease - cell.spent - cell.held
            self.ceiling = self.spent + self.held + min(idle, self.available)
        else:
            self.ceiling = FOREVER_S if self.tenure is Tenure.OPEN else -FOREVER_S

    def end(self, cell: Cell, held: int, spent: int) -> None:
        """End one hold: take what was held off a cell and put what was spent onto it."""
        self.holds -= 1
        cell.held -= held
        cell.spent += spent
        if cell.live:
            self.held -= held
            self.spent += spent
            if cell is not self.cell and self.tenure is Tenure.LEASED:
                # What an earlier cell of a rolling window did not use cannot be spent in this one.
                self.ceiling += spent - held

    def grade(self) -> bool:
        """Set the band from what is spent; returns whether it fell to a worse one."""
        before = self.level
        self.level = self.level_of(self.spent + self.spent_elsewhere)
        return self.level > before

    def level_of(self, spent: int) -> int:
        """How bad it is, from 0 (ok) to 3 (exhausted), to have spent this much."""
        if spent < self._warn_at:
            return 0
        if spent < self._critical_at:
            return 1
        return 2 if spent < self.limit else 3

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
        """Whether forgetting this counter loses nothing: no open hold, nothing leased or spent that still counts."""
        # Sums can be nothing where cells are not: a correction takes from one what another still has. And a hold of
        # nothing may end with something.
        return not self.holds and not self.grants and not any(cell.spent or cell.lease for cell in self.cells)

    def resets_at_s(self, needed: int) -> int | None:
        """The Unix second at which `needed` would fit if nothing else were spent; None where waiting does not help."""
        if self.budget.window.kind == "total" or needed > self.limit:
            return None
        freed = self.available
        if self.budget.window.kind != "rolling":
            freed += self.spent_elsewhere + self.held_elsewhere
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
