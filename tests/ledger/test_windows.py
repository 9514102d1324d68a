"""Windows: calendar spans in UTC, and rolling ones in which no interval of their length overspends."""

import calendar
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.amounts import Amounts
from ledger.book import Book
from ledger.budgets import Budget, Subject
from ledger.holds import Demand, Hold
from ledger.windows import parse_window
from tests.ledger.dict_book import span_s

TEXTS = ("minute", "hour", "day", "month", "total", "rolling:60s", "rolling:10m", "rolling:3h", "rolling:30d")
US = 1_000_000
ANYONE = Subject("acme", "search", "web", "", "k1", "", "small", "sim")

# Until 2100, a year divisible by four without a 29 February, is over.
seconds = st.integers(0, 4_133_980_800)


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


@pytest.mark.parametrize(
    ("window", "moment", "start", "end"),
    [
        ("month", "2026-01-31T23:59:59", "2026-01-01", "2026-02-01"),
        ("month", "2026-02-28T23:59:59", "2026-02-01", "2026-03-01"),
        ("month", "2028-02-29T12:00:00", "2028-02-01", "2028-03-01"),
        ("month", "2100-02-28T23:59:59", "2100-02-01", "2100-03-01"),
        ("month", "2026-12-31T23:59:59", "2026-12-01", "2027-01-01"),
        ("month", "2027-01-01T00:00:00", "2027-01-01", "2027-02-01"),
        ("day", "2028-02-29T00:00:00", "2028-02-29", "2028-03-01"),
        ("day", "2026-03-29T02:30:00", "2026-03-29", "2026-03-30"),
        ("hour", "2026-12-31T23:59:59", "2026-12-31T23:00:00", "2027-01-01"),
        ("minute", "2026-12-31T23:59:59", "2026-12-31T23:59:00", "2027-01-01"),
    ],
)
def test_a_calendar_window_begins_and_ends_with_its_unit_in_utc(window: str, moment: str, start: str, end: str) -> None:
    parsed = parse_window(window)
    assert parsed.cell_start_s(at(moment)) == at(start)
    assert parsed.cell_end_s(at(moment)) == parsed.cell_gone_s(at(moment)) == at(end)


@given(st.sampled_from(TEXTS), seconds)
def test_windows_agree_with_the_calendar_everywhere(text: str, now_s: int) -> None:
    window = parse_window(text)
    start_s, gone_s = span_s(text, now_s)
    assert window.cell_start_s(now_s) == start_s
    assert window.cell_gone_s(now_s) == window.cell_gone_s(start_s) == gone_s
    assert start_s <= now_s < window.cell_end_s(start_s) <= gone_s


@given(st.sampled_from(TEXTS[:4]), seconds)
def test_calendar_windows_follow_each_other_without_gap_or_overlap(text: str, now_s: int) -> None:
    window = parse_window(text)
    end_s = window.cell_end_s(now_s)
    assert window.cell_start_s(end_s) == end_s
    assert window.cell_start_s(end_s - 1) == window.cell_start_s(now_s)


@given(st.integers(1970, 2100), st.integers(1, 12))
def test_a_month_is_as_long_as_it_has_days(year: int, month: int) -> None:
    window = parse_window("month")
    start_s = at(f"{year}-{month:02}-01")
    assert window.cell_end_s(start_s) - start_s == calendar.monthrange(year, month)[1] * 86_400


@given(
    st.sampled_from(("rolling:60s", "rolling:2m", "rolling:10m")),
    st.integers(0, 86_400),
    st.lists(st.tuples(st.integers(0, 40 * US), st.integers(1, 40)), min_size=1, max_size=120),
)
def test_no_interval_of_a_rolling_windows_length_ever_exceeds_the_limit(
    text: str, start_s: int, arrivals: list[tuple[int, int]]
) -> None:
    limit = 100
    window = parse_window(text)
    book = Book([Budget("b", "finance", (), "tokens", limit, window)], start_s)
    spent: list[tuple[int, int]] = []
    now_us = start_s * US
    for number, (gap_us, amount) in enumerate(arrivals):
        now_us += gap_us
        demand = Demand(Amounts(tokens=amount), Amounts(), 0, 0)
        held = book.hold(book.route(ANYONE, now_us // US), demand, f"h{number}", {}, now_us, 60)
        if isinstance(held, Hold):
            book.settle(held.hold_id, Amounts(tokens=amount), now_us)
            spent.append((now_us, amount))
    length_us = window.duration_s * US
    for end_us, _ in spent:
        inside = sum(amount for at_us, amount in spent if end_us - length_us < at_us <= end_us)
        assert inside <= limit


def test_a_rolling_window_gives_back_what_is_a_whole_window_old() -> None:
    window = parse_window("rolling:60s")
    book = Book([Budget("b", "finance", (), "tokens", 10, window)], 1_000)
    demand = Demand(Amounts(tokens=10), Amounts(), 0, 0)
    answers = []
    for now_s in (1_000, 1_030, 1_060, 1_061, 1_121, 1_122):
        held = book.hold(book.route(ANYONE, now_s), demand, f"h{now_s}", {}, now_s * US, 600)
        answers.append(isinstance(held, Hold))
    assert answers == [True, False, False, True, False, True]


@pytest.mark.parametrize(
    "text", ["", "week", "Day", "rolling", "rolling:", "rolling:59s", "rolling:61s", "rolling:1w", "rolling:-1h", "5m"]
)
def test_an_unknown_window_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValueError, match="rolling"):
        parse_window(text)


@pytest.mark.parametrize("text", TEXTS)
def test_a_window_is_named_as_it_can_be_configured(text: str) -> None:
    window = parse_window(text)
    assert parse_window(window.text) == window


@pytest.mark.parametrize(
    ("text", "is_short"),
    [("minute", True), ("hour", True), ("rolling:1h", True), ("rolling:2h", False), ("day", False), ("total", False)],
)
def test_only_windows_of_up_to_an_hour_are_worth_waiting_for(text: str, is_short: bool) -> None:
    assert parse_window(text).is_short is is_short
