"""Holds: what is set aside for one request while it runs.

Two laws. A hold moves only as the table below says; any other move raises `IllegalMove` and changes nothing.
A hold ends exactly once, and what it held is then either charged or returned, never both and never neither.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from domain.amounts import MILLION, Amounts
from domain.charges import Charge
from ledger.counters import Cell, Counter


class State(StrEnum):
    OPEN = "open"
    SETTLED = "settled"
    VOIDED = "voided"
    EXPIRED = "expired"


class Move(StrEnum):
    RENEW = "renew"
    SETTLE = "settle"
    VOID = "void"
    EXPIRE = "expire"


# A repeated settlement or void is a retry of the same message, so it lands where it already is.
TRANSITIONS: dict[tuple[State, Move], State] = {
    (State.OPEN, Move.RENEW): State.OPEN,
    (State.OPEN, Move.SETTLE): State.SETTLED,
    (State.OPEN, Move.VOID): State.VOIDED,
    (State.OPEN, Move.EXPIRE): State.EXPIRED,
    (State.SETTLED, Move.SETTLE): State.SETTLED,
    (State.VOIDED, Move.VOID): State.VOIDED,
}


class IllegalMove(Exception):
    """A hold was asked to do what its state does not allow: a bug in the caller, and nothing was changed."""


def moved(state: State, move: Move) -> State:
    """The state after a move; raises IllegalMove when the table has none."""
    try:
        return TRANSITIONS[state, move]
    except KeyError:
        raise IllegalMove(f"a hold that is {state} cannot {move}") from None


class Demand(NamedTuple):
    """What a request may use: `fixed` before its output, and rates per million output tokens up to a cap.

    The granted cap lies within `cap_min..cap_max` (both per choice); equal values mean that the caller did not allow
    the cap to shrink.
    """

    fixed: Amounts
    per_output_mtok: Amounts
    cap_min: int
    cap_max: int

    def at(self, cap: int) -> Amounts:
        """The whole demand if the output reached `cap`, rounded up."""
        return Amounts(
            *[fixed - (-rate * cap // MILLION) for fixed, rate in zip(self.fixed, self.per_output_mtok, strict=True)]
        )


class Line(NamedTuple):
    """One counter's part in a hold, in the cell of the time when it was held."""

    counter: Counter
    cell: Cell
    amount: int


@dataclass(slots=True)
class Hold:
    """A live or ended hold: its lines, the output cap it granted and when it would expire without renewal.

    `row` carries the columns that its `usage` row will begin with, so that it can be settled by whoever finds it.
    """

    hold_id: str
    lines: tuple[Line, ...]
    cap: int
    opened_at_us: int
    expires_at_us: int
    row: dict[str, Any]
    state: State = State.OPEN

    def charges(self) -> list[Charge]:
        """What the hold holds, as charges."""
        return [
            Charge(counter.budget.id, counter.name, cell.start_s, counter.budget.resource, amount)
            for counter, cell, amount in self.lines
        ]


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Why a hold did not fit: the counter that will be short for longest, in its resource's unit.

    `is_cut_off` when others may have what is lacking here and cannot be asked.
    """

    budget: str
    owner: str
    counter: str
    resource: str
    window: str
    limit: int
    remaining: int
    asked: int
    resets_at_s: int | None
    is_short: bool
    is_concurrency: bool
    is_cut_off: bool = False
