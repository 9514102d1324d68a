"""SLOs: what counts as an event and as a good one, in which window, and what the counts come to."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.amounts import MILLION
from ledger.journal import Journal
from ledger.shipper import Shipper
from ledger.slo import (
    DIMENSIONS,
    MILLI,
    Alert,
    Counts,
    Measured,
    Objective,
    assess,
    burn_milli,
    burn_milli_max,
    measured,
    question,
)
from ledger.store import Store

NOW_S = 1_773_146_000  # 2026-03-10, in the middle of an hour
MINUTE_S, HOUR_S, DAY_S = 60, 3_600, 86_400
FAST, SLOW = Alert(HOUR_S, 5 * MINUTE_S, 14_400), Alert(6 * HOUR_S, 30 * MINUTE_S, 6_000)
STREAM = {"stream": True, "status": "ok", "http_status": 200}
GOOD, BAD, NONE = Counts(1, 1), Counts(1, 0), Counts()
RANDOM_ROWS = 4_000
Row = dict[str, Any]
Count = Callable[[Objective], Measured]


def objective(kind: Any = "availability", objective_ppm: int = 990_000, **more: Any) -> Objective:
    """99 % over 28 days, of times under 100 ms."""
    values: dict[str, Any] = {"scope": (), "window_s": 28 * DAY_S, "fast": FAST, "slow": SLOW, "threshold_us": 100_000}
    return Objective("slo", "platform", kind=kind, objective_ppm=objective_ppm, **{**values, **more})


# What a row is, for each kind of objective that sees it as an event, and as which.
CASES: dict[str, tuple[Row, dict[str, Counts]]] = {
    "served": ({"status": "ok", "http_status": 200, "duration_us": 100_000}, {"availability": GOOD, "e2e": GOOD}),
    "served late": ({"status": "ok", "http_status": 200, "duration_us": 100_001}, {"availability": GOOD, "e2e": BAD}),
    "streamed": (
        {**STREAM, "ttft_us": 100_000, "duration_us": 400_000, "output_tokens": 4},
        {"availability": GOOD, "e2e": BAD, "ttft": GOOD, "inter_token": GOOD},
    ),
    "streamed, tokens a microsecond too slow": (
        {**STREAM, "ttft_us": 1, "duration_us": 300_002, "output_tokens": 4},
        {"availability": GOOD, "e2e": BAD, "ttft": GOOD, "inter_token": BAD},
    ),
    "streamed late": (
        {**STREAM, "ttft_us": 100_001, "duration_us": 100_001, "output_tokens": 1},
        {"availability": GOOD, "e2e": BAD, "ttft": BAD},
    ),
    "failed upstream": ({"status": "failed", "http_status": 502, "duration_us": 5}, {"availability": BAD}),
    "timed out upstream": ({**STREAM, "status": "failed", "http_status": 504, "ttft_us": 5}, {"availability": BAD}),
    "no runtime was healthy": ({"status": "failed", "http_status": 502}, {"availability": BAD}),
    "hold expired": ({"status": "expired", "duration_us": 10**9}, {"availability": BAD}),
    "overloaded": ({"status": "refused", "http_status": 503, "error_code": "overloaded"}, {"availability": BAD}),
    "no policy decided": ({"status": "refused", "http_status": 503}, {"availability": BAD}),
    "the gateway broke": ({"status": "refused", "http_status": 500}, {"availability": BAD}),
    "cut by a drain": (
        {**STREAM, "status": "cut", "http_status": 503, "ttft_us": 7},
        {"availability": BAD, "ttft": GOOD},
    ),
    "refused by policy": ({"status": "refused", "http_status": 403, "error_code": "policy_denied"}, {}),
    "refused by a budget": ({"status": "refused", "http_status": 429, "error_code": "insufficient_quota"}, {}),
    "withheld by verification": ({"status": "failed", "http_status": 403, "duration_us": 10**9}, {}),
    "asked wrongly": ({"status": "refused", "http_status": 400}, {}),
    "asked wrongly, said the runtime": ({"status": "failed", "http_status": 422, "duration_us": 10**9}, {}),
    "left before it began": ({"status": "refused", "http_status": 499, "error_code": "client_left"}, {}),
    "left soon": ({**STREAM, "status": "cut", "http_status": 499, "duration_us": 100_000}, {}),
    "left after waiting too long": (
        {**STREAM, "status": "cut", "http_status": 499, "duration_us": 100_001},
        {"e2e": BAD, "ttft": BAD},
    ),
    "left while reading": (
        {**STREAM, "status": "cut", "http_status": 499, "ttft_us": 9, "duration_us": 50, "output_tokens": 9},
        {"ttft": GOOD},
    ),
    "adjusted": ({"status": "adjusted", "duration_us": 10**9, "ttft_us": 10**9, "stream": True}, {}),
}


def random_rows() -> list[Row]:
    """Rows of every status over five weeks, in the order of time: the ledger inserts the rows of a month at once."""
    draw = random.Random(17)
    drawn = [
        {
            "ts_us": int((NOW_S - draw.choice((HOUR_S, DAY_S, 35 * DAY_S)) * draw.random() ** 2) * MILLION),
            "org": draw.choice(("acme", "umbra")),
            "team": draw.choice(("search", "ads")),
            "app": draw.choice(("chat", "it's a \\ \t test")),
            "model": draw.choice(("small", "large")),
            "status": draw.choice(("ok", "ok", "ok", "cut", "failed", "refused", "expired", "adjusted")),
            "http_status": draw.choice((0, 200, 400, 403, 429, 499, 500, 502, 503, 504)),
            "stream": draw.random() < 0.7,
            "ttft_us": draw.choice((0, draw.randrange(200_000))),
            "duration_us": draw.randrange(400_000),
            "output_tokens": draw.randrange(6),
        }
        for _ in range(RANDOM_ROWS)
    ]
    return sorted(drawn, key=lambda row: row["ts_us"])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A ledger with a row for each case, rows of known ages, and those drawn."""
    home = tmp_path_factory.mktemp("home")
    journal = Journal.open(home / "journal" / "w", snapshot=dict)
    for row in random_rows():
        journal.append("usage", row)
    for age_s, status in reversed(AGES):
        at_us = int((NOW_S - age_s) * MILLION)
        journal.append("usage", {"org": "ages", "ts_us": at_us, "status": status, "http_status": 502})
    for name, (row, _) in CASES.items():
        journal.append("usage", {"org": "cases", "app": name, "ts_us": (NOW_S - 60) * MILLION, **row})
    journal.close()
    store = Store(f"chdb://{home}/ledger")
    Shipper(home / "journal", store).round()
    yield store
    store.close()


