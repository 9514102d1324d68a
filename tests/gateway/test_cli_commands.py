"""The command line, while `bursar up` runs and when it does not: what it prints, changes and exits with."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.assembly import writer_directory
from gateway.cli import main
from gateway.home import Home
from ledger.segments import segment_paths
from tests.gateway import gateway_process
from tests.gateway.deployment import deploy, tables, write_bundle
from tests.gateway.fake_runtime import FakeRuntime
from tests.gateway.gateway_process import GatewayProcess, bursar, error_of, until

DONE, NO, WRONG_USAGE, AWAY = 0, 1, 2, 3


@pytest.fixture(scope="module")
def up(fake: FakeRuntime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """`bursar up`: gateway and ledger process."""
    folder = tmp_path_factory.mktemp("up")
    with gateway_process.running(folder / "home", deploy(folder, fake.url), "up") as up:
        yield up


@pytest.fixture(scope="module")
def rested(fake: FakeRuntime, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A home, and the configuration, of a gateway that has served one request and stopped."""
    folder = tmp_path_factory.mktemp("rested")
    config = deploy(folder, fake.url)
    with gateway_process.running(folder / "home", config) as gateway:
        gateway.ended(gateway.chat("roomy"))
    return folder / "home", config


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def ran(code: int, *arguments: str, home: Path, config: Path | None = None) -> Done:
    """Run one command in this process, which is a second faster than in its own, and expect its exit code."""
    environ = {"BURSAR_HOME": str(home), "BURSAR_CONFIG": str(config or home / "none.yaml")}
    out, err = TextIOWrapper(BytesIO(), encoding="utf-8", write_through=True), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["bursar", *arguments])
        for name, value in environ.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            main()
    out.seek(0)
    done = Done(int(ended.value.code or 0), out.read(), err.getvalue())
    assert done.code == code, (arguments, done)
    return done


def answer(*arguments: str, home: Path, config: Path | None = None) -> Any:
    """The JSON that a command prints when all goes well."""
    return json.loads(ran(DONE, *arguments, home=home, config=config).stdout)


def test_exit_codes_are_those_of_the_process(tmp_path: Path) -> None:
    for code, arguments in ((DONE, ["--help"]), (WRONG_USAGE, ["nonsense"]), (WRONG_USAGE, ["config", "check"])):
        done = bursar(*arguments, home=tmp_path)
        assert done.returncode == code
        assert bool(done.stdout) == (code == DONE)
        assert bool(done.stderr) == (code != DONE)
        assert "Traceback" not in done.stderr


def test_wrong_usage_is_two(tmp_path: Path) -> None:
    for arguments in (
        ["nonsense"],
        ["budget", "grant"],
        ["key", "create"],
        ["budget", "grant", "x", "-5"],
        ["up", "--once"],
    ):
        assert ran(WRONG_USAGE, *arguments, home=tmp_path).stderr


def test_a_missing_or_wrong_configuration_is_two_and_names_the_line(tmp_path: Path, rested: tuple[Path, Path]) -> None:
    assert "cannot be read" in ran(WRONG_USAGE, "config", "check", home=tmp_path).stderr
    wrong = tmp_path / "wrong.yaml"
    lines = rested[1].read_text().splitlines()
    (tmp_path / "rego").mkdir()
    at = next(number for number, line in enumerate(lines) if "body_bytes_max" in line)
    lines[at] = "  body_bytes_max: -5"
    wrong.write_text("\n".join(lines))
    said = ran(WRONG_USAGE, "config", "check", home=tmp_path, config=wrong).stderr
    assert f"wrong.yaml:{at + 1}:" in said
    assert "limits.body_bytes_max" in said


