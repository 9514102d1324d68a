"""`bursar budget show`: the most that was charged to a budget that can be overshot, and what is not known as of now."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import budgets
from gateway.home import Home
from tests.gateway.test_cli_commands import DONE, ran

MIDNIGHT_S = 1_795_305_600  # 2026-11-22T00:00:00Z


class Ledger:
    """A ledger with one window that was overshot, and one without a beginning."""

    def flush(self) -> None:
        pass

    def rows(self, sql: str, **parameters: str) -> list[dict[str, Any]]:
        return [
            {"counter": "team=search", "window_start_s": MIDNIGHT_S, "peak": "1200"},
            {"counter": "team=research", "window_start_s": 0, "peak": "7"},
        ]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(budgets, "running", lambda home: Ledger())
    return Home(tmp_path / "home").path


def show(home: Path, window: str, patch: pytest.MonkeyPatch, *options: str) -> str:
    known = {"id": "gpu", "owner": "o", "scope": {}, "resource": "gpu_us", "limit": 1_000, "window": window}
    seen = {"shared": False, "is_current": True, "budgets": [{**known, "mode": "hard"}], "counters": []}
    patch.setattr(budgets, "_seen", lambda home, config, budget: seen)
    return ran(DONE, "budget", "show", "gpu", *options, home=home).stdout


@pytest.mark.parametrize("is_current", [True, False])
def test_it_says_where_what_others_have_is_not_as_of_now(
    is_current: bool, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured = {
        "id": "b",
        "owner": "o",
        "scope": {},
        "resource": "tokens",
        "limit": 9,
        "window": "day",
        "mode": "hard",
    }
    seen = {
        "shared": True,
        "is_current": is_current,
        "budgets": [configured],
        "counters": [{"budget": "b", "spent": 1}],
    }
    monkeypatch.setattr(budgets, "_seen", lambda home, config, budget: seen)
    said = " ".join(ran(DONE, "budget", "show", "b", home=home).stdout.split())
    assert ("not all gateways have reported" in said) is not is_current


def test_peaks_are_shown_with_the_day_that_they_are_of(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overshot, other = (line for line in show(home, "day", monkeypatch).splitlines() if "team=" in line)
    assert [cell.strip() for cell in overshot.split("│")[1:5]] == [
        "team=search",
        "2026-11-22 00:00 UTC",
        "1,200",
        "200",
    ]
    assert [cell.strip() for cell in other.split("│")[1:5]] == ["team=research", "-", "7", "0"]


def test_programs_get_the_second_that_a_window_began(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = json.loads(show(home, "day", monkeypatch, "--json"))["peaks"]
    assert [peak["window_start_s"] for peak in peaks] == [MIDNIGHT_S, 0]


def test_of_a_rolling_window_it_says_that_no_peak_is_known(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = show(home, "rolling:1h", monkeypatch)
    assert "Peaks" not in said
    assert "charged to a rolling window at once is not known" in said