@pytest.fixture(scope="module")
def count(store: Store) -> Count:
    """Counts as the ledger process would be asked to."""
    reader = store.connect({"readonly": 1})

    def run(of: Objective) -> Measured:
        asked = question(of, NOW_S)
        said = bytes(reader.raw_query(asked.sql, asked.parameters, fmt="JSONEachRow"))
        [row] = [json.loads(line) for line in said.splitlines()]
        return measured(row)

    return run


# Ages in seconds at the edges of the windows, which begin with their first instant and end before NOW_S.
AGES = (
    (0, "failed"),
    (0.000001, "ok"),
    (5 * MINUTE_S, "failed"),
    (5 * MINUTE_S + 1, "ok"),
    (30 * MINUTE_S, "failed"),
    (HOUR_S, "failed"),
    (HOUR_S + 0.000001, "ok"),
    (6 * HOUR_S, "failed"),
    (28 * DAY_S, "failed"),
    (28 * DAY_S + 0.000001, "failed"),
)


@pytest.mark.parametrize("kind", ["availability", "ttft", "inter_token", "e2e"])
@pytest.mark.parametrize("case", CASES)
def test_each_row_is_a_good_event_or_a_bad_one_or_none(count: Count, case: str, kind: str) -> None:
    found = count(objective(kind, scope=(("org", "cases"), ("app", case))))
    assert found.window == CASES[case][1].get(kind, NONE)
    assert found.window == found.fast_long == found.fast_short == found.slow_long == found.slow_short


def test_each_window_has_the_events_that_lie_in_it(count: Count) -> None:
    found = count(objective(scope=(("org", "ages"),)))
    assert found.fast_short == Counts(2, 1)
    assert found.slow_short == Counts(4, 2)
    assert found.fast_long == Counts(5, 2)
    assert found.slow_long == Counts(7, 3)
    assert found.window == Counts(8, 3)


def test_quantiles_are_those_of_the_events(count: Count) -> None:
    one = count(objective("ttft", scope=(("org", "cases"), ("app", "streamed"))))
    assert one.quantiles_us == (100_000, 100_000, 100_000)
    assert count(objective("ttft", scope=(("org", "cases"), ("app", "served")))).quantiles_us is None
    assert count(objective(scope=(("org", "cases"),))).quantiles_us is None
    times = sorted(row["duration_us"] for row in random_rows() if row["status"] == "ok" and is_in(row, 28 * DAY_S))
    found = count(objective("e2e", threshold_us=10**9, scope=())).quantiles_us
    assert found is not None
    for quantile, at_us in zip((0.5, 0.95, 0.99), found, strict=True):
        place = sum(each <= at_us for each in times) / len(times)
        assert abs(place - quantile) < 0.02


