"""How much of a shared counter should lie ready: what its rate uses, and as much again as is asked for."""

import pytest

from ledger.counters import Cell, Counter
from ledger.shares import Share
from tests.ledger.replicas import NOW_S, budget

HORIZON_S = 4.0


@pytest.fixture
def share() -> Share:
    """A share that was used a moment ago, in a cell of which nothing is spent."""
    counter = Counter(budget(1_000), "org=acme")
    counter.cell = Cell(NOW_S)
    share = Share("b|tokens|day|org=acme", counter, active_at_s=100.0)
    share.retarget(0, 100.0, HORIZON_S)
    assert share.target == 1
    return share


def test_the_rate_is_that_of_late_and_half_of_what_it_was_before(share: Share) -> None:
    for at_s, used, target in ((101.0, 100, 201), (102.0, 300, 501), (103.0, 200, 251)):
        share.retarget(used, at_s, HORIZON_S)
        assert share.target == target, "what is freed lets the rate fall, and not below nothing"


def test_what_is_used_within_a_tenth_of_a_second_is_counted_with_the_next(share: Share) -> None:
    share.retarget(40, 100.05, HORIZON_S)
    assert share.target == 1
    share.retarget(50, 100.5, HORIZON_S)
    assert share.target == 201


def test_a_new_cell_goes_on_with_the_rate_and_counts_anew(share: Share) -> None:
    share.retarget(100, 101.0, HORIZON_S)
    share.counter.cell = Cell(NOW_S + 1)
    share.retarget(5_000, 102.0, HORIZON_S)
    assert share.target == 201
    share.retarget(5_050, 103.0, HORIZON_S)
    assert share.target == 201


def test_as_much_again_is_what_is_held_or_the_largest_request(share: Share) -> None:
    share.counter.cell.held = 30
    share.retarget(0, 100.0, HORIZON_S)
    assert share.target == 30
    share.needed = 70
    share.retarget(0, 100.0, HORIZON_S)
    assert share.target == 70


def test_after_a_pause_of_the_horizon_nothing_lies_ready_and_all_begins_anew(share: Share) -> None:
    share.needed = 70
    share.retarget(100, 101.0, HORIZON_S)
    share.retarget(100, 104.0, HORIZON_S)
    assert share.target == 0
    share.active_at_s = 104.0
    share.retarget(100, 104.05, HORIZON_S)
    assert share.target == 1
