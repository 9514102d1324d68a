"""Shared counters: what Redis itself has of a shared book, read past every replica and every proxy."""

from collections.abc import Iterable
from typing import NamedTuple

import redis

_COUNTERS = "bursar:{*}:counter:*"
_LEASED, _SPENT = "g", "s"
_TIMEOUT_S = 5.0

Cell = tuple[str, str, int]


class Debit(NamedTuple):
    """What one replica has of one counter in the window that began at `start_s`: its lease, and what it spent of it."""

    budget: str
    counter: str
    start_s: int
    replica: str
    leased: int
    spent: int

    @property
    def cell(self) -> Cell:
        """The budget, the counter and the window."""
        return self.budget, self.counter, self.start_s

    @property
    def debited(self) -> int:
        """What counts against the limit."""
        return max(self.leased, self.spent)


def debits(url: str) -> list[Debit]:
    """All that is known in the epochs that are in force; raises redis' own errors."""
    of = redis.Redis.from_url(url, decode_responses=True, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
    with of:
        return [debit for key in of.scan_iter(_COUNTERS) for debit in _of_counter(of, key)]


def _of_counter(of: "redis.Redis", key: str) -> Iterable[Debit]:
    shard, _, name = key.partition(":counter:")
    fields = {str(name): str(value) for name, value in of.hgetall(key).items()}
    if fields.get("epoch") != of.hget(f"{shard}:state", "epoch"):
        return  # left from before Redis forgot: it is not believed, and goes when it is next written
    budget, _, _, counter = name.split("|", 3)
    known: dict[tuple[int, str], dict[str, int]] = {}
    for field, value in fields.items():
        kind, _, rest = field.partition("|")
        if kind in (_LEASED, _SPENT):
            start, _, replica = rest.partition("|")
            known.setdefault((int(start), replica), {})[kind] = int(value)
    for (start_s, replica), values in known.items():
        yield Debit(budget, counter, start_s, replica, values.get(_LEASED, 0), values.get(_SPENT, 0))


def overspent(found: Iterable[Debit], limits: dict[str, int]) -> list[str]:
    """The counters of which more is debited than the limit of their budget, in any one window."""
    sums: dict[Cell, int] = {}
    for debit in found:
        sums[debit.cell] = sums.get(debit.cell, 0) + debit.debited
    return [f"{cell}: {amount} of {limits[cell[0]]}" for cell, amount in sums.items() if amount > limits[cell[0]]]


def spent_by_cell(found: Iterable[Debit]) -> dict[Cell, int]:
    """What all replicas together have spent, where that is anything."""
    sums: dict[Cell, int] = {}
    for debit in found:
        sums[debit.cell] = sums.get(debit.cell, 0) + debit.spent
    return {cell: amount for cell, amount in sums.items() if amount}


def unreturned(found: Iterable[Debit]) -> list[Debit]:
    """Leases, or parts of them, that are neither spent nor given back."""
    return [debit for debit in found if debit.debited > debit.spent]
