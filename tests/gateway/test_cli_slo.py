"""`bursar slo` and `bursar headroom`, over the requests of a real gateway."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.config_file import ConfigError, load
from ledger import client
from tests.gateway import gateway_process
from tests.gateway.deployment import deploy
from tests.gateway.fake_runtime import FakeRuntime
from tests.gateway.gateway_process import GatewayProcess, error_of
from tests.gateway.test_cli_commands import AWAY, DONE, NO, WRONG_USAGE, answer, ran

SLOS: list[dict[str, Any]] = [
    {"id": "roomy-up", "owner": "search", "scope": {"team": "roomy"}, "kind": "availability", "objective": 0.99},
    {
        "id": "roomy-ttft",
        "owner": "search",
        "scope": {"org": "acme", "team": "roomy", "model": "plain"},
        "kind": "ttft",
        "threshold_ms": 60_000,
        "objective": 0.99,
    },
    {"id": "search-up", "owner": "search", "scope": {"team": "search"}, "kind": "availability", "objective": 0.99},
    {"id": "quota-up", "owner": "search", "scope": {"team": "quota"}, "kind": "availability", "objective": 0.99},
]


@pytest.fixture(scope="module")
def up(fake: FakeRuntime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Gateway and ledger process, after requests that were served, failed and were refused."""
    folder = tmp_path_factory.mktemp("slo")
    with gateway_process.running(folder / "home", deploy(folder, fake.url, slos=SLOS), "up") as up:
        for team, model, stream in (
            ("roomy", "plain", True),
            ("roomy", "plain", False),
            ("search", "plain", False),
            ("search", "absent", False),
        ):
            up.ended(up.chat(team, model=model, stream=stream))
        error_of(up.chat("quota", max_tokens=500), 429, "insufficient_quota")
        yield up


def test_slos_are_measured_over_what_the_gateway_did(up: GatewayProcess) -> None:
    found = {each["id"]: each for each in answer("slo", "--json", home=up.home, config=up.config)}
    states = {name: (each["state"], each["events"], each["good"]) for name, each in found.items()}
    assert states == {
        "roomy-up": ("ok", 2, 2),
        "roomy-ttft": ("ok", 1, 1),
        "search-up": ("exhausted", 2, 1),
        "quota-up": ("no_data", 0, 0),
    }
    assert found["search-up"]["burns_milli"]["fast_short"] == 50_000
    assert 0 < found["roomy-ttft"]["p99_us"] < 60_000_000


def test_a_table_says_what_was_promised_and_what_is_left(up: GatewayProcess) -> None:
    said = ran(DONE, "slo", home=up.home, config=up.config).stdout
    assert re.search(r"roomy-ttft .* 99% ttft .* 100\.000% .* 100\.0% .* ok", said)
    assert re.search(r"search-up .* 50\.000% .* 0\.0% .* 50\.0x .* exhausted", said)
    assert "quota-up cannot be judged: 0 events in the window, where at least 1 are needed to judge" in said


def test_check_answers_no_while_one_burns_or_is_exhausted(up: GatewayProcess, tmp_path: Path) -> None:
    assert "search-up" in ran(NO, "slo", "--check", home=up.home, config=up.config).stdout
    document = yaml.safe_load(up.config.read_text())
    document["slos"] = [each for each in SLOS if each["id"] != "search-up"]
    document["policy"] = {"url": "embedded:"}
    (tmp_path / "calm.yaml").write_text(yaml.safe_dump(document))
    ran(DONE, "slo", "--check", home=up.home, config=tmp_path / "calm.yaml")
    document["slos"] = []
    (tmp_path / "none.yaml").write_text(yaml.safe_dump(document))
    assert "there are no SLOs" in ran(DONE, "slo", home=up.home, config=tmp_path / "none.yaml").stdout
    said = ran(WRONG_USAGE, "slo", "--check", home=up.home, config=tmp_path / "none.yaml").stderr
    assert "there are no SLOs" in said


def test_headroom_says_what_is_left_and_what_binds(up: GatewayProcess) -> None:
    found = answer("headroom", "--team", "roomy", "--json", home=up.home, config=up.config)
    assert found["scope"] == {"org": "acme", "team": "roomy", "app": "", "model": ""}
    assert found["parts"]["budget"]["limited_by"] == "roomy-day (team=roomy)"
    assert 980 < found["headroom"]["budget"] < 1_000
    assert found["headroom"]["overall"] == found["headroom"]["budget"]
    assert {each["id"]: each["state"] for each in found["slos"]} == {"roomy-up": "ok", "roomy-ttft": "ok"}
    said = ran(DONE, "headroom", "--team", "search", "--app", "web", home=up.home, config=up.config).stdout
    assert "Headroom of org=acme, team=search, app=web, in thousandths" in said
    assert "overall 0, by error_budget: SLO search-up has 0.0% of its error budget left" in said


def test_an_slo_without_data_is_no_room(up: GatewayProcess) -> None:
    found = answer("headroom", "--team", "quota", "--json", home=up.home, config=up.config)
    assert (found["headroom"]["error_budget"], found["known"]) == (0, False)
    assert "SLO quota-up cannot be judged" in found["parts"]["error_budget"]["why"]


def test_a_scope_with_a_mistake_in_it_is_refused(up: GatewayProcess) -> None:
    said = ran(NO, "headroom", "--team", "rooomy", home=up.home, config=up.config).stderr
    assert "no application has a key for team=rooomy" in said
    assert said.endswith("did you mean team=roomy?\n")


def test_without_a_gateway_or_a_configuration_the_exit_code_says_so(
    up: GatewayProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "journal").mkdir()
    assert "start `bursar up`" in ran(AWAY, "headroom", home=tmp_path, config=up.config).stderr
    ran(WRONG_USAGE, "slo", home=tmp_path, config=tmp_path / "none.yaml")
    (tmp_path / "file").write_text("")  # where the store's folder should be
    monkeypatch.setenv("BURSAR_LEDGER__URL", f"chdb://{tmp_path}/file")
    monkeypatch.setattr(client, "START_TIMEOUT_S", 3.0)
    ran(AWAY, "slo", home=tmp_path, config=up.config)


@pytest.mark.parametrize(
    ("slos", "said"),
    [
        (
            [{**SLOS[0], "scope": {"model": "plane"}}],
            "slos[0].scope.model: no model is called plane; did you mean plain?",
        ),
        ([SLOS[0], SLOS[0]], "slos[1].id: roomy-up is already the id of slos[0]"),
        ([{**SLOS[0], "objective": 0.9}], "slos[0].fast: a burn of 14.4 is never reached under an objective of 0.9"),
        ([{**SLOS[0], "treshold_ms": 5}], "slos[0].treshold_ms: is not a field; did you mean threshold_ms?"),
    ],
)
def test_a_mistake_in_an_slo_is_named_by_line_and_field(
    up: GatewayProcess, tmp_path: Path, slos: list[dict[str, Any]], said: str
) -> None:
    document = {**yaml.safe_load(up.config.read_text()), "slos": json.loads(json.dumps(slos))}
    document["policy"] = {"url": "embedded:"}
    (tmp_path / "bursar.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError) as refused:
        load(tmp_path / "bursar.yaml")
    [problem] = refused.value.problems
    assert said in str(problem)
    assert problem.line > 1
