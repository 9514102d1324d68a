"""`bursar policy explain`: what was decided on a request, on what input, and which rules say so."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.cli import policy_explain
from gateway.cli.output import brief
from policy.opa_management import Explanation
from policy.port import ADMISSION
from tests.gateway.decisions_on_record import FILE, RULES, Named, Recording, recorded
from tests.gateway.deployment import closed_port
from tests.gateway.test_cli_commands import AWAY, DONE, NO, WRONG_USAGE, answer, ran


@pytest.fixture(scope="module")
def on_record(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Recording, Named]]:
    with recorded(tmp_path_factory.mktemp("what-if")) as found:
        yield found


def explained(of: Recording, name: str, *options: str) -> Any:
    return answer("policy", "explain", name, "--json", *options, home=of.home, config=of.config)


def test_an_allowed_request_is_explained(on_record: tuple[Recording, Named]) -> None:
    of, asked = on_record
    found = explained(of, asked.allowed)
    assert found["request"]["request_id"] == asked.allowed
    assert found["decision"]["allow"] is True
    assert found["decision"]["input"]["principal"]["team"] == "search"
    assert found["decision"]["obligations"]["max_output_tokens"] == 100
    assert found["shadow"]["obligations"]["max_output_tokens"] == 50
    assert found["bundle"]["is_the_one_that_decided"] is True
    assert found["bundle"]["entry"]["value"]["allow"] is True
    assert {each["rule"]: each["holds"] for each in found["bundle"]["rules"]} == {
        "data.bursar.admission.reasons": True,
        "data.bursar.admission.denied": False,
        "data.bursar.admission._cap": True,
    }
    assert explained(of, "the client's own") == found


def test_a_denied_request_is_explained_by_the_rules_that_held(on_record: tuple[Recording, Named]) -> None:
    of, asked = on_record
    found = explained(of, asked.denied)
    line = RULES[: RULES.index('denied["team_unknown"]')].count("\n") + 1
    held = [each for each in found["bundle"]["rules"] if each["rule"] == 'data.bursar.admission.denied["team_unknown"]']
    assert [(each["file"], each["line"], each["value"]) for each in held] == [(FILE, line, "No cap for this team.")]
    assert asked.decision is not None
    by_decision = explained(of, asked.decision.decision_id)
    assert by_decision["request"] is None
    assert by_decision["decision"] == found["decision"]
    said = ran(DONE, "policy", "explain", asked.denied, home=of.home, config=of.config).stdout
    for text in ("denied by sha256:", "team_unknown: No cap for this team.", "The bundle is the one that decided"):
        assert text in said
    assert f"{FILE}:{line}" in said


def test_another_bundle_is_said_to_be_another(on_record: tuple[Recording, Named]) -> None:
    of, asked = on_record
    found = explained(of, asked.denied, "--bundle", str(of.new))
    assert found["bundle"]["is_the_one_that_decided"] is False
    assert (found["decision"]["allow"], found["bundle"]["entry"]["value"]["allow"]) == (False, True)
    said = ran(DONE, "policy", "explain", asked.denied, "--bundle", str(of.new), home=of.home).stdout
    assert "The bundle is now another one" in said


def test_where_an_opa_server_decides_it_is_asked(
    on_record: tuple[Recording, Named], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, asked = on_record
    whole = yaml.safe_load(of.config.read_text())
    whole["policy"] = {"url": f"http://127.0.0.1:{closed_port()}"}
    remote = tmp_path / "remote.yaml"
    remote.write_text(yaml.safe_dump(whole))
    away = ran(AWAY, "policy", "explain", asked.denied, home=of.home, config=remote)
    assert "no rules can be asked" in away.stderr
    assert "denied by sha256:" in away.stdout
    revision = of.engines[of.old].revision

    class Opa:
        def __init__(self, url: str, token: str) -> None:
            assert url == whole["policy"]["url"]

        def __enter__(self) -> "Opa":
            return self

        def __exit__(self, *ended: object) -> None:
            """Nothing to close."""

        def explain(self, document: dict[str, Any], entry: str) -> Explanation:
            assert (document["principal"]["team"], entry) == ("research", ADMISSION)
            return Explanation({"allow": False}, {"bursar": revision}, ("Enter data.bursar", "| Fail \x1b[2J"))

    monkeypatch.setattr(policy_explain, "OpaManager", Opa)
    monkeypatch.setattr(policy_explain, "OPA_LINES_MAX", 1)
    said = ran(DONE, "policy", "explain", asked.denied, home=of.home, config=remote).stdout
    assert f"The bundle is the one that decided, {brief(revision)}." in said
    assert 'OPA: {"allow":false}\nEnter data.bursar\nand 1 more lines' in said
    found = json.loads(ran(DONE, "policy", "explain", asked.denied, "--json", home=of.home, config=remote).stdout)
    assert (found["bundle"], found["opa"]["is_the_one_that_decided"]) == (None, True)


def test_what_cannot_be_explained_is_said_in_a_line(on_record: tuple[Recording, Named]) -> None:
    of, asked = on_record
    unknown = ran(NO, "policy", "explain", "nobody's", home=of.home, config=of.config)
    assert unknown.stderr.startswith("bursar: the ledger knows no request or decision nobody's")
    assert unknown.stderr.count("\n") == 1
    undecided = ran(NO, "policy", "explain", asked.undecided, home=of.home, config=of.config)
    assert "no policy decided on" in undecided.stderr
    assert "overloaded" in undecided.stderr
    undecidable = ran(NO, "policy", "explain", asked.undecidable, home=of.home, config=of.config)
    assert "policy gave no decision on" in undecidable.stderr
    nowhere = str(of.home / "nowhere")
    ran(WRONG_USAGE, "policy", "explain", asked.denied, "--bundle", nowhere, home=of.home, config=of.config)
    without = ran(WRONG_USAGE, "policy", "explain", asked.denied, home=of.home)
    assert "no rules can be asked" in without.stderr
    assert "denied by sha256:" in without.stdout


def test_a_reason_that_a_client_has_a_part_in_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    reason = {"code": "tool_not_registered", "message": "the tool \x1b]0;owned\x07\x1b[2J is not registered"}
    names = ("decision_id", "policy_revision", "at", "entry", "obligations")
    decided = {"is_shadow": 0, "allow": 0, "reasons": json.dumps([reason]), **dict.fromkeys(names, "x")}
    policy_explain._print_decision(decided)
    said = capsys.readouterr().out
    assert "tool_not_registered: the tool \ufffd]0;owned" in said
    assert "\x1b" not in said
