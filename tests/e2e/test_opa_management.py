"""What an operator does with a real OPA: push, look, explain, build and wait; and what is said when it cannot."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from gateway.cli import opa as commands
from gateway.cli.output import brief
from policy.bundle import load
from policy.opa_build import build
from policy.opa_management import OpaManager, Refused
from policy.port import BundleError, EngineAway, EvaluationError, Undefined
from tests import opa_server
from tests.bundle_service import serving
from tests.e2e.test_opa_engine import GIVEN, SHIPPED, Keys

app = typer.Typer()
app.command("build")(commands.build_bundle)
app.command("push")(commands.push)
app.command("status")(commands.status)


def ran(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


@pytest.fixture(scope="module")
def scratch() -> Iterator[opa_server.OpaServer]:
    """An OPA that polls nothing."""
    with opa_server.OpaServer() as opa:
        yield opa


@pytest.fixture
def manager(scratch: opa_server.OpaServer) -> Iterator[OpaManager]:
    with OpaManager(scratch.url) as made:
        yield made


def test_the_shipped_bundle_is_pushed_whole_and_explained(manager: OpaManager) -> None:
    """Though its modules call each other's functions, and OPA compiles after each of them."""
    bundle = load(SHIPPED)
    pushed = manager.push(SHIPPED)
    assert pushed.revision == bundle.revision
    assert manager.policies() == sorted(pushed.policies) == sorted(module.file for module in bundle.modules)
    assert manager.policy(bundle.modules[0].file) == bundle.modules[0].text
    explained = manager.explain(GIVEN.document())
    assert explained.value["allow"] is True
    assert explained.revisions == {}
    assert any("data.bursar.admission.decision" in line for line in explained.trace)
    assert manager.is_healthy()


def test_a_push_takes_away_what_the_bundle_has_no_longer(manager: OpaManager, tmp_path: Path) -> None:
    manager.push(SHIPPED)
    rules = tmp_path / "bursar" / "admission" / "admission.rego"
    rules.parent.mkdir(parents=True)
    rules.write_text("package bursar.admission\n\ndecision := f(1, [2, 3])\n\nf(a, b) := [a, b]\n")
    pushed = manager.push(tmp_path)
    assert pushed.policies == tuple(manager.policies()) == ("bursar/admission/admission.rego",)
    assert len(pushed.removed) == len(load(SHIPPED).modules) - 1
    assert manager.explain({}).value == [1, [2, 3]]
    manager.push(SHIPPED)
    assert manager.explain(GIVEN.document()).value["allow"] is True


def test_a_module_that_does_not_compile_is_named_by_file_and_line_and_is_not_taken(manager: OpaManager) -> None:
    before = manager.policies()
    with pytest.raises(BundleError, match=r"^bursar/x\.rego:3: var b is unsafe"):
        manager.put_policy("bursar/x.rego", "package bursar.x\n\na := b\n")
    with pytest.raises(BundleError, match=r"^bursar/x\.rego:3: .*`if` keyword"):
        manager.put_policy("bursar/x.rego", "package bursar.x\n\na { true }\n")  # of Rego v0, which is not rewritten
    assert manager.policies() == before


def test_what_is_undefined_or_fails_is_no_explanation(manager: OpaManager) -> None:
    manager.put_policy("try/try.rego", "package try\n\nfails := to_number(input.x)\n\nclash := input.y[_]\n")
    with pytest.raises(Undefined):
        manager.explain({}, "try/absent")
    with pytest.raises(EvaluationError, match="to_number"):
        manager.explain({"x": "a lot"}, "try/fails")
    with pytest.raises(EvaluationError, match=r"conflicting values: 1 at try/try\.rego:5 2 at"):
        manager.explain({"y": [1, 2]}, "try/clash")
    manager.delete_policy("try/try.rego")