@pytest.mark.parametrize("kind", ["availability", "ttft", "inter_token", "e2e"])
@pytest.mark.parametrize(
    "scope",
    [
        (),
        (("org", "acme"),),
        (("org", "umbra"), ("model", "small")),
        (("app", "it's a \\ \t test"),),
        (("org", "acme"), ("team", "ads"), ("app", "chat"), ("model", "large")),
        (("team", "nobody"),),
    ],
)
def test_the_statement_counts_what_a_loop_over_the_rows_counts(count: Count, kind: str, scope: Any) -> None:
    of = objective(kind, scope=(*scope,))
    rows = [row for row in random_rows() if all(row[name] == value for name, value in scope)]
    if not scope:
        # Only the rows of this test have a team.
        rows += [{"ts_us": (NOW_S - 60) * MILLION, "org": "cases", **EMPTY, **row} for row, _ in CASES.values()]
        rows += [
            {"ts_us": int((NOW_S - age_s) * MILLION), **EMPTY, "status": status, "http_status": 502}
            for age_s, status in AGES
        ]
    found = count(of)
    for name, length_s in (
        ("window", of.window_s),
        ("fast_long", FAST.long_s),
        ("fast_short", FAST.short_s),
        ("slow_long", SLOW.long_s),
        ("slow_short", SLOW.short_s),
    ):
        events = [judged for row in rows if is_in(row, length_s) for judged in [judge(kind, row)] if judged is not None]
        assert getattr(found, name) == Counts(len(events), sum(events)), name


EMPTY: Row = {"status": "", "http_status": 0, "stream": False, "ttft_us": 0, "duration_us": 0, "output_tokens": 0}


def is_in(row: Row, length_s: int) -> bool:
    return bool((NOW_S - length_s) * MILLION <= row["ts_us"] < NOW_S * MILLION)


def judge(kind: str, row: Row, threshold_us: int = 100_000) -> bool | None:
    """Whether a row is a good event, or None where it is none: the rules as docs/slo.md says them."""
    status, ttft_us, duration_us = row["status"], row["ttft_us"], row["duration_us"]
    is_cut_late = status == "cut" and duration_us > threshold_us
    if kind == "availability":
        is_event = status in ("ok", "expired") or row["http_status"] >= 500
        return status == "ok" if is_event else None
    if kind == "e2e":
        return duration_us <= threshold_us if status == "ok" or is_cut_late else None
    if not row["stream"]:
        return None
    if kind == "ttft":
        if status in ("ok", "cut") and ttft_us:
            return bool(ttft_us <= threshold_us)
        return False if is_cut_late else None
    if status != "ok" or not ttft_us or row["output_tokens"] < 2:
        return None
    return Fraction(duration_us - ttft_us, row["output_tokens"] - 1) <= threshold_us


def test_the_index_finds_the_rows_of_a_scope(store: Store) -> None:
    """Months that lie before the window are never opened, and of the others only what may be of the scope."""
    asked = question(objective("ttft", scope=(("org", "acme"), ("model", "small"), ("app", "chat"))), NOW_S)
    reader = store.connect({"readonly": 1})
    plan = bytes(reader.raw_query(f"EXPLAIN indexes = 1 {asked.sql}", asked.parameters, fmt="TSVRaw")).decode()
    months, key = plan.split("Partition", 1)[1].split("PrimaryKey", 1)
    assert "toYYYYMM(ts) in [202602, +Inf)" in months
    condition = key.split("Condition:", 1)[1].split("Parts:", 1)[0]
    assert all(f"({column} in [" in condition for column in ("org", "model", "toStartOfHour(ts)"))


def test_values_are_parameters_and_never_text_of_the_statement() -> None:
    asked = question(objective(scope=tuple((name, f"{name}' OR 1") for name in DIMENSIONS)), NOW_S)
    assert "OR 1" not in asked.sql
    assert asked.parameters == {name: f"{name}' OR 1" for name in DIMENSIONS}


def window_of(total: int, bad: int) -> Measured:
    return Measured(window=Counts(total, total - bad))


