"""Counters: what counts when, under grants that end, clocks that go back and windows that are edited."""

from dataclasses import replace

import pytest

from domain.amounts import Amounts
from domain.charges import Charge
from ledger.accounts import IDLE_MAX
from ledger.book import Book
from ledger.budgets import Budget, Subject
from ledger.counters import Counter, Grant
from ledger.holds import Demand, Hold, Shortfall
from ledger.windows import parse_window

US = 1_000_000
NOON_S = 1_772_280_000  # 2026-02-28T12:00:00Z
ANYONE = Subject("acme", "search", "web", "", "k1", "", "small", "sim")


def budget(window: str = "day", limit: int = 100, resource: str = "tokens") -> Budget:
    return Budget("b", "finance", (), resource, limit, parse_window(window))


def try_to_hold(book: Book, amount: int, now_s: int, subject: Subject = ANYONE) -> Hold | Shortfall:
    try_to_hold.count += 1  # type: ignore[attr-defined]  # numbers the holds of the whole file
    demand = Demand(Amounts(tokens=amount, requests=1, concurrency=1), Amounts(), 0, 0)
    hold_id = f"h{try_to_hold.count}"  # type: ignore[attr-defined]  # as above
    return book.hold(book.route(subject, now_s), demand, hold_id, {}, now_s * US, 60)


try_to_hold.count = 0  # type: ignore[attr-defined]  # as above


def spend(book: Book, amount: int, now_s: int, subject: Subject = ANYONE) -> None:
    hold = try_to_hold(book, amount, now_s, subject)
    assert isinstance(hold, Hold)
    book.settle(hold.hold_id, Amounts(tokens=amount, requests=1), now_s * US)


def only(book: Book, now_s: int) -> Counter:
    (counter,) = book.counters(now_s)
    return counter


def grant(amount: int, expires_at_s: int, counter: str = "*", grant_id: str = "g1") -> Grant:
    return Grant(grant_id, "b", counter, amount, expires_at_s, "ann", "launch")


def test_a_grant_raises_the_limit_until_the_second_it_expires() -> None:
    book = Book([budget()], NOON_S)
    book.grant(grant(50, NOON_S + 10), NOON_S)
    spend(book, 120, NOON_S)
    assert only(book, NOON_S + 9).limit == 150
    assert isinstance(try_to_hold(book, 31, NOON_S + 9), Shortfall)
    last = try_to_hold(book, 30, NOON_S + 9)
    assert isinstance(last, Hold)
    book.void(last.hold_id)
    assert isinstance(try_to_hold(book, 1, NOON_S + 10), Shortfall)
    assert only(book, NOON_S + 10).limit == 100
    assert book.grants == {}


def test_a_repeated_grant_changes_nothing_whatever_it_says() -> None:
    book = Book([budget()], NOON_S)
    spend(book, 1, NOON_S)
    book.grant(grant(50, NOON_S + 10), NOON_S)
    book.grant(grant(7_000, NOON_S + 900), NOON_S)
    assert only(book, NOON_S).limit == 150
    assert only(book, NOON_S + 10).limit == 100


def test_a_grant_on_one_counter_leaves_the_others_alone() -> None:
    book = Book([replace(budget(), scope=(("team", "*"),))], NOON_S)
    book.grant(grant(50, NOON_S + 10, "team=search"), NOON_S)
    spend(book, 1, NOON_S)
    spend(book, 1, NOON_S, ANYONE._replace(team="ads"))
    assert {counter.name: counter.limit for counter in book.counters(NOON_S)} == {"team=search": 150, "team=ads": 100}


def test_a_clock_that_goes_back_moves_no_counter() -> None:
    book = Book([budget("minute")], NOON_S)
    spend(book, 60, NOON_S + 59)
    spend(book, 10, NOON_S + 60)
    assert isinstance(try_to_hold(book, 91, NOON_S + 58), Shortfall)
    late = try_to_hold(book, 90, NOON_S + 58)
    assert isinstance(late, Hold)
    assert [charge.window_start_s for charge in late.charges()] == [NOON_S + 60]


def test_counters_that_are_met_late_stand_in_the_same_second_as_all_others() -> None:
    book = Book([replace(budget("minute"), scope=(("team", "*"),))], NOON_S)
    spend(book, 60, NOON_S)
    try_to_hold(book, 1, NOON_S + 60, ANYONE._replace(team="ads"))
    again = try_to_hold(book, 100, NOON_S + 59)
    assert isinstance(again, Hold), "the minute that ended for one team has ended for the other too"


@pytest.mark.parametrize(
    ("before", "after", "counts_at_noon", "counts_next_noon"),
    [
        ("hour", "day", 30, 0),
        ("day", "month", 30, 30),
        ("day", "total", 30, 30),
        ("total", "day", 0, 0),
        ("minute", "rolling:1d", 30, 30),
        ("day", "rolling:1h", 0, 0),
        ("rolling:1d", "day", 30, 0),
    ],
)
def test_under_another_window_what_began_in_it_goes_on_counting(
    before: str, after: str, counts_at_noon: int, counts_next_noon: int
) -> None:
    book = Book([budget(before)], NOON_S)
    spend(book, 30, NOON_S)
    book.configure([budget(after)], NOON_S + 30)
    assert sum(counter.spent for counter in book.counters(NOON_S + 30)) == counts_at_noon
    next_noon_s = NOON_S + 86_400 - (86_400 if after in ("month", "total") else 0)
    assert sum(counter.spent for counter in book.counters(next_noon_s)) == counts_next_noon


