"""GPU reports: what a runtime says of its time beside what its requests were charged, and how far both are apart."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from ledger.gpu_report import PEAKS_SQL
from ledger.journal import Journal
from ledger.reports import BadReport, report
from ledger.shipper import Shipper
from ledger.store import Store

NOW = datetime(2026, 3, 10, 12, 30, tzinfo=UTC)
NOW_US = int(NOW.timestamp()) * 1_000_000
RATE = 3_600_000_000  # a nano-USD for each microsecond

Ask = Callable[..., list[dict[str, Any]]]


def settlement(request_id: str, runtime: str, gpu_us: int, held_gpu_us: int, **more: Any) -> dict[str, Any]:
    row = {"event_id": request_id, "request_id": request_id, "status": "ok", "runtime": runtime, "gpu_us": gpu_us}
    return {
        **row,
        "held_gpu_us": held_gpu_us,
        "gpu_cost_nusd": gpu_us,
        "org": "acme",
        "ts_us": NOW_US - 9_000_000,
        **more,
    }


def correction(request_id: str, runtime: str, gpu_us: int, **more: Any) -> dict[str, Any]:
    named = {"event_id": f"{request_id}/attributed/0", "request_id": request_id, "runtime": runtime}
    return {**named, "status": "adjusted", "gpu_us": gpu_us, "org": "acme", "ts_us": NOW_US - 8_000_000, **more}


def sample(runtime: str, **account: int) -> dict[str, Any]:
    return {"runtime": runtime, "nusd_per_hour": RATE, "ts_us": NOW_US - 7_000_000, **account}


def charge(amount: int, window_s: int = 0) -> list[list[Any]]:
    return [["gpu-day", "org=acme", window_s, "gpu_us", amount]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    home = tmp_path_factory.mktemp("home")
    journal = Journal.open(home / "journal" / "w", snapshot=dict)
    for row in (
        settlement("a", "gpu-0", 100, 150, list_cost_nusd=7, saved_cost_nusd=3, charges=charge(100)),
        correction("a", "gpu-0", 300, charges=charge(300)),
        settlement("b", "gpu-0", 200, 900, charges=charge(200)),
        correction("b", "gpu-0", -100, energy_uj=5, charges=charge(-100)),
        settlement("c", "plain", 55, 60, charges=charge(55, 86_400)),
        settlement("d", "", 0, 0, status="refused"),
        settlement("old", "gpu-0", 9_999, 1, ts_us=NOW_US - 900_000_000_000),
    ):
        journal.append("usage", row)
    account = {"wall_us": 500, "capacity_us": 1_000, "busy_us": 700, "idle_us": 260, "lost_us": 40, "energy_uj": 35}
    journal.append("runtime_sample", sample("gpu-0", **account, attributed_us=500, unattributed_us=150, foreign_us=20))
    journal.append("runtime_sample", sample("gpu-0", capacity_us=1_000, idle_us=1_000, wall_us=500))
    journal.append("runtime_sample", sample("unused", capacity_us=10, idle_us=10, wall_us=10))
    # Of what the gateway that samples takes for foreign another one has charged 200.
    shared = {"wall_us": 1_000, "capacity_us": 1_000, "busy_us": 300, "attributed_us": 300, "foreign_us": 220}
    journal.append("runtime_sample", sample("shared", **shared))
    journal.append("usage", settlement("e", "shared", 80, 80))
    journal.close()
    other = Journal.open(home / "journal" / "v", snapshot=dict)
    other.append("usage", settlement("f", "shared", 200, 200))
    other.close()
    opened = Store(f"chdb://{home}/ledger")
    Shipper(home / "journal", opened).round()
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def ask(store: Store) -> Ask:
    reader = store.connect({"readonly": 1})

    def ask(kind: str, **options: Any) -> list[dict[str, Any]]:
        made = report(kind, now=NOW, **options)
        found = [json.loads(line) for line in bytes(reader.raw_query(made.sql, fmt="JSONEachRow")).splitlines()]
        assert all(tuple(row) == made.columns for row in found)
        return found

    return ask


def test_time_adds_up_and_what_does_not_is_the_error(ask: Ask) -> None:
    first, *others = ask("gpu", since="1d")
    assert [row["runtime"] for row in (first, *others)] == ["gpu-0", "shared", "plain", "unused"]
    assert first["requests"] == 2
    named = ("wall", "capacity", "busy", "idle", "lost", "attributed", "unattributed")
    times = {name: first[f"{name}_s"] for name in named}
    assert times == {
        "wall": "0.001000",
        "capacity": "0.002000",
        "busy": "0.000700",
        "idle": "0.001260",
        "lost": "0.000040",
        "attributed": "0.000500",
        "unattributed": "0.000150",
    }
    # 480 of the 500 attributed were asked of Bursar, and 500 were charged: 20 of 2,000.
    assert (first["charged_s"], first["foreign_s"]) == ("0.000500", "0.000020")
    assert first["conservation_error_percent"] == 1.0
    assert (first["busy_usd"], first["idle_usd"]) == ("0.000000700", "0.000001260")
    assert (first["unattributed_usd"], first["gpu_cost_usd"]) == ("0.000000150", "0.000000300")
    assert (first["list_cost_usd"], first["saved_usd"], first["energy_j"]) == ("0.000000007", "0.000000003", "0.000005")


def test_what_nobody_here_was_charged_for_has_its_price_and_its_energy(ask: Ask) -> None:
    first = ask("gpu", since="1d")[0]
    assert (first["foreign_s"], first["foreign_usd"]) == ("0.000020", "0.000000020")
    assert (first["energy_j"], first["runtime_energy_j"]) == ("0.000005", "0.000035")


def test_a_runtime_without_telemetry_has_no_error_to_show(ask: Ask) -> None:
    plain, unused = ask("gpu", since="1d")[2:]
    assert (plain["conservation_error_percent"], plain["charged_s"]) == (None, "0.000055")
    assert (unused["conservation_error_percent"], unused["requests"]) == (0, 0)


def test_what_another_gateway_charged_is_no_error(ask: Ask) -> None:
    shared = ask("gpu", since="1d")[1]
    assert (shared["runtime"], shared["charged_s"], shared["foreign_s"]) == ("shared", "0.000280", "0.000220")
    assert shared["conservation_error_percent"] == 0


def test_grouped_by_anything_it_is_the_report_of_requests(ask: Ask) -> None:
    (row,) = [row for row in ask("gpu", group_by=["runtime"], since="1d") if row["runtime"] == "gpu-0"]
    assert (row["gpu_s"], "wall_s" in row) == ("0.000500", False)


def test_estimates_are_compared_with_what_was_attributed(ask: Ask) -> None:
    (row,) = ask("estimates", since="1d")
    assert (row["runtime"], row["requests"]) == ("gpu-0", 2)
    assert (row["estimated_s"], row["attributed_s"]) == ("0.000300", "0.000500")
    assert (row["mean_error_percent"], row["error_p95_percent"]) == (125, 300)
    assert row["total_error_percent"] == 66.67, "the sum is off by less than the requests are on average"
    # Of 150 us held, 400 were taken: 2.67 times the factor would have been enough.
    assert (row["over_hold"], row["over_hold_max_s"], row["hold_ratio_max"]) == (1, "0.000250", 2.67)
    with pytest.raises(BadReport, match="by runtime only"):
        report("estimates", group_by=["team"])


def test_the_peak_of_a_budget_is_the_most_that_was_ever_charged_to_it_at_once(store: Store) -> None:
    found = store.select(PEAKS_SQL, budget="gpu-day")
    assert found == [("org=acme", 0, "600"), ("org=acme", 86_400, "55")]


def test_a_limit_holds_for_runtimes_too(ask: Ask) -> None:
    assert len(ask("gpu", since="1d", limit=1)) == 2, "one more shows that there are more"