def test_what_opa_refuses_is_said_in_its_words(manager: OpaManager) -> None:
    with pytest.raises(Refused, match="policy id"):
        manager.delete_policy("nobody's")
    with pytest.raises(Refused, match="policy id"):
        manager.policy("nobody's")
    with pytest.raises(Refused, match="status plugin not enabled"):
        manager.bundles()
    manager.push(SHIPPED)
    with pytest.raises(Refused, match="conflicting rule for data path"):
        manager.put_data("bursar/admission/decision", {})


def test_an_address_that_is_none_or_at_which_no_opa_is_is_said(tmp_path: Path) -> None:
    for url in ("opa:8181", "http://", "ftp://opa", "http://opa/v1"):
        with pytest.raises(Refused, match="is not the address of an OPA"):
            OpaManager(url)
    with OpaManager("http://127.0.0.1:1") as manager:
        with pytest.raises(EngineAway, match=r"127\.0\.0\.1:1 cannot be asked"):
            manager.policies()
        assert not manager.is_healthy()
    (tmp_path / "file").write_text("x")
    with serving(tmp_path / "file") as service, OpaManager(service.url) as manager, pytest.raises(Refused):
        manager.policies()


def test_what_is_served_by_a_bundle_cannot_be_pushed_over(tmp_path: Path) -> None:
    file = tmp_path / "bundle.tar.gz"
    build(SHIPPED, file, str(opa_server.binary()))
    with opa_server.OpaServer(paths=[file], are_bundles=True) as opa, OpaManager(opa.url) as manager:
        with pytest.raises(Refused, match="owned by bundle"):
            manager.push(SHIPPED)
        assert manager.explain(GIVEN.document()).revisions == {str(file): load(SHIPPED).revision}


def test_the_commands_build_wait_for_what_they_built_and_tell_why_another_is_not_active(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{opa_server.binary().parent}:/usr/bin:/bin")
    keys, theirs = Keys(tmp_path, "ours"), Keys(tmp_path, "theirs")
    file = tmp_path / "bundle.tar.gz"
    arguments = ["build", "--bundle", str(SHIPPED), "--output", str(file)]
    built = ran(*arguments, "--key", str(keys.private), "--verify", str(keys.public))
    revision = load(SHIPPED).revision
    assert built.exit_code == 0
    assert built.output.endswith(f": {brief(revision)}, {file.stat().st_size:,} bytes, signed as bursar\n")
    with serving(file) as service, opa_server.OpaServer(service.configuration(keys.public)) as opa:
        seen = ran("status", "--opa", opa.url, "--revision", revision, "--json")
        assert seen.exit_code == 0
        [row] = json.loads(seen.stdout)
        assert (row["name"], row["revision"], row["problem"]) == ("bursar", revision, "")
        other = ran(*arguments, "--key", str(theirs.private), "--json")
        assert json.loads(other.stdout)["is_signed"] is True
        missed = ran("status", "--opa", opa.url, "--revision", "sha256:other", "--wait-s", "3")
        assert missed.exit_code == 1
        assert "failed to verify JWT signature" in " ".join(missed.output.split())
        assert "sha256:other is not active after 3 s" in missed.output
        refused = ran("push", "--bundle", str(SHIPPED), "--opa", opa.url)
        assert "owned by bundle" in str(refused.exception)


def test_the_commands_push_and_ask_for_what_they_need(
    scratch: opa_server.OpaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = ran("push", "--bundle", str(SHIPPED), "--opa", scratch.url)
    assert pushed.exit_code == 0
    assert "bursar/admission/admission.rego" in pushed.output
    away = ran("status", "--opa", "http://127.0.0.1:1")
    assert isinstance(away.exception, EngineAway)
    monkeypatch.setenv("PATH", str(tmp_path))
    without = ran("build", "--bundle", str(SHIPPED), "--output", str(tmp_path / "bundle.tar.gz"))
    assert without.exit_code == 3
    assert "there is no opa on PATH" in without.output