def test_a_day_that_was_made_of_hours_still_ends_at_midnight() -> None:
    book = Book([budget("hour", limit=1_000)], NOON_S)
    spend(book, 30, NOON_S)
    book.configure([budget("day")], NOON_S + 60)
    hold = try_to_hold(book, 50, NOON_S + 61)
    assert isinstance(hold, Hold)
    assert [charge.window_start_s for charge in hold.charges()] == [NOON_S - 43_200]
    midnight_s = NOON_S + 43_200
    assert only(book, midnight_s - 1).available == 20
    assert isinstance(try_to_hold(book, 100, midnight_s), Hold)


def test_a_full_rolling_window_says_when_enough_of_it_comes_back() -> None:
    book = Book([budget("rolling:60s")], NOON_S)
    spend(book, 40, NOON_S)
    spend(book, 60, NOON_S + 10)
    counter = only(book, NOON_S + 20)
    assert counter.resets_at_s(40) == NOON_S + 61
    assert counter.resets_at_s(41) == NOON_S + 71
    assert counter.resets_at_s(101) is None


def test_what_can_never_fit_or_never_resets_has_no_reset() -> None:
    book = Book([budget("total")], NOON_S)
    spend(book, 100, NOON_S)
    assert only(book, NOON_S).resets_at_s(1) is None


@pytest.mark.parametrize(
    ("spent", "band"),
    [(0, "ok"), (3, "ok"), (4, "warn"), (5, "exhausted")],
)
def test_a_band_falls_at_its_share_of_the_limit_and_not_before(spent: int, band: str) -> None:
    book = Book([budget(limit=5)], NOON_S)
    if spent:
        spend(book, spent, NOON_S)
    else:
        book.route(ANYONE, NOON_S)
    assert only(book, NOON_S).band == band


def test_each_crossing_is_told_once_with_the_worst_band_it_reached() -> None:
    book = Book([budget(limit=100)], NOON_S)
    told = []
    for amount in (79, 1, 14, 1, 4, 1):
        hold = try_to_hold(book, amount, NOON_S)
        assert isinstance(hold, Hold)
        settlement = book.settle(hold.hold_id, Amounts(tokens=amount), NOON_S * US)
        assert settlement is not None
        told.append([crossing.band for crossing in settlement.crossings])
    assert told == [[], ["warn"], [], ["critical"], [], ["exhausted"]]


def test_a_settlement_after_its_window_ended_is_charged_there_and_crosses_nothing() -> None:
    book = Book([budget("minute")], NOON_S)
    hold = try_to_hold(book, 100, NOON_S + 59)
    assert isinstance(hold, Hold)
    settlement = book.settle(hold.hold_id, Amounts(tokens=100), (NOON_S + 60) * US)
    assert settlement is not None
    assert [charge[2:] for charge in settlement.charges] == [(NOON_S, "tokens", 100)]
    assert settlement.crossings == ()
    assert isinstance(try_to_hold(book, 100, NOON_S + 60), Hold)


def test_counters_of_values_that_are_gone_are_forgotten() -> None:
    per_run = replace(budget("minute"), scope=(("run", "*"),))
    book = Book([per_run], NOON_S)
    for number in range(50):
        spend(book, 1, NOON_S, ANYONE._replace(run=f"run-{number}"))
    held = try_to_hold(book, 1, NOON_S + 60, ANYONE._replace(run="run-7"))
    assert [counter.name for counter in book.counters(NOON_S + 60)] == ["run=run-7"]
    assert isinstance(held, Hold)


def test_a_correction_of_what_nobody_has_used_yet_crosses_nothing_where_the_limit_is_nothing() -> None:
    book = Book([budget("total", limit=0)], NOON_S)
    assert book.adjust([Charge("b", "*", 0, "tokens", 5)], NOON_S) == []
    assert only(book, NOON_S).spent == 5


def test_what_a_hold_of_nothing_ends_with_is_counted() -> None:
    per_run = replace(budget("rolling:60s"), scope=(("run", "*"),))
    book = Book([per_run], NOON_S)
    held = try_to_hold(book, 0, NOON_S, ANYONE._replace(run="r"))
    assert isinstance(held, Hold)
    book.counters(NOON_S + 2)
    book.settle(held.hold_id, Amounts(tokens=30), (NOON_S + 2) * US)
    assert [counter.spent for counter in book.counters(NOON_S + 2)] == [30]
    assert not book.counters(NOON_S + 3_600)


def test_what_a_hold_of_nothing_ends_with_is_kept_while_its_budget_is_gone() -> None:
    book = Book([budget("total")], NOON_S)
    held = try_to_hold(book, 0, NOON_S)
    assert isinstance(held, Hold)
    book.configure([], NOON_S)
    book.settle(held.hold_id, Amounts(tokens=30), NOON_S * US)
    book.configure([budget("total")], NOON_S)
    assert only(book, NOON_S).spent == 30


def test_idle_counters_without_a_window_do_not_pile_up() -> None:
    slots = replace(budget("total", resource="concurrency"), scope=(("run", "*"),))
    book = Book([slots], NOON_S)
    open_hold = try_to_hold(book, 1, NOON_S, ANYONE._replace(run="open"))
    assert isinstance(open_hold, Hold)
    for number in range(IDLE_MAX + 1):
        spend(book, 1, NOON_S, ANYONE._replace(run=f"run-{number}"))
    assert [counter.name for counter in book.counters(NOON_S)] == ["run=open"]
    for _ in range(100):
        spend(book, 1, NOON_S)
    assert only(book, NOON_S).held == 1
