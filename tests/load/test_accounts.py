"""The load test finds a disagreement wherever one is put, against metrics as Bursar really renders them."""

import copy
from typing import Any

import pytest

from domain.usage import NOTHING, Usage
from observability import names
from observability.metrics import Metrics
from tests.load.accounts import Check, Scrape, Sent, compare, unexercised, window_start_s

NOW_S = 86_400 + 3_661
USAGE = Usage(input_tokens=100, cached_input_tokens=30, output_tokens=10)


def row(status: str, http_status: int, requests: int, tokens: int = 0, cost: int = 0) -> dict[str, Any]:
    """A row of the ledger's answer; sums come as text, as ClickHouse writes large integers."""
    return {
        "team": "search",
        "status": status,
        "http_status": http_status,
        "requests": str(requests),
        "input": str(tokens * 10),
        "cached_input": str(tokens * 3),
        "output": str(tokens),
        "list_cost_nusd": str(cost),
        "gpu_us": str(tokens),
    }


class Books:
    """The accounts of an instance that served three requests, cut one and refused one."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.metrics.allow(models=["sim-small"], teams=["search"], runtimes=["sim"])
        self.metrics.watch(names.HOLDS_OPEN, lambda: self.holds_open)
        self.metrics.unauthenticated("unknown")
        for status in ("ok", "ok", "ok", "cut"):
            self.metrics.settled("chat", "sim-small", "search", status, USAGE, 7, 10, "sim", 9, 0, 1)
        self.metrics.settled("chat", "sim-small", "search", "refused", NOTHING, 0, 0, "", 9, 0, 1)
        self.holds_open = 0
        self.sent = Sent(known=5, unknown=1)
        self.usage = [row("ok", 200, 3, 30, 21), row("cut", 499, 1, 10, 7), row("refused", 429, 1)]
        key = {"budget": "org-day", "counter": "org=acme", "resource": "list_cost_nusd"}
        self.charges = [
            key | {"window_start_s": "86400", "amount": "28"},
            key | {"window_start_s": "0", "amount": "1000"},
        ]
        self.counters: list[dict[str, Any]] = [key | {"window": "day", "spent": 28, "held": 0}]

    def differing(self) -> list[Check]:
        scrape = Scrape(self.metrics.render().decode())
        checks = compare(self.sent, self.usage, self.charges, scrape, self.counters, NOW_S)
        return [check for check in checks if not check.agrees]


def test_accounts_that_agree_pass() -> None:
    books = Books()
    assert books.differing() == []
    assert unexercised(books.usage, books.charges, books.counters, 1) == []


def test_a_lost_row_is_found() -> None:
    books = Books()
    books.usage[0]["requests"] = "2"
    assert len(books.differing()) == 2


@pytest.mark.parametrize("column", ["input", "cached_input", "output", "list_cost_nusd", "gpu_us"])
def test_a_sum_that_is_off_by_one_is_found(column: str) -> None:
    books = Books()
    books.usage[0][column] = str(int(books.usage[0][column]) + 1)
    assert len(books.differing()) == 1


def test_a_counter_that_spent_more_or_still_holds_is_found() -> None:
    books = Books()
    books.counters[0]["spent"] = 29
    assert len(books.differing()) == 1
    books = Books()
    books.counters[0]["held"] = 1
    assert len(books.differing()) == 1


def test_open_holds_overages_and_expiries_are_found() -> None:
    books = Books()
    books.holds_open = 1
    books.metrics.overage("org-day")
    books.metrics.hold_expired()
    assert [check.what for check in books.differing()] == ["holds open", "holds expired", "overages"]


def test_an_unauthenticated_request_that_was_not_counted_is_found() -> None:
    books = Books()
    books.sent = Sent(known=5, unknown=2)
    assert len(books.differing()) == 1


def test_a_metric_that_is_missing_is_not_taken_for_zero() -> None:
    with pytest.raises(KeyError, match="bursar_holds_open"):
        compare(Sent(0, 0), [], [], Scrape(Metrics().render().decode()), [], NOW_S)


def test_a_load_that_proves_little_says_so() -> None:
    books = Books()
    served = copy.deepcopy(books.usage[:1])
    served[0]["cached_input"] = "0"
    assert unexercised(served, [], [], 5) == [
        "no request ended as refused",
        "no request ended as cut",
        "no budget was ever full",
        "no input came from the cache",
        "only 0 of 5 budgets were charged",
        "no budget has a live counter",
    ]


def test_windows_begin_where_the_calendar_says_in_utc() -> None:
    now_s = 1_795_135_199  # 2026-11-20 00:39:59
    elapsed_s = {window: now_s - window_start_s(window, now_s) for window in ("minute", "hour", "day", "month")}
    assert elapsed_s == {"minute": 59, "hour": 2_399, "day": 2_399, "month": 19 * 86_400 + 2_399}
    assert window_start_s("total", now_s) == 0
