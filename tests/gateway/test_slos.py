"""SLOs measured in a real ledger: known rows come to known numbers, and each way to show them says the same."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from domain.ids import uuid7
from gateway.objectives import Slo
from gateway.slos import measure, percent, policy_input, promise, span, status_row, status_view
from ledger.client import Address, LedgerClient, LedgerUnavailable, QueryFailed, open_ledger
from ledger.journal import Journal
from ledger.slo import Counts, Measured, Objective, Status, assess

MINUTE_S, HOUR_S, DAY_S = 60, 3_600, 86_400
NOW_S = int(time.time())


def slo(name: str, **values: Any) -> Objective:
    whole: dict[str, Any] = {"id": name, "owner": "search", "scope": {"org": "acme", "app": name}, "objective": 0.99}
    return Slo.model_validate({**whole, "kind": "availability", **values}).target


def row(app: str, age_s: float, **values: Any) -> dict[str, Any]:
    served = {"status": "ok", "http_status": 200, "stream": True, "duration_us": 900_000, "output_tokens": 11}
    whole = {"org": "acme", "team": "search", "app": app, "model": "small", "request_id": uuid7(), **served}
    return {**whole, "ts_us": int((NOW_S - age_s) * 1_000_000), "event_id": uuid7(), **values}


FAILED = {"status": "failed", "http_status": 502}
ROWS = [
    # 1,000 served over a week and 2 failed: a fifth of what 99 % allows.
    *[row("calm", 7 * DAY_S - each, ttft_us=100_000) for each in range(998)],
    *[row("calm", DAY_S, **FAILED) for _ in range(2)],
    # The same, and an outage goes on: of the last hour's 50 a fifth failed, 20 times too fast.
    *[row("outage", 7 * DAY_S - each, ttft_us=100_000) for each in range(2_000)],
    *[row("outage", 2 * MINUTE_S, **(FAILED if each % 5 == 0 else {})) for each in range(50)],
    # Nothing is left: 2 % failed, all of it days ago.
    *[row("spent", 7 * DAY_S - each, **(FAILED if each % 50 == 0 else {})) for each in range(500)],
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    journal = Journal.open(home / "journal" / "gateway-0", segment_bytes=1 << 20, snapshot=dict)
    for each in sorted(ROWS, key=lambda each: each["ts_us"]):
        journal.append("usage", each)
    journal.close()
    return home


@pytest.fixture(scope="module")
def ledger(home: Path) -> Iterator[LedgerClient]:
    with open_ledger(home, f"chdb://{home}/ledger") as client:
        yield client


def test_known_rows_come_to_known_numbers(ledger: LedgerClient) -> None:
    calm, outage, spent, silent = measure(ledger, [slo("calm"), slo("outage"), slo("spent"), slo("silent")], NOW_S)
    assert (calm.state, calm.remaining_permille, calm.measured.window) == ("ok", 800, Counts(1_000, 998))
    assert (outage.state, outage.fast_burn_milli, outage.slow_burn_milli) == ("burning", 20_000, 20_000)
    assert outage.measured.fast_long == outage.measured.fast_short == Counts(50, 40)
    assert outage.remaining_permille == 1_000 - -(-10 * 1_000 * 100 // 2_050)
    assert (spent.state, spent.remaining_permille, spent.fast_burn_milli) == ("exhausted", 0, 0)
    assert (silent.state, silent.remaining_permille) == ("no_data", 0)
    assert "0 events in the window" in silent.why


def test_times_come_to_known_numbers(ledger: LedgerClient) -> None:
    asked = [
        slo("calm", kind="ttft", threshold_ms=100),
        slo("calm", kind="ttft", threshold_ms=99.999),
        slo("calm", kind="inter_token", threshold_ms=80),
        slo("calm", kind="e2e", threshold_ms=899),
    ]
    in_time, late, tokens, whole = measure(ledger, asked, NOW_S)
    assert (in_time.state, in_time.measured.window) == ("ok", Counts(998, 998))
    assert in_time.measured.quantiles_us == (100_000, 100_000, 100_000)
    assert (late.state, late.measured.window) == ("exhausted", Counts(998, 0))
    assert (tokens.state, tokens.measured.quantiles_us) == ("ok", (80_000, 80_000, 80_000))
    assert (whole.state, whole.measured.window) == ("exhausted", Counts(998, 0))


def test_what_is_in_the_journal_is_counted(home: Path, ledger: LedgerClient) -> None:
    journal = Journal.open(home / "journal" / "gateway-0", segment_bytes=1 << 20, snapshot=dict)
    journal.append("usage", row("just-now", 0.5))
    journal.close()
    [status] = measure(ledger, [slo("just-now")], NOW_S)
    assert status.measured.window == Counts(1, 1)


def test_a_ledger_that_is_away_is_no_number() -> None:
    with pytest.raises(LedgerUnavailable):
        measure(LedgerClient(Address("127.0.0.1", 1), "token"), [slo("calm")], NOW_S)


def test_a_ledger_that_is_behind_is_no_number() -> None:
    """What it has not taken in yet may be all the failures."""

    class Behind:
        def flush(self, timeout_s: float) -> None:
            raise QueryFailed(f"not shipped within {timeout_s:g} s")

        def rows(self, sql: str, **parameters: str) -> list[dict[str, Any]]:
            raise AssertionError("it was asked all the same")

    with pytest.raises(QueryFailed, match="not shipped within 10 s"):
        measure(Behind(), [slo("calm")], NOW_S)


def test_each_way_to_show_them_says_the_same(ledger: LedgerClient) -> None:
    [status, silent] = measure(ledger, [slo("calm", kind="ttft", threshold_ms=100), slo("silent")], NOW_S)
    assert policy_input([status, silent]) == [
        {"id": "calm", "remaining_permille": 1_000, "fast_burn_milli": 0, "slow_burn_milli": 0, "state": "ok"},
        {"id": "silent", "remaining_permille": 0, "fast_burn_milli": 0, "slow_burn_milli": 0, "state": "no_data"},
    ]
    assert status_view(status) == {
        "id": "calm",
        "owner": "search",
        "scope": {"org": "acme", "app": "calm"},
        "kind": "ttft",
        "threshold_us": 100_000,
        "objective_ppm": 990_000,
        "window_s": 28 * DAY_S,
        "events": 998,
        "good": 998,
        "good_ppm": 1_000_000,
        "state": "ok",
        "why": "",
        "remaining_permille": 1_000,
        "fast_burn_milli": 0,
        "slow_burn_milli": 0,
        "burns_milli": {"fast_long": 0, "fast_short": 0, "slow_long": 0, "slow_short": 0},
        "p50_us": 100_000,
        "p95_us": 100_000,
        "p99_us": 100_000,
    }
    assert status_row(status) == {
        "id": "calm",
        "scope": "org=acme, app=calm",
        "promise": "99% ttft <= 100 ms over 28d",
        "events": 998,
        "good": "100.000%",
        "left": "100.0%",
        "fast": "0.0x",
        "slow": "0.0x",
        "p50 / p95 / p99 ms": "100.0 / 100.0 / 100.0",
        "state": "ok",
    }
    shown = status_row(silent)
    assert (shown["events"], shown["good"], shown["left"], shown["fast"]) == (0, None, None, None)
    viewed = status_view(silent)
    assert (viewed["good_ppm"], viewed["p99_us"], viewed["threshold_us"]) == (None, None, None)


def test_a_promise_is_said_as_it_was_written() -> None:
    assert promise(slo("x", objective=0.9995)) == "99.95% availability over 28d"
    assert promise(slo("x", objective=0.999999, window="90m", fast={"long": "1h"}, slow={"long": "90m"})) == (
        "99.9999% availability over 90m"
    )
    assert promise(slo("x", kind="inter_token", threshold_ms=12.5)) == "99% inter_token <= 12.5 ms over 28d"
    assert [span(each) for each in (60, 5_400, 7_200, DAY_S, 28 * DAY_S)] == ["1m", "90m", "2h", "1d", "28d"]


def test_what_is_not_all_good_never_looks_so() -> None:
    assert percent(999_999, 1_000_000) == "99.999%"
    assert percent(1_999_999, 2_000_000) == "99.999%"
    assert percent(2, 2) == "100.000%"
    assert percent(1, 1_000, 1) == "0.1%"
    status = assess(slo("x"), Measured(window=Counts(10**6, 10**6 - 1)))
    assert isinstance(status, Status)
    assert status_row(status)["good"] == "99.999%"
    assert status_row(status)["left"] == "99.9%"
