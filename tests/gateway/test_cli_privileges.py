"""`bursar policy privileges` lists what the policy grants and the ledger never saw used."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from gateway.cli.signals import privileges
from gateway.home import Home
from gateway.keys import KeyStore
from ledger.client import open_ledger
from ledger.journal import Journal
from ledger.reports import BadReport
from tests.gateway.deployment import document
from tests.gateway.gateway_process import write_config
from tests.gateway.test_cli_commands import NO, ran

REGO = """package bursar.{0}

import rego.v1

decision := {{"allow": true, "reasons": [], "obligations": {{}}}} if {{
	{1}
}} else := {{"allow": false, "reasons": [], "obligations": {{}}}}
"""
MAY = 'input.intent.model in ["plain", "hidden"]'
MAY_CALL = 'input.tool.name in ["search", "shell"]'
Privileges = Callable[..., Any]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with a key in use and one that is not, a ledger of one request, and a configuration beside it."""
    folder = tmp_path_factory.mktemp("privileges")
    for package, condition in (("admission", MAY), ("tools", MAY_CALL)):
        target = folder / "rego" / "bursar" / package
        target.mkdir(parents=True)
        (target / f"{package}.rego").write_text(REGO.format(package, condition))
    (folder / "rego" / "bursar" / "tools" / "data.json").write_text('{"registry": {"search": {}, "shell": {}}}')
    write_config(folder / "bursar.yaml", document("http://127.0.0.1:9"))
    keys = KeyStore(Home(folder / "home").keys)
    used, _ = keys.create("acme", "search", "web", roles=("pilot",))
    keys.create("acme", "ads", "web")
    ended, _ = keys.create("acme", "gone", "web")
    keys.revoke(ended.key_id)
    row = {"org": "acme", "team": "search", "app": "web", "key_id": used.key_id}
    journal = Journal.open(folder / "home" / "journal" / "gateway-0", snapshot=dict)
    journal.append("usage", {**row, "endpoint": "chat", "served_model": "plain", "status": "ok"})
    journal.append("tool_call", {**row, "tool": "shell", "tool_kind": "function", "phase": "called"})
    journal.close()
    url = (folder / "home" / "ledger").as_uri().replace("file", "chdb")
    with open_ledger(folder / "home", url):  # found by each command, so that none has to start one
        yield folder / "home"


@pytest.fixture
def ask(home: Path) -> Privileges:
    """Runs the command; its rows, or the result of a run that is not asked for JSON."""
    app = typer.Typer()
    app.command()(privileges)

    def run(*arguments: str, as_json: bool = True) -> Any:
        given = ["--home", str(home), "--config", str(home.parent / "bursar.yaml"), *arguments]
        done = CliRunner().invoke(app, [*given, "--json"] if as_json else given)
        if done.exception is not None:
            raise done.exception
        return json.loads(done.stdout) if as_json else done

    return run


def test_unused_models_tools_keys_and_roles_are_listed_by_app(ask: Privileges) -> None:
    rows = ask()
    found = {(row["kind"], row["team"], row["what"]) for row in rows if row["kind"] != "key"}
    both = {"hidden on chat", "hidden on completions", "plain on completions"}
    assert {what for kind, team, what in found if (kind, team) == ("model", "search")} == both
    assert {what for kind, team, what in found if (kind, team) == ("model", "ads")} == {*both, "plain on chat"}
    assert {(team, what) for kind, team, what in found if kind == "tool"} == {
        ("search", "search"),
        ("ads", "search"),
        ("ads", "shell"),
    }
    assert {(team, what) for kind, team, what in found if kind == "role"} == {("search", "pilot")}
    assert [row["team"] for row in rows if row["kind"] == "key"] == ["ads"]
    assert {row["last_used"] for row in rows} == {"never"}


def test_it_can_be_narrowed(ask: Privileges) -> None:
    assert {row["team"] for row in ask("--team", "ads")} == {"ads"}


def test_a_team_that_nobody_calls_from_is_refused(home: Path) -> None:
    asked = ("policy", "privileges", "--team", "serch")
    said = ran(NO, *asked, home=home, config=home.parent / "bursar.yaml").stderr
    assert "no application has a key for team=serch" in said
    assert said.endswith("did you mean team=search?\n")


def test_it_says_from_when_on_the_ledger_knows(ask: Privileges) -> None:
    done = ask(as_json=False)
    assert "Granted to 2 keys and not used since" in done.stdout
    assert "what was used before that is not known here" in done.stderr


def test_another_bundle_may_be_asked(ask: Privileges, tmp_path: Path) -> None:
    target = tmp_path / "bursar" / "admission"
    target.mkdir(parents=True)
    (target / "admission.rego").write_text(REGO.format("admission", 'input.intent.model == "embed"'))
    found = [row["what"] for row in ask("--bundle", str(tmp_path), "--team", "search") if row["kind"] == "model"]
    assert found == ["embed on embeddings"]


def test_a_time_that_is_none_is_wrong_usage(ask: Privileges) -> None:
    with pytest.raises(BadReport, match="cannot read the time"):
        ask("--since", "lately")
