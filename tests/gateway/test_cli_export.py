"""`bursar ledger export focus`: what a gateway charged, as a file that is whole, adds up and passes its own check."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import export
from gateway.home import Home
from ledger.client import QueryFailed
from ledger.focus import COLUMNS
from tests.gateway import gateway_process
from tests.gateway.deployment import deploy
from tests.gateway.fake_runtime import FakeRuntime
from tests.gateway.gateway_process import error_of
from tests.gateway.test_cli_commands import AWAY, DONE, NO, WRONG_USAGE, ran

Rested = tuple[Path, Path, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def rested(fake: FakeRuntime, tmp_path_factory: pytest.TempPathFactory) -> Rested:
    """A home, its configuration, and the usage rows of a gateway that has stopped."""
    folder = tmp_path_factory.mktemp("export")
    config = deploy(folder, fake.url)
    with gateway_process.running(folder / "home", config) as gateway:
        rows = [gateway.ended(gateway.chat(team)) for team in ("roomy", "roomy", "search")]
        rows.append(gateway.ended(gateway.chat("search", stream=True)))
        error_of(gateway.chat("quota", max_tokens=500), 429, "insufficient_quota")
    return folder / "home", config, rows


def exported(rested: Rested, *options: str) -> list[dict[str, str]]:
    text = ran(DONE, "ledger", "export", "focus", *options, home=rested[0], config=rested[1]).stdout
    return list(csv.DictReader(io.StringIO(text)))


def billed(charges: list[dict[str, str]]) -> Decimal:
    return sum((Decimal(charge["BilledCost"]) for charge in charges), Decimal(0))


def test_the_charges_of_a_gateway_add_up_to_its_rows(rested: Rested) -> None:
    rows = rested[2]
    for granularity in ("hour", "day", "request"):
        charges = exported(rested, "--granularity", granularity)
        assert tuple(charges[0]) == COLUMNS
        assert billed(charges) * 10**9 == sum(row["list_cost_nusd"] for row in rows)
        assert {charge["SubAccountId"] for charge in charges} == {"roomy", "search"}
    gpu = exported(rested, "--basis", "gpu", "--provider", "Acme Platform")
    assert billed(gpu) * 10**9 == sum(row["gpu_cost_nusd"] for row in rows)
    assert {charge["ProviderName"] for charge in gpu} == {"Acme Platform"}


def test_a_file_is_written_whole_and_passes_its_check(rested: Rested, tmp_path: Path) -> None:
    home, config, _ = rested
    file = tmp_path / "focus.csv"
    done = ran(DONE, "ledger", "export", "focus", "--out", str(file), home=home, config=config)
    assert f"charges in {file}" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["focus.csv"]
    checked = ran(DONE, "ledger", "export", "focus", "--check", str(file), home=home, config=config)
    assert "nothing breaks the rules of FOCUS 1.2" in checked.stdout


def test_a_file_that_breaks_a_rule_is_answered_with_no(rested: Rested, tmp_path: Path) -> None:
    home, config, _ = rested
    file = tmp_path / "focus.csv"
    ran(DONE, "ledger", "export", "focus", "--out", str(file), home=home, config=config)
    file.write_text(file.read_text().replace("USD", "US$").replace("Usage-Based", "Sometimes"))
    done = ran(NO, "ledger", "export", "focus", "--check", str(file), home=home, config=config)
    assert "BillingCurrency.allowed" in done.stdout
    found = json.loads(ran(NO, "ledger", "export", "focus", "--check", str(file), "--json", home=home).stdout)
    assert found["broken"] == {"BillingCurrency.allowed": found["rows"], "ChargeFrequency.allowed": found["rows"]}


def test_an_export_that_fails_leaves_what_was_there(
    rested: Rested, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any) -> Iterator[dict[str, None]]:
        yield dict.fromkeys(COLUMNS)
        raise QueryFailed("the ledger went away")

    file = tmp_path / "focus.csv"
    file.write_text("what was there")
    monkeypatch.setattr(export, "charges", failing)
    done = ran(NO, "ledger", "export", "focus", "--out", str(file), home=rested[0], config=rested[1])
    assert "the ledger went away" in done.stderr
    assert file.read_text() == "what was there"
    assert [path.name for path in tmp_path.iterdir()] == ["focus.csv"]


def test_a_period_of_nothing_has_a_header_only(rested: Rested) -> None:
    assert exported(rested, "--since", "2020-01-01", "--until", "2020-02-01") == []


def test_without_a_configuration_costs_are_in_nanodollars(rested: Rested, tmp_path: Path) -> None:
    text = ran(DONE, "ledger", "export", "focus", home=rested[0]).stdout
    charges = list(csv.DictReader(io.StringIO(text)))
    assert {charge["PricingUnit"] for charge in charges} == {"Nanodollars"}
    assert billed(charges) * 10**9 == sum(row["list_cost_nusd"] for row in rested[2])


def test_without_a_configuration_it_says_that_no_price_is_known(rested: Rested) -> None:
    done = ran(DONE, "ledger", "export", "focus", "--basis", "gpu", home=rested[0])
    assert "no price is known" in done.stderr
    assert "--config" in done.stderr
    charges = list(csv.DictReader(io.StringIO(done.stdout)))
    assert {charge["SkuMeter"] for charge in charges} == {"Difference"}
    assert billed(charges) * 10**9 == sum(row["gpu_cost_nusd"] for row in rested[2])


def test_what_the_running_gateway_is_configured_with_prices_an_export(rested: Rested) -> None:
    home, config, _ = rested
    known = exported(rested, "--basis", "gpu")
    Home(home).write_run("gateway", {"config": str(config)})
    try:
        done = ran(DONE, "ledger", "export", "focus", "--basis", "gpu", home=home)
    finally:
        Home(home).remove_run("gateway")
    assert (list(csv.DictReader(io.StringIO(done.stdout))), done.stderr) == (known, "")
    assert "Accelerator Time" in {charge["SkuMeter"] for charge in known}


def test_bad_input_gets_a_line(rested: Rested, tmp_path: Path) -> None:
    home, config, _ = rested
    for code, options in (
        (WRONG_USAGE, ["nonsense"]),
        (WRONG_USAGE, ["focus", "--since", "yesterday"]),
        (WRONG_USAGE, ["focus", "--until", "0001-01-01T00:00:00+05:00"]),
        (WRONG_USAGE, ["focus", "--granularity", "century"]),
        (AWAY, ["focus", "--out", str(tmp_path / "missing" / "x.csv")]),
        (AWAY, ["focus", "--check", str(tmp_path / "missing.csv")]),
        (AWAY, ["focus", "--check", str(tmp_path)]),
    ):
        done = ran(code, "ledger", "export", *options, home=home, config=config)
        assert done.stderr
        assert "Traceback" not in done.stderr


def test_a_file_that_cannot_be_written_is_named_as_it_was_asked_for(rested: Rested, tmp_path: Path) -> None:
    home, config, _ = rested
    for out in (tmp_path / "missing" / "x.csv", tmp_path):
        done = ran(AWAY, "ledger", "export", "focus", "--out", str(out), home=home, config=config)
        assert done.stderr.startswith(f"bursar: {out} cannot be written: ")
        assert ".part" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_nobody_reads_any_more_ends_quietly(rested: Rested) -> None:
    home, config, _ = rested
    environ = {**os.environ, "BURSAR_HOME": str(home), "BURSAR_CONFIG": str(config)}
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "wb") as nobody:
        command = [sys.executable, "-m", "gateway", "ledger", "export", "focus"]
        done = subprocess.run(
            command, env=environ, stdout=nobody, stderr=subprocess.PIPE, text=True, timeout=110, cwd=Path.cwd()
        )
    assert (done.returncode, done.stderr) == (DONE, "")


def test_a_report_that_is_cut_says_so(rested: Rested) -> None:
    home, config, _ = rested
    whole = ran(DONE, "ledger", "report", "spend", "--limit", "3", "--json", home=home, config=config)
    assert (len(json.loads(whole.stdout)), whole.stderr) == (3, "")
    cut = ran(DONE, "ledger", "report", "spend", "--limit", "1", "--json", home=home, config=config)
    assert len(json.loads(cut.stdout)) == 1
    assert "more than these 1 rows" in cut.stderr
    ran(WRONG_USAGE, "ledger", "report", "spend", "--limit", "0", home=home, config=config)
