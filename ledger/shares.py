"""Shares: what one replica knows of its part in one shared counter, and how much of it should lie ready there."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from ledger.counters import Counter

DRY_S = 0.05
DRY_MAX = 10_000
_RATE_S = 0.1


@dataclass(slots=True, eq=False)
class Share:
    """What this replica knows of its part in one shared counter.

    `is_known` once the store was told all cells. Of what requests ask for, by the exchange `answered`: `is_short` that
    it is not all here, `recall` the last recall before, and `pending` how many others have not answered the last one.
    `target` is what should lie ready, `needed` the most that was asked for at once while it is in use. `leased` is what
    the store has as the lease, which a limit that fell may have cut here. `seen_by` is the number of the last exchange
    whose answer said what all others have.
    """

    name: str
    counter: Counter
    is_known: bool = False
    is_recalled: bool = False
    answered: int = 0
    is_short: bool = False
    recall: int = 0
    pending: int = 0
    leased: int = 0
    seen_by: int = 0
    target: int = 0
    needed: int = 0
    rate_per_s: float = 0.0
    used: int = 0
    used_in_s: int = -1
    seen_at_s: float = 0.0
    active_at_s: float = 0.0

    @property
    def is_watched(self) -> bool:
        """Whether the store must hear of it even when it is not used, or knows more of it than is known here."""
        counter, cell = self.counter, self.counter.cell
        if max(cell.lease, self.leased) > cell.spent or counter.held > 0 or not self.is_known:
            return True
        # What others have passes with time: a band that refuses all requests would never be lifted by one of them.
        is_passing = counter.budget.window.kind == "rolling" and counter.spent_elsewhere != 0
        return counter.held_elsewhere > 0 or is_passing

    @property
    def is_low(self) -> bool:
        """Whether half of what should lie ready is used up."""
        return 2 * max(0, self.counter.room) < self.target

    def see(self, elsewhere: tuple[int, int, int], number: int, *, is_all: bool) -> None:
        """Take what others have spent, hold and left stranded; what is only a part of it, where more is known by it."""
        counter, (spent, held, _) = self.counter, elsewhere
        if is_all:
            self.seen_by = number
        if is_all or spent + held > counter.spent_elsewhere + counter.held_elsewhere:
            counter.spent_elsewhere, counter.held_elsewhere, counter.stranded = elsewhere

    def is_through(self, recall: int) -> bool:
        """Whether all have answered a recall after that one.

        While one is pending it may have been opened just now or be the last, but the one before that is over.
        """
        return not self.pending or recall < self.recall - 1

    def retarget(self, used: int, at_s: float, horizon_s: float) -> None:
        """Set what should lie ready: what the present rate uses in the horizon, and as much again as requests ask for.

        Nothing once it has not been used for that long.
        """
        cell, elapsed_s = self.counter.cell, at_s - self.seen_at_s
        is_same = self.used_in_s == cell.start_s
        if is_same and elapsed_s >= _RATE_S:
            self.rate_per_s = (self.rate_per_s + max(0, used - self.used) / elapsed_s) / 2
        if not is_same or elapsed_s >= _RATE_S:
            self.used, self.used_in_s, self.seen_at_s = used, cell.start_s, at_s
        if at_s - self.active_at_s >= horizon_s:
            self.rate_per_s, self.needed, self.target = 0.0, 0, 0
        else:
            self.target = int(self.rate_per_s * horizon_s) + max(self.needed, cell.held, 1)


@dataclass(slots=True)
class Dry:
    """The shares of which all replicas were found a moment ago to have nothing left; no more than DRY_MAX of them."""

    _until_s: dict[str, float] = field(default_factory=dict)

    def note(self, shares: Iterable[Share], now_s: float) -> None:
        """Remember for DRY_S that nobody has anything left of these."""
        if len(self._until_s) >= DRY_MAX:
            self._until_s = {name: until_s for name, until_s in self._until_s.items() if until_s > now_s}
        if len(self._until_s) < DRY_MAX:
            self._until_s |= {share.name: now_s + DRY_S for share in shares}

    def has_any(self, shares: Iterable[Share], now_s: float) -> bool:
        """Whether any of these is remembered still."""
        return any(self._until_s.get(share.name, 0.0) > now_s for share in shares)