@pytest.mark.parametrize(
    "command",
    [
        *(["slo", "--check"], ["headroom"], ["policy", "explain", "x"], ["policy", "shadow", "report"]),
        *(["ledger", "report", "spend"], ["ledger", "verify"], ["budget", "list"], ["key", "list"], ["reload"]),
    ],
    ids=" ".join,
)
def test_a_home_that_does_not_exist_is_one_line_and_is_not_made(command: list[str], tmp_path: Path) -> None:
    typo = tmp_path / "typo"
    slo = {"id": "up", "owner": "search", "scope": {"team": "roomy"}, "kind": "availability", "objective": 0.99}
    done = ran(AWAY, *command, home=typo, config=deploy(tmp_path, "http://127.0.0.1:9", slos=[slo]))
    assert (done.stdout, done.stderr) == ("", f"bursar: there is no home at {typo}\n")
    assert not typo.exists()


def test_config_check_and_show(rested: tuple[Path, Path], tmp_path: Path) -> None:
    said = ran(DONE, "config", "check", home=tmp_path, config=rested[1]).stdout
    assert "5 runtimes, 12 models" in said
    shown = answer("config", "show", "--json", home=tmp_path, config=rested[1])
    assert shown["limits"]["queued_max"] == 1024
    assert "runtime-secret" not in json.dumps(shown)


def test_policy_test_and_check(rested: tuple[Path, Path], tmp_path: Path) -> None:
    tested = tmp_path / "tested"
    write_bundle(tested, tables())
    test = "package bursar.admission_test\n\nimport rego.v1\n\ntest_two if 1 + 1 == 2\n\ntest_wrong if 1 + 1 == 3\n"
    (tested / "admission_test.rego").write_text("\n" * 93 + test)
    done = ran(NO, "policy", "test", "--bundle", str(tested), "--json", home=tmp_path)
    results = {(result["test"].rpartition(".")[2], result["passed"]) for result in json.loads(done.stdout)}
    assert results == {("test_two", True), ("test_wrong", False)}
    wrong, last = ran(NO, "policy", "test", "--bundle", str(tested), home=tmp_path).stdout.splitlines()[-2:]
    # As it is: of a place that ends in `:100:` a console makes an emoji, unless told not to.
    assert wrong.startswith("admission_test.rego:100: data.bursar.admission_test.test_wrong on ")
    assert last.startswith("2 tests, 1 failed, on embedded")
    assert "no problems" in ran(DONE, "policy", "check", home=tmp_path, config=rested[1]).stdout
    broken = tmp_path / "bundle"
    broken.mkdir()
    (broken / "bad.rego").write_text("package bursar.admission\n\nnot rego {\n")
    assert "bad.rego:3" in ran(NO, "policy", "check", "--bundle", str(broken), home=tmp_path).stdout
    ran(NO, "policy", "test", "--bundle", str(broken), home=tmp_path)


def test_a_bundle_without_tests_has_not_passed_them(rested: tuple[Path, Path], tmp_path: Path) -> None:
    ran(NO, "policy", "test", home=tmp_path, config=rested[1])


def test_budgets_offline_are_what_the_gateway_left(rested: tuple[Path, Path]) -> None:
    home, config = rested
    seen = answer("budget", "list", "--json", home=home, config=config)
    spent = {counter["budget"]: counter["spent"] for counter in seen["counters"]}
    assert (spent["org-day"], spent["roomy-day"]) == (10, 10)
    shown = answer("budget", "show", "roomy-day", "--json", home=home, config=config)
    assert [each["id"] for each in shown["budgets"]] == ["roomy-day"]
    assert "no budget nobody" in ran(NO, "budget", "show", "nobody", home=home, config=config).stderr
    table = ran(DONE, "budget", "list", home=home, config=config).stdout
    assert "roomy-day" in table


def test_a_journal_that_cannot_be_read_is_one_line(rested: tuple[Path, Path], tmp_path: Path) -> None:
    home, config = tmp_path / "home", rested[1]
    shutil.copytree(rested[0], home)
    (segment,) = segment_paths(writer_directory(Home(home)))
    segment.unlink()
    segment.mkdir()
    for command in (["budget", "list"], ["serve", "--port", "0", "--admin-port", "0"]):
        done = ran(AWAY, *command, home=home, config=config)
        assert done.stderr.startswith("bursar: ")
        assert done.stderr.endswith(": Is a directory; mend the disk, then start again\n")
        assert len(done.stderr.splitlines()) == 1


