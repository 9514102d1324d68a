"""The book: all or nothing over every matching budget, no overspend, and refusals that say the truth."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.amounts import MILLION, Amounts
from domain.charges import Charge
from ledger.book import Book
from ledger.budgets import Budget, Subject
from ledger.holds import Demand, Hold, Shortfall
from ledger.windows import parse_window
from tests.ledger.book_draws import budgets, demands, subjects

US = 1_000_000
NOW_S = 1_772_280_030  # 2026-02-28T12:00:30Z
NOW_US = NOW_S * US
ANYONE = Subject("acme", "search", "web", "", "k1", "", "small", "sim")


def budget(budget_id: str, resource: str = "tokens", limit: int = 100, window: str = "day") -> Budget:
    return Budget(budget_id, "finance", (), resource, limit, parse_window(window))


def take(book: Book, hold_id: str, demand: Demand, now_s: int = NOW_S) -> Hold | Shortfall:
    return book.hold(book.route(ANYONE, now_s), demand, hold_id, {}, now_s * US, 60)


def fixed(tokens: int = 0, **more: int) -> Demand:
    return Demand(Amounts(tokens=tokens, **more), Amounts(), 0, 0)


def refused(book: Book, demand: Demand, now_s: int = NOW_S) -> Shortfall:
    answer = take(book, "refused", demand, now_s)
    assert isinstance(answer, Shortfall)
    return answer


@given(
    st.tuples(*(budgets(f"b{index}") for index in range(5))),
    st.lists(st.tuples(subjects, demands(), st.integers(0, 20), st.sampled_from((0, 50, 100))), max_size=60),
)
def test_hard_budgets_are_never_overspent_by_settlements_within_their_holds(
    configured: tuple[Budget, ...], asked: list[tuple[Subject, Demand, int, int]]
) -> None:
    book = Book(configured, NOW_S)
    now_us = NOW_US
    for number, (subject, demand, wait_s, part) in enumerate(asked):
        now_us += wait_s * US
        hold = book.hold(book.route(subject, now_us // US), demand, f"h{number}", {}, now_us, 60)
        if isinstance(hold, Hold):
            assert demand.cap_min <= hold.cap <= demand.cap_max
            if number % 3:
                actual = Amounts(*(amount * part // 100 for amount in demand.at(hold.cap)))
                settlement = book.settle(hold.hold_id, actual, now_us)
                assert settlement is not None
                assert settlement.overages == ()
        for counter in book.counters(now_us // US):
            assert counter.budget.mode == "soft" or counter.spent + counter.held <= counter.limit


def test_a_hold_that_one_budget_cannot_take_is_taken_from_none() -> None:
    book = Book([budget("wide", limit=1_000), budget("narrow", limit=10)], NOW_S)
    short = refused(book, fixed(11))
    assert (short.budget, short.asked, short.remaining, short.limit) == ("narrow", 11, 10, 10)
    assert [(counter.spent, counter.held) for counter in book.counters(NOW_S)] == [(0, 0), (0, 0)]
    assert book.holds == {}


def test_a_cap_shrinks_to_the_tightest_budget_and_not_below_its_least() -> None:
    book = Book([budget("wide", limit=1_000), budget("narrow", limit=60)], NOW_S)
    rates = Amounts(tokens=2 * MILLION)
    shrunk = take(book, "h1", Demand(Amounts(tokens=10), rates, 5, 500))
    assert isinstance(shrunk, Hold)
    assert shrunk.cap == 25
    assert refused(book, Demand(Amounts(), rates, 1, 500)).budget == "narrow"


def test_a_soft_budget_counts_and_never_refuses() -> None:
    book = Book([replace(budget("soft", limit=10), mode="soft")], NOW_S)
    hold = take(book, "h1", fixed(1_000))
    assert isinstance(hold, Hold)
    book.settle("h1", Amounts(tokens=1_000), NOW_US)
    (counter,) = book.counters(NOW_S)
    assert (counter.spent, counter.available, counter.band) == (1_000, -990, "exhausted")


def test_more_than_was_held_is_posted_and_told() -> None:
    book = Book([budget("b")], NOW_S)
    take(book, "h1", fixed(10))
    settlement = book.settle("h1", Amounts(tokens=130), NOW_US)
    assert settlement is not None
    assert [tuple(overage) for overage in settlement.overages] == [("b", "*", "tokens", 120)]
    assert refused(book, fixed(1)).remaining == 0


def test_a_slot_is_given_back_even_by_a_hold_that_expires() -> None:
    book = Book([budget("slots", "concurrency", limit=1, window="total")], NOW_S)
    take(book, "h1", fixed(concurrency=1))
    assert refused(book, fixed(concurrency=1)).is_concurrency
    book.expire("h1", NOW_US)
    assert isinstance(take(book, "h2", fixed(concurrency=1)), Hold)


@pytest.mark.parametrize(
    ("windows", "named", "is_short"),
    [
        (("minute", "hour"), "hour", True),
        (("hour", "minute"), "hour", True),
        (("minute", "day", "hour"), "day", False),
        (("month", "total", "day"), "total", False),
    ],
)
def test_a_refusal_names_the_budget_that_stays_short_for_longest(
    windows: tuple[str, ...], named: str, *, is_short: bool
) -> None:
    book = Book([budget(window, window=window) for window in windows], NOW_S)
    take(book, "h1", fixed(100))
    short = refused(book, fixed(1))
    assert (short.window, short.is_short) == (named, is_short)


@pytest.mark.parametrize("window", ["minute", "day", "total"])
def test_a_full_window_is_named_before_a_slot_that_any_request_may_free(window: str) -> None:
    book = Book([budget("slots", "concurrency", limit=1, window="total"), budget("tokens", window=window)], NOW_S)
    take(book, "h1", fixed(100, concurrency=1))
    assert refused(book, fixed(1, concurrency=1)).budget == "tokens"
    assert refused(book, fixed(0, concurrency=1)).budget == "slots"


def test_a_request_larger_than_its_window_is_not_worth_a_retry() -> None:
    book = Book([budget("b", window="minute")], NOW_S)
    short = refused(book, fixed(101))
    assert (short.is_short, short.resets_at_s) == (False, None)


def test_a_budget_that_is_removed_and_added_back_remembers_what_was_open_and_what_ended_meanwhile() -> None:
    configured = [budget("b")]
    book = Book(configured, NOW_S)
    take(book, "open", fixed(30))
    take(book, "ends", fixed(40))
    book.configure([], NOW_S)
    settlement = book.settle("ends", Amounts(tokens=35), NOW_US)
    assert settlement is not None
    assert settlement.charges == (Charge("b", "*", NOW_S - 43_230, "tokens", 35),)
    assert book.counters(NOW_S) == []
    book.configure(configured, NOW_S)
    (counter,) = book.counters(NOW_S)
    assert (counter.spent, counter.held) == (35, 30)
    assert refused(book, fixed(36)).remaining == 35
    book.settle("open", Amounts(tokens=30), NOW_US)
    assert (counter.spent, counter.held) == (65, 0)


def test_a_limit_can_be_lowered_under_what_is_spent_and_raised_again() -> None:
    book = Book([budget("b")], NOW_S)
    take(book, "h1", fixed(60))
    book.configure([budget("b", limit=10)], NOW_S)
    assert refused(book, fixed(1)).remaining == 0
    book.configure([budget("b", limit=70)], NOW_S)
    assert isinstance(take(book, "h2", fixed(10)), Hold)
    assert refused(book, fixed(1)).remaining == 0


def test_a_budget_that_counts_something_else_now_begins_anew_and_can_go_back() -> None:
    book = Book([budget("b")], NOW_S)
    take(book, "h1", fixed(60))
    book.configure([budget("b", "requests")], NOW_S)
    book.settle("h1", Amounts(tokens=50, requests=1), NOW_US)
    assert isinstance(take(book, "h2", fixed(0, requests=100)), Hold)
    book.configure([budget("b")], NOW_S)
    assert refused(book, fixed(51)).remaining == 50


def test_bands_are_told_to_policy_per_resource_and_worst_first() -> None:
    book = Book([budget("wide", limit=1_000), budget("narrow"), budget("count", "requests", limit=10)], NOW_S)
    take(book, "h1", fixed(90, requests=1))
    book.settle("h1", Amounts(tokens=90, requests=1), NOW_US)
    headroom = book.route(ANYONE, NOW_S).headroom(NOW_S)
    assert (headroom.band, headroom.worst) == ("warn", "tokens")
    assert headroom.per_resource == (("requests", "ok"), ("tokens", "warn"))
    tomorrow = book.route(ANYONE, NOW_S).headroom(NOW_S + 86_400)
    assert tomorrow.band == "ok"


def test_a_request_that_no_budget_matches_is_held_on_nothing() -> None:
    book = Book([replace(budget("b"), scope=(("team", "ads"),))], NOW_S)
    hold = take(book, "h1", Demand(Amounts(tokens=10**12), Amounts(), 7, 7))
    assert isinstance(hold, Hold)
    assert (hold.lines, hold.cap) == ((), 7)
    assert book.route(ANYONE, NOW_S).headroom(NOW_S) == ("ok", "", ())
