"""Charges: how one settlement is spread over the budgets that held it."""

from typing import NamedTuple

# A charge as it is journalled: plain, because the serialiser of the hot path knows no named tuples.
ChargeRow = tuple[str, str, int, str, int]


class Charge(NamedTuple):
    """An amount of one resource put on one counter of one budget, in the window that held it.

    `counter` is the canonical scope value of the counter and `window_start_s` the Unix second its window began (0 for
    a budget without windows).
    """

    budget: str
    counter: str
    window_start_s: int
    resource: str
    amount: int