def test_a_grant_offline_is_in_force_when_the_gateway_starts(fake: FakeRuntime, rested: tuple[Path, Path]) -> None:
    home, config = rested
    granted = answer("budget", "grant", "roomy-day", "500", "--reason", "x", "--json", home=home, config=config)
    assert granted["amount"] == 500
    ran(NO, "budget", "grant", "nobody", "5", home=home, config=config)
    made = answer(
        *("key", "create", "--org", "acme", "--team", "roomy", "--app", "cli", "--json"), home=home, config=config
    )
    with gateway_process.running(home, config) as gateway:
        (counter,) = gateway.admin.get("/admin/budgets", params={"budget": "roomy-day"}).json()["counters"]
        assert (counter["limit"], counter["spent"]) == (10_500, 10)
        headers = {"authorization": f"Bearer {made['secret']}"}
        assert gateway.client.get("/v1/models", headers=headers).status_code == 200
    assert "revoked" in ran(DONE, "key", "revoke", made["key_id"], home=home, config=config).stdout
    ran(NO, "key", "revoke", "nothing", home=home, config=config)
    listed = {key["key_id"]: key for key in answer("key", "list", "--json", home=home)}
    assert listed[made["key_id"]]["revoked_at"] is not None


def test_a_wrong_key_is_two(rested: tuple[Path, Path]) -> None:
    home, config = rested
    arguments = ["key", "create", "--org", "acme", "--team", "*", "--app", "x"]
    assert "team" in ran(WRONG_USAGE, *arguments, home=home, config=config).stderr


def test_budgets_and_keys_online_are_live(up: GatewayProcess) -> None:
    error_of(up.chat("quota", max_tokens=500), 429, "insufficient_quota")
    ran(DONE, "budget", "grant", "quota-day", "1000", home=up.home, config=up.config)
    made_answer = up.chat("quota", max_tokens=500)
    assert made_answer.status_code == 200
    up.ended(made_answer)
    seen = answer("budget", "show", "quota-day", "--json", home=up.home, config=up.config)
    assert (seen["counters"][0]["limit"], seen["counters"][0]["spent"]) == (1100, 10)
    assert "no budget" in ran(NO, "budget", "grant", "nobody", "5", home=up.home, config=up.config).stderr
    made = answer(*("key", "create", "--org", "acme", "--team", "free", "--app", "c", "--json"), home=up.home)
    headers = {"authorization": f"Bearer {made['secret']}"}
    assert up.client.get("/v1/models", headers=headers).status_code == 200
    ran(DONE, "key", "revoke", made["key_id"], home=up.home)
    error_of(up.client.get("/v1/models", headers=headers), 401, "invalid_api_key")
    ran(NO, "key", "revoke", "nothing", home=up.home)


def test_a_second_gateway_on_the_same_home_is_refused(up: GatewayProcess) -> None:
    done = bursar("serve", "--port", "0", "--admin-port", "0", home=up.home, config=up.config)
    assert done.returncode == AWAY
    assert "journal" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_ledger_is_asked_while_up_runs(up: GatewayProcess) -> None:
    served = up.chat("free", user="ada", stream=True)
    row = up.ended(served)
    sql = f"SELECT status, list_cost_nusd, charges FROM usage WHERE request_id = '{row['request_id']}'"  # noqa: S608
    (found,) = answer("ledger", "query", sql, "--format", "json", home=up.home, config=up.config)
    assert (found["status"], int(found["list_cost_nusd"])) == ("ok", row["list_cost_nusd"])
    report = answer("ledger", "report", "spend", "--group-by", "team", "--json", home=up.home, config=up.config)
    assert {each["team"] for each in report} >= {"free"}
    csv = ran(DONE, "ledger", "query", "SELECT 1 AS one", "--format", "csv", home=up.home, config=up.config).stdout
    assert csv.split() == ['"one"', "1"]
    ran(NO, "ledger", "query", "SELECT nonsense FROM nowhere", home=up.home, config=up.config)
    ran(NO, "ledger", "query", "DROP TABLE usage", home=up.home, config=up.config)
    ran(WRONG_USAGE, "ledger", "report", "nonsense", home=up.home, config=up.config)
    ran(WRONG_USAGE, "ledger", "report", "spend", "--since", "yesterday-ish", home=up.home, config=up.config)


