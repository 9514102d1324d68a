"""The command line: exit codes, and what is kept of runs that fail."""

from pathlib import Path

import pytest

from bench import __main__ as bench_main
from bench.errors import MeasurementError
from bench.harness import Benchmark, Harness
from bench.row import Row, load_rows
from bench.server import BareProxyServer
from bench.suite import SUITE

NOISE = "bench.server:BareProxyServer"


def measured(harness: Harness) -> list[Row]:
    return [Row.at_most("good", "µs", 3.0, 2.0)]


def failing(harness: Harness) -> list[Row]:
    raise MeasurementError("no number")


def through_servers(harness: Harness) -> list[Row]:
    """Nothing but the address that each role got."""
    assert harness.gateway() is harness.gateway()
    with harness.fresh_gateway() as fresh:
        addresses = {harness.upstream_url, harness.gateway().base_url, harness.bare().base_url, fresh.base_url}
    return [Row.at_least("addresses", "count", len(addresses), 4)]


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = (
        Benchmark(("good",), measured),
        Benchmark(("bad",), failing),
        Benchmark(("addresses",), through_servers),
    )
    monkeypatch.setattr(bench_main, "SUITE", listed)


def run(results: Path, *arguments: str) -> int:
    return bench_main.main(["--results", str(results), "--gateway", NOISE, *arguments])


@pytest.mark.usefixtures("suite")
def test_a_missed_target_is_a_measurement_and_exits_0(results: Path) -> None:
    assert run(results, "--only", "good") == 0
    assert [row.met for row in load_rows(results)] == [False]


@pytest.mark.usefixtures("suite")
def test_a_failed_measurement_exits_1_and_the_others_are_kept(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(results) == 1
    assert [row.name for row in load_rows(results)] == ["good", "addresses"]
    assert "bad: FAILED: no number" in capsys.readouterr().err


@pytest.mark.usefixtures("suite")
def test_each_role_is_a_server_of_its_own_started_once(results: Path) -> None:
    assert run(results, "--only", "addresses") == 0
    assert [row.met for row in load_rows(results)] == [True]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--only", "nothing"],
        ["--gateway", "bench.server:Nothing"],
        ["--gateway", "bench.nothing:X"],
        ["--gateway", "x"],
    ],
)
def test_wrong_usage_exits_2_and_writes_nothing(arguments: list[str], results: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench_main.main(["--results", str(results), *arguments])
    assert stopped.value.code == 2
    assert not results.exists()


def test_every_row_of_the_suite_has_a_name_of_its_own() -> None:
    names = [name for one in SUITE for name in one.names]
    assert len(names) == len(set(names))


def test_a_server_that_cannot_start_fails_with_the_end_of_its_log() -> None:
    server = BareProxyServer()
    with pytest.raises(MeasurementError, match="unrecognized arguments: --nonsense"):
        server.launch("--upstream", "x", "--nonsense")
    server.stop()
