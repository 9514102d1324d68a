"""A budget that lets more through than before is always listed: shown on books that hold what is drawn at random."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.amounts import RESOURCE_INDEX, RESOURCES
from gateway.loosening_budgets import budget_loosenings, outlasts
from ledger.book import Book
from ledger.budgets import DIMENSIONS, Budget, Subject
from ledger.holds import Demand, Hold
from ledger.windows import parse_window

NOON_S = 1_772_280_000
WINDOWS = ["minute", "hour", "day", "month", "total", "rolling:1m", "rolling:1h", "rolling:90m", "rolling:1d"]
SCOPES: list[dict[str, str]] = [{}, {"team": "a"}, {"team": "*"}, {"org": "o"}, {"org": "o", "team": "*"}, {"app": "x"}]
SUBJECTS = [Subject("o", team, app, "", "k", "", "m", "r") for team in "ab" for app in "xy"]

LENGTHS_S = [60, 3_600, 5_400, 86_400, 28 * 86_400]


@st.composite
def revisions(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """A budget and one that differs in some things, its limit near what would be as tight in so many windows."""
    before = {
        "resource": draw(st.sampled_from(["tokens", "requests"])),
        "scope": draw(st.sampled_from(SCOPES)),
        "limit": draw(st.integers(1, 10_000)),
        "window": draw(st.sampled_from(WINDOWS)),
        "mode": draw(st.sampled_from(["hard", "hard", "soft"])),
        "thresholds": [0.8, 0.95],
        "on_unavailable": draw(st.sampled_from(["deny", "lease", "allow"])),
    }
    after = {**before, "window": draw(st.sampled_from(WINDOWS))}
    if draw(st.integers(0, 3)) == 0:
        after |= {"scope": draw(st.sampled_from(SCOPES)), "mode": draw(st.sampled_from(["hard", "soft"]))}
    parts = draw(st.sampled_from([1, 2, 3, 24, 31, 60])) + draw(st.integers(0, 1))
    after["limit"] = max(1, before["limit"] // parts + draw(st.integers(-1, 1)))
    return before, after


@st.composite
def spells(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Times and who asks then: some in regular steps, about as long as a window, and all a little off."""
    at_s = draw(st.integers(0, 40 * 86_400))
    every_s = max(1, draw(st.sampled_from(LENGTHS_S)) + draw(st.sampled_from([-1, 0, 0, 1, 60])))
    found = []
    for _ in range(draw(st.integers(1, 35))):
        found.append((at_s, draw(st.integers(0, len(SUBJECTS) - 1)) if draw(st.booleans()) else 0))
        at_s += every_s
    return found


def section(**changes: Any) -> dict[str, Any]:
    usual = {"resource": "tokens", "scope": {"team": "a"}, "limit": 100, "window": "day", "mode": "hard"}
    return {**usual, "thresholds": [0.8, 0.95], "on_unavailable": "lease", **changes}


def paths(before: dict[str, Any], after: dict[str, Any], *, is_shared: bool = False) -> list[str]:
    return [each.path for each in budget_loosenings("b", before, after, is_shared=is_shared)]


def book_of(given: dict[str, Any]) -> Book:
    scope = tuple((dimension, given["scope"][dimension]) for dimension in DIMENSIONS if dimension in given["scope"])
    window = parse_window(given["window"])
    return Book([Budget("b", "o", scope, given["resource"], given["limit"], window, given["mode"])], NOON_S)


def takes(book: Book, subject: Subject, now_s: int, tokens: int, hold_id: str) -> bool:
    """Whether a book takes a request of so many tokens, which it keeps."""
    fixed = [0] * len(RESOURCES)
    fixed[RESOURCE_INDEX["tokens"]], fixed[RESOURCE_INDEX["requests"]] = tokens, 1
    demand = Demand(tuple(fixed), (0,) * len(RESOURCES), 0, 0)
    return isinstance(book.hold(book.route(subject, now_s), demand, hold_id, {}, now_s * 1_000_000, 60), Hold)


@given(revisions(), spells())
def test_what_fits_a_revision_that_is_not_listed_fitted_the_one_before(
    both: tuple[dict[str, Any], dict[str, Any]], asked: list[tuple[int, int]]
) -> None:
    """Each spell asks for all that the new book still takes; that, and nothing else, is put before the old one."""
    before, after = both
    if paths(before, after):
        return
    old, new = book_of(before), book_of(after)
    for number, (at_s, who) in enumerate(asked):
        now_s, tokens = NOON_S + at_s, after["limit"]
        while tokens:
            hold_id = f"{number}-{tokens}"
            if takes(new, SUBJECTS[who], now_s, tokens, hold_id):
                assert takes(old, SUBJECTS[who], now_s, tokens, hold_id), (before, after, now_s)
            tokens //= 2


