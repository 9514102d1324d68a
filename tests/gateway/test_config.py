"""Configuration values: prices by date, rates by runtime, defaults, and what stays frozen."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from domain.prices import GpuRate, Prices
from gateway.config import Budget, Config, Ledger, Limits, Runtime, Scope
from gateway.consistency import inconsistencies
from ledger.windows import parse_window

DAY_2025_03_01_S = 1_740_787_200


def config(**model: Any) -> Config:
    return Config.model_validate(
        {
            "version": 1,
            "runtimes": [
                {
                    "id": "r",
                    "owner": "o",
                    "url": "sim://",
                    "gpu_nusd_per_hour": 7,
                    "gpu_us_per_input_mtok": 8,
                    "gpu_us_per_output_mtok": 9,
                }
            ],
            "models": [
                {
                    "id": "m",
                    "owner": "o",
                    "runtimes": ["r"],
                    "endpoints": ["chat"],
                    "context_tokens": 512,
                    "price": [
                        {"valid_from": date(2025, 1, 1), "input_nusd_per_mtok": 10, "output_nusd_per_mtok": 20},
                        {
                            "valid_from": date(2025, 3, 1),
                            "input_nusd_per_mtok": 30,
                            "cached_input_nusd_per_mtok": 3,
                            "output_nusd_per_mtok": 40,
                        },
                    ],
                    **model,
                }
            ],
        }
    )


def test_a_new_price_begins_at_midnight_utc() -> None:
    prices = config()
    assert prices.prices_at("m", DAY_2025_03_01_S - 0.001) == Prices("m@2025-01-01", 10, 10, 20)
    assert prices.prices_at("m", DAY_2025_03_01_S) == Prices("m@2025-03-01", 30, 3, 40)


def test_before_the_first_price_there_is_none() -> None:
    with pytest.raises(LookupError, match="model m has no price at 0"):
        config().prices_at("m", 0)


def test_a_free_model_costs_nothing_at_any_time() -> None:
    assert config(price="free").prices_at("m", 0) == Prices("free")


def test_unknown_names_have_neither_price_nor_rate() -> None:
    with pytest.raises(KeyError):
        config().prices_at("other", DAY_2025_03_01_S)
    with pytest.raises(KeyError):
        config().gpu_rate("other")


def test_a_runtime_has_its_declared_rate() -> None:
    assert config().gpu_rate("r") == GpuRate(7, 8, 9)


def test_a_folder_of_telemetry_is_that_of_one_runtime() -> None:
    named: dict[str, Any] = {"owner": "o", "url": "http://h"}
    told = (("r", "told"), ("a", "./x/../told/"), ("b", "told-b"), ("c", None))
    runtimes = tuple(Runtime(id=name, telemetry=folder, **named) for name, folder in told)
    found = inconsistencies(config().model_copy(update={"runtimes": runtimes}), DAY_2025_03_01_S)
    assert found == [(("runtimes", 1, "telemetry"), "is that of runtimes[0]: name one runtime only")]


def test_a_model_is_called_upstream_as_here_unless_said() -> None:
    assert config().models[0].upstream_model == "m"
    assert config(upstream_model=None).models[0].upstream_model == "m"
    assert config(upstream_model="Qwen/Qwen3").models[0].upstream_model == "Qwen/Qwen3"


def test_the_default_output_cap_fits_into_a_small_context() -> None:
    assert config().models[0].max_output_tokens == 512
    assert config(context_tokens=100_000).models[0].max_output_tokens == 1024


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        config().limits.headers_max = 1


def test_defaults_are_those_of_the_design() -> None:
    limits = Limits()
    assert (limits.body_bytes_max, limits.header_bytes_max, limits.url_bytes_max) == (4 << 20, 32 << 10, 8 << 10)
    assert (limits.connections_max, limits.in_flight_max, limits.queued_max) == (4096, 2048, 1024)
    assert Runtime(id="r", owner="o", url="http://gpu:8000").vllm is True


@pytest.mark.parametrize(
    ("url", "folder"),
    [("chdb://ledger", "/home/b/ledger"), ("chdb://data/x", "/home/b/data/x"), ("chdb:///var/x", "/var/x")],
)
def test_the_ledger_lies_in_the_home_unless_its_path_is_absolute(url: str, folder: str) -> None:
    assert Ledger(url=url).folder(Path("/home/b")) == Path(folder)


def test_a_ledger_in_a_clickhouse_server_is_its_url() -> None:
    remote = Ledger(url="clickhouse://db:8123/bursar")
    assert (remote.is_embedded, remote.store_url(Path("/home/b"))) == (False, remote.url)
    assert Ledger().store_url(Path("/home/b")) == "chdb:///home/b/ledger"


def test_a_scope_names_its_dimensions_in_one_order_however_written() -> None:
    written = Scope.model_validate({"model": "m", "org": "acme", "team": "*"})
    assert written.named() == (("org", "acme"), ("team", "*"), ("model", "m"))


@pytest.mark.parametrize(
    "window", ["minute", "hour", "day", "month", "total", "rolling:60s", "rolling:30m", "rolling:7d"]
)
def test_every_window_that_configuration_takes_the_ledger_takes(window: str) -> None:
    budget = Budget(id="b", owner="o", scope=Scope(), resource="tokens", limit=1, window=window)
    assert parse_window(budget.window).duration_s >= 60
    assert (budget.mode, budget.thresholds, budget.on_unavailable) == ("hard", (0.8, 0.95), "lease")


@pytest.mark.parametrize("resource", ["kv_block_us", "energy_uj"])
def test_a_budget_on_what_no_hold_estimates_is_refused(resource: Any) -> None:
    with pytest.raises(ValidationError, match=f"{resource} is metered, but not estimated by a hold"):
        Budget(id="b", owner="o", scope=Scope(), resource=resource, limit=1, window="day")
