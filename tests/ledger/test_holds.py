"""Holds: the table of legal moves, and demands that are rounded up."""

from collections.abc import Callable
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.amounts import MILLION, Amounts
from ledger.book import Book
from ledger.budgets import Budget, Subject
from ledger.holds import TRANSITIONS, Demand, Hold, IllegalMove, Move, State, moved
from ledger.windows import parse_window

NOW_S = 1_772_323_140
NOW_US = NOW_S * MILLION
ANYONE = Subject("acme", "search", "web", "", "k1", "", "small", "sim")

amounts = st.builds(Amounts, *[st.integers(0, 10**15)] * 10)


def test_the_table_allows_every_move_of_an_open_hold_and_the_retry_of_an_end() -> None:
    allowed = {(State.OPEN, move) for move in Move} | {(State.SETTLED, Move.SETTLE), (State.VOIDED, Move.VOID)}
    assert TRANSITIONS.keys() == allowed
    assert {after for (state, _), after in TRANSITIONS.items() if state is not State.OPEN} == {
        State.SETTLED,
        State.VOIDED,
    }


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("move", Move)
def test_a_move_lands_where_the_table_says_or_raises(state: State, move: Move) -> None:
    if (state, move) in TRANSITIONS:
        assert moved(state, move) is TRANSITIONS[state, move]
    else:
        with pytest.raises(IllegalMove, match=f"{state} cannot {move}"):
            moved(state, move)


MOVES: dict[Move, Callable[[Book, str], object]] = {
    Move.SETTLE: lambda book, hold_id: book.settle(hold_id, Amounts(tokens=3), NOW_US),
    Move.VOID: lambda book, hold_id: book.void(hold_id),
    Move.RENEW: lambda book, hold_id: book.renew(hold_id, NOW_US + MILLION, 60),
    Move.EXPIRE: lambda book, hold_id: book.expire(hold_id, NOW_US),
}


@pytest.mark.parametrize("first", [Move.SETTLE, Move.VOID, Move.EXPIRE])
@pytest.mark.parametrize("second", Move)
def test_a_hold_that_has_ended_is_never_moved_again(first: Move, second: Move) -> None:
    book = Book([Budget("b", "finance", (), "tokens", 100, parse_window("day"))], NOW_S)
    demand = Demand(Amounts(tokens=10), Amounts(), 0, 0)
    hold = book.hold(book.route(ANYONE, NOW_S), demand, "h1", {}, NOW_US, 60)
    assert isinstance(hold, Hold)
    MOVES[first](book, "h1")
    (counter,) = book.counters(NOW_S)
    before = (counter.spent, counter.held, hold.state, hold.expires_at_us)
    if first is second and first is not Move.EXPIRE:
        assert MOVES[second](book, "h1") is None
    else:
        with pytest.raises(IllegalMove):
            MOVES[second](book, "h1")
    assert (counter.spent, counter.held, hold.state, hold.expires_at_us) == before


@pytest.mark.parametrize("move", Move)
def test_a_hold_that_nobody_knows_cannot_move(move: Move) -> None:
    book = Book([], NOW_S)
    with pytest.raises(IllegalMove, match="not known"):
        MOVES[move](book, "h1")


@given(amounts, amounts, st.integers(0, 10**9))
def test_a_demand_is_rounded_up_and_never_by_a_whole_unit(fixed: Amounts, rates: Amounts, cap: int) -> None:
    whole = Demand(fixed, rates, cap, cap).at(cap)
    for total, base, rate in zip(whole, fixed, rates, strict=True):
        assert total == ceil(base + Fraction(rate * cap, MILLION))