@given(revisions(), spells(), spells())
def test_what_fits_after_a_change_that_is_not_listed_would_have_fitted_without_it(
    both: tuple[dict[str, Any], dict[str, Any]], asked_before: list[tuple[int, int]], asked: list[tuple[int, int]]
) -> None:
    """Two books take the same for a while; then one is changed, and what it takes from then on is put before both."""
    before, after = both
    if paths(before, after):
        return
    stays, changes = book_of(before), book_of(before)
    at_s = 0
    for number, (at_s, who) in enumerate(asked_before):
        for book in (stays, changes):
            takes(book, SUBJECTS[who], NOON_S + at_s, before["limit"] // 2 + 1, f"before-{number}")
    changes.configure(book_of(after).budgets.values(), NOON_S + at_s)
    later_s = NOON_S + at_s - asked[0][0]
    for number, (then_s, who) in enumerate(asked):
        tokens = after["limit"]
        while tokens:
            hold_id = f"{number}-{tokens}"
            if takes(changes, SUBJECTS[who], later_s + then_s, tokens, hold_id):
                assert takes(stays, SUBJECTS[who], later_s + then_s, tokens, hold_id), (before, after, then_s)
            tokens //= 2


def test_a_shorter_window_is_listed_however_low_its_limit_for_what_was_spent_is_forgotten() -> None:
    before, after = section(window="month", limit=3100), section(window="day", limit=100)
    book = book_of(before)
    assert takes(book, SUBJECTS[0], NOON_S, 3100, "all")
    assert not takes(book, SUBJECTS[0], NOON_S, 1, "one more")
    book.configure(book_of(after).budgets.values(), NOON_S)
    assert takes(book, SUBJECTS[0], NOON_S, 100, "a day's")
    assert paths(before, after) == ["b.window"]


@given(revisions())
def test_a_revision_that_tightens_alone_is_not_listed(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """The same budget with a lower limit, hard, and refused while away."""
    before, after = both
    tight = {**before, "limit": max(1, before["limit"] - after["limit"]), "mode": "hard", "on_unavailable": "deny"}
    assert paths(before, tight) == []


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"limit": 101}, "b.limit"),
        ({"mode": "soft"}, "b.mode"),
        ({"window": "hour"}, "b.window"),
        ({"window": "minute", "limit": 1}, "b.window"),
        ({"window": "hour", "limit": 1}, "b.window"),
        ({"window": "month", "limit": 101}, "b.window"),
        ({"thresholds": [0.9, 0.95]}, "b.thresholds"),
        ({"thresholds": [0.5, 0.96]}, "b.thresholds"),
        ({"on_unavailable": "allow"}, "b.on_unavailable"),
        ({"scope": {"team": "b"}}, "b.scope"),
        ({"scope": {"team": "a", "app": "x"}}, "b.scope"),
        ({"scope": {"team": "a", "user": "*"}}, "b.scope"),
        ({"resource": "requests"}, "b.resource"),
    ],
)
def test_what_is_looser_is_named(changes: dict[str, Any], path: str) -> None:
    assert paths(section(), section(**changes)) == [path]


@pytest.mark.parametrize(
    "changes",
    [
        {"limit": 99},
        {"window": "month"},
        {"window": "total"},
        {"window": "rolling:1d"},
        {"thresholds": [0.7, 0.9]},
        {"on_unavailable": "deny"},
        {"scope": {"team": "*"}},
        {"scope": {"team": "a", "app": None}},
    ],
)
def test_what_is_tighter_or_the_same_is_not(changes: dict[str, Any]) -> None:
    assert paths(section(), section(**changes)) == []


def test_a_shared_book_counts_another_window_from_nothing() -> None:
    assert paths(section(), section(window="month"), is_shared=True) == ["b.window"]
    assert paths(section(), section(limit=50), is_shared=True) == []


@pytest.mark.parametrize(
    ("old", "new", "is_longer"),
    [
        ("day", "day", True),
        ("day", "month", True),
        ("month", "total", True),
        ("day", "hour", False),
        ("month", "day", False),
        ("hour", "rolling:90m", True),
        ("day", "rolling:1h", False),
        ("month", "rolling:31d", True),
        ("month", "rolling:30d", False),
        ("rolling:1h", "hour", False),
        ("rolling:1h", "month", False),
        ("rolling:1h", "rolling:90m", True),
        ("rolling:1h", "rolling:3601m", True),
        ("rolling:90m", "rolling:1h", False),
        ("total", "month", False),
    ],
)
def test_a_longer_window_counts_all_that_a_shorter_one_does(old: str, new: str, *, is_longer: bool) -> None:
    assert outlasts(parse_window(old), parse_window(new)) is is_longer