def test_the_example_of_the_workbook() -> None:
    """99.9 % of 30 days: 14.4 times too fast for an hour takes 2 % of the budget, 6 times for six hours 5 %."""
    assert burn_milli(Counts(100_000, 98_560), 999_000) == 14_400
    of = objective(objective_ppm=999_000, window_s=30 * DAY_S)
    hours = 30 * 24
    after_fast = assess(of, window_of(100_000 * hours, 1_440))
    assert after_fast.remaining_permille == 980
    assert assess(of, window_of(100_000 * hours, 6 * 600)).remaining_permille == 950


def test_it_burns_only_while_both_windows_of_an_alert_do() -> None:
    calm, hot, warm = Counts(1_000, 1_000), Counts(1_000, 850), Counts(1_000, 930)
    whole = Counts(1_000_000, 999_000)

    def state(**of: Counts) -> tuple[str, int, int]:
        windows = dict.fromkeys(("fast_long", "fast_short", "slow_long", "slow_short"), calm) | of
        found = assess(objective(), Measured(window=whole, **windows))
        return found.state, found.fast_burn_milli, found.slow_burn_milli

    assert state() == ("ok", 0, 0)
    assert state(fast_long=hot) == ("ok", 0, 0)
    assert state(fast_long=hot, fast_short=hot) == ("burning", 15_000, 0)
    assert state(fast_long=hot, fast_short=warm) == ("ok", 7_000, 0)
    assert state(slow_long=warm, slow_short=hot) == ("burning", 0, 7_000)
    assert state(slow_short=hot) == ("ok", 0, 0)


def test_an_alert_starts_at_its_burn_and_not_before() -> None:
    for bad, state in ((59, "ok"), (60, "burning")):
        slow = Counts(1_000, 1_000 - bad)
        found = assess(objective(), Measured(Counts(10**6, 10**6), slow_long=slow, slow_short=slow))
        assert (found.state, found.slow_burn_milli) == (state, bad * 100)


def test_too_few_events_are_no_data_and_raise_no_alert() -> None:
    of = objective(events_min=10)
    nine = assess(of, window_of(9, 0))
    assert (nine.state, nine.remaining_permille) == ("no_data", 0)
    assert nine.why == "9 events in the window, where at least 10 are needed to judge"
    assert assess(of, window_of(10, 0)).state == "ok"
    night = Measured(Counts(10**6, 10**6), fast_long=Counts(9, 0), fast_short=Counts(9, 0))
    assert assess(of, night).fast_burn_milli == 0
    assert assess(of, night).state == "ok"
    assert assess(replace(of, events_min=9), night).state == "burning"
    assert assess(objective(), Measured()).state == "no_data"


ppm = st.integers(1, MILLION - 1)
events = st.integers(1, 10**12).flatmap(lambda total: st.tuples(st.just(total), st.integers(0, total)))


@given(events, ppm)
def test_burn_is_the_bad_share_over_the_share_allowed_rounded_up(of: tuple[int, int], objective_ppm: int) -> None:
    total, bad = of
    exact = Fraction(bad, total) / Fraction(MILLION - objective_ppm, MILLION) * MILLI
    burn = burn_milli(Counts(total, total - bad), objective_ppm)
    assert exact <= burn < exact + 1
    assert (burn == 0) == (bad == 0)


@given(events, ppm)
def test_nothing_is_left_of_the_budget_once_the_objective_is_missed(of: tuple[int, int], objective_ppm: int) -> None:
    total, bad = of
    found = assess(objective(objective_ppm=objective_ppm), window_of(total, bad))
    assert 0 <= found.remaining_permille <= MILLI
    assert (found.remaining_permille == MILLI) == (bad == 0)
    assert (found.state == "exhausted") == (found.remaining_permille == 0)
    if Fraction(total - bad, total) * MILLION < objective_ppm:
        assert found.state == "exhausted"
    left = 1 - Fraction(bad, total) / Fraction(MILLION - objective_ppm, MILLION)
    assert max(Fraction(0), left * MILLI - 1) <= found.remaining_permille <= max(Fraction(0), left * MILLI)


@given(events, ppm, st.integers(0, 10**6))
def test_another_bad_event_never_leaves_more(of: tuple[int, int], objective_ppm: int, more: int) -> None:
    total, bad = of
    before = assess(objective(objective_ppm=objective_ppm), window_of(total, bad))
    after = assess(objective(objective_ppm=objective_ppm), window_of(total + more, bad + more))
    assert after.remaining_permille <= before.remaining_permille


@given(ppm, st.integers(1, 10**9))
def test_no_burn_is_higher_than_that_of_nothing_but_bad_events(objective_ppm: int, total: int) -> None:
    worst = burn_milli(Counts(total, 0), objective_ppm)
    assert burn_milli_max(objective_ppm) <= worst <= burn_milli_max(objective_ppm) + 1