def test_the_ledger_is_asked_when_nothing_runs(rested: tuple[Path, Path]) -> None:
    home, config = rested
    rows = answer("ledger", "query", "SELECT team, status FROM usage", "--format", "json", home=home, config=config)
    assert rows == [{"team": "roomy", "status": "ok"}]
    report = answer("ledger", "report", "spend", "--json", home=home, config=config)
    assert sum(int(row["requests"]) for row in report) == 1


def test_a_table_has_no_format_of_its_own_and_steers_no_terminal(up: GatewayProcess) -> None:
    for own in ("CSV", "TSV"):
        done = ran(WRONG_USAGE, "ledger", "query", f"SELECT 1 FORMAT {own}", home=up.home, config=up.config)
        assert done.stderr.startswith("bursar: a query with a FORMAT of its own makes no table")
    done = ran(NO, "ledger", "query", "SELECT '\udcff'", home=up.home, config=up.config)
    assert done.stderr == "bursar: what is asked is no text in UTF-8 from its character 9 on\n"
    sql = r"SELECT 'a\x1b[2Jb' AS x"
    shown = ran(DONE, "ledger", "query", sql, home=up.home, config=up.config).stdout
    assert "a\ufffd[2Jb" in shown
    assert "\x1b" not in shown
    (row,) = answer("ledger", "query", sql, "--format", "json", home=up.home, config=up.config)
    assert row == {"x": "a\x1b[2Jb"}


def test_usage_older_than_memory_is_read_from_the_ledger_in_the_same_shape(up: GatewayProcess) -> None:
    served = up.chat("free")
    path = f"/v1/usage/{served.headers['x-request-id']}"
    headers = up.headers("free")
    recent = up.client.get(path, headers=headers).json()
    up.ended(served)
    pid = up.pid
    ran(DONE, "ledger", "query", "SELECT 1", home=up.home, config=up.config)
    os.kill(pid, 9)

    def is_back() -> bool:
        run = up.home / "run" / "gateway.json"
        if not run.exists():
            return False
        facts = json.loads(run.read_text())
        up.pid = facts["pid"]
        up.client.base_url = httpx.URL(f"http://{facts['host']}:{facts['port']}")
        return bool(up.pid != pid)

    until(is_back, "the supervisor to start the gateway again", 30)
    stored = up.client.get(path, headers=headers)
    assert stored.status_code == 200, stored.text
    same = ("object", "request_id", "status", "input_tokens", "output_tokens", "list_cost_nusd", "certainty", "stream")
    assert {name: stored.json()[name] for name in same} == {name: recent[name] for name in same}


def test_doctor_knows_what_runs(rested: tuple[Path, Path], up: GatewayProcess) -> None:
    home, config = rested
    done = ran(AWAY, "doctor", "--json", home=home, config=config)
    states = {each["dependency"]: each["state"] for each in json.loads(done.stdout)}
    assert (states["gateway"], states["ledger process"]) == ("optional", "optional")
    assert (states["runtime fake"], states["runtime dead"], states["configuration"]) == ("ok", "away", "ok")
    done = ran(AWAY, "doctor", "--json", home=up.home, config=up.config)
    states = {each["dependency"]: each["state"] for each in json.loads(done.stdout)}
    assert (states["gateway"], states["ledger process"], states["policy"]) == ("ok", "ok", "ok")
    assert "cannot be read" in ran(AWAY, "doctor", home=home).stdout
