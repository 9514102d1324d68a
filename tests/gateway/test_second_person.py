"""A live gateway applies what loosens something only once a second person agrees, and its command line asks both."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway.home import Home
from tests.gateway import gateway_process
from tests.gateway.deployment import deploy, tables
from tests.gateway.fake_runtime import FakeRuntime
from tests.gateway.gateway_process import GatewayProcess, error_of, until, write_bundle, write_config
from tests.gateway.test_cli_commands import AWAY, DONE, NO, WRONG_USAGE, answer, ran
from tests.gateway.test_shared_book import both, configured
from tests.redis_server import RedisServer


@pytest.fixture(scope="module")
def own(fake: FakeRuntime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway whose configuration may be changed, and in which loosening takes two."""
    folder = tmp_path_factory.mktemp("own")
    slo = {"id": "up", "owner": "platform", "scope": {}, "kind": "availability", "objective": 0.9, "frozen": True}
    slo |= {"fast": {"burn": 5}, "slow": {"burn": 2}}
    config = deploy(folder, fake.url, slos=[slo], approvals={"undo_s": 0})
    with gateway_process.running(folder / "home", config) as own:
        yield own


@pytest.fixture(scope="module")
def bob(own: GatewayProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the admin key of another person."""
    asked = {"org": "-", "team": "-", "app": "admin", "kind": "admin", "user": "bob"}
    file = tmp_path_factory.mktemp("bob") / "key"
    file.write_text(own.admin.post("/admin/keys", json=asked).raise_for_status().json()["secret"])
    return file


@pytest.fixture(autouse=True)
def as_it_was(own: GatewayProcess, bob: Path) -> Iterator[None]:
    """Put configuration and bundle back after each test, with both persons' agreement."""
    config = own.config.read_text()
    yield
    own.config.write_text(config)
    write_bundle(own.config.parent / "rego", tables())
    said = own.admin.post("/admin/reload").json()
    if not said["applied"]:
        approved(own, bob, said["approval"]["id"]).raise_for_status()
    for each in own.admin.get("/admin/approvals").json()["approvals"]:
        own.admin.post(f"/admin/approvals/{each['id']}", json={"approve": False}).raise_for_status()


def change(own: GatewayProcess, edit: Callable[[dict[str, Any]], object]) -> None:
    whole = yaml.safe_load(own.config.read_text())
    edit(whole)
    write_config(own.config, whole)


def raised(own: GatewayProcess, limit: int) -> None:
    def edit(whole: dict[str, Any]) -> None:
        next(each for each in whole["budgets"] if each["id"] == "quota-day")["limit"] = limit

    change(own, edit)


def approved(own: GatewayProcess, key: Path, approval_id: str, *, approve: bool = True) -> httpx.Response:
    headers = {"authorization": f"Bearer {key.read_text()}"}
    return own.admin.post(f"/admin/approvals/{approval_id}", json={"approve": approve}, headers=headers)


def limit(own: GatewayProcess) -> int:
    (budget,) = own.admin.get("/admin/budgets", params={"budget": "quota-day"}).json()["budgets"]
    return int(budget["limit"])


def rows(own: GatewayProcess, subject: str) -> list[str]:
    return [row["action"] for row in own.records("control") if row["subject"] == subject]


def test_a_raised_limit_waits_and_is_in_force_once_another_person_has_agreed(own: GatewayProcess, bob: Path) -> None:
    raised(own, 5000)
    answer = own.admin.post("/admin/reload")
    assert answer.status_code == 202
    said = answer.json()
    assert [each["path"] for each in said["loosens"]] == ["budgets.quota-day.limit"]
    assert limit(own) == 100
    error_of(own.chat("quota", max_tokens=500), 429, "insufficient_quota")
    own_word = own.admin.post(f"/admin/approvals/{said['approval']['id']}", json={"approve": True})
    assert own_word.status_code == 403
    done = approved(own, bob, said["approval"]["id"]).json()
    assert done["result"]["changes"] == ["budgets.quota-day.limit"]
    assert limit(own) == 5000
    assert own.chat("quota", max_tokens=500).status_code == 200
    assert rows(own, said["approval"]["id"]) == ["approval_requested", "approval_approved"]
    applied = [row for row in own.records("control") if row["action"] == "config_applied"][-1]
    assert applied["digest"] == said["approval"]["detail"]["config_digest"]


def test_a_lowered_limit_is_in_force_at_once(own: GatewayProcess) -> None:
    raised(own, 50)
    assert own.admin.post("/admin/reload").json()["applied"] is True
    assert limit(own) == 50


def test_what_was_in_force_before_the_last_reload_comes_back_unasked_and_nothing_else_does(
    own: GatewayProcess, bob: Path
) -> None:
    change(own, lambda whole: whole["approvals"].update(undo_s=600))
    approved(own, bob, own.admin.post("/admin/reload").json()["approval"]["id"]).raise_for_status()
    config = own.config.read_text()
    raised(own, 50)
    assert own.admin.post("/admin/reload").json()["applied"] is True
    raised(own, 99)
    assert own.admin.post("/admin/reload").status_code == 202
    own.config.write_text(config)
    assert own.admin.post("/admin/reload").json()["applied"] is True
    assert limit(own) == 100
    assert rows(own, str(own.config))[-2:] == ["undone", "config_applied"]


def test_a_file_that_was_changed_after_it_was_asked_for_is_not_applied(own: GatewayProcess, bob: Path) -> None:
    raised(own, 5000)
    said = own.admin.post("/admin/reload").json()
    raised(own, 9000)
    answer = approved(own, bob, said["approval"]["id"])
    assert answer.status_code == 409
    assert "another change" in answer.json()["problems"][0]
    assert limit(own) == 100
    raised(own, 5000)
    assert approved(own, bob, said["approval"]["id"]).status_code == 200
    assert limit(own) == 5000


def test_a_denied_request_is_never_applied(own: GatewayProcess, bob: Path) -> None:
    raised(own, 5000)
    said = own.admin.post("/admin/reload").json()
    assert approved(own, bob, said["approval"]["id"], approve=False).json()["approval"]["state"] == "denied"
    assert approved(own, bob, said["approval"]["id"]).status_code == 409
    assert limit(own) == 100


def test_whoever_sends_a_signal_is_one_person_with_the_homes_own_key(own: GatewayProcess, bob: Path) -> None:
    raised(own, 5000)
    own.process.send_signal(signal.SIGHUP)
    until(lambda: bool(own.admin.get("/admin/approvals").json()["approvals"]), "the request")
    (waits,) = own.admin.get("/admin/approvals").json()["approvals"]
    assert waits["requested_by"] == "SIGHUP"
    assert own.admin.post(f"/admin/approvals/{waits['id']}", json={"approve": True}).status_code == 403
    assert approved(own, bob, waits["id"]).status_code == 200
    assert limit(own) == 5000


def test_a_key_that_one_has_made_oneself_is_no_second_person(own: GatewayProcess, bob: Path, tmp_path: Path) -> None:
    raised(own, 5000)
    as_bob = {"authorization": f"Bearer {bob.read_text()}"}
    said = own.admin.post("/admin/reload", headers=as_bob).json()
    asked = {"org": "-", "team": "-", "app": "admin", "kind": "admin"}
    other = tmp_path / "other"
    other.write_text(own.admin.post("/admin/keys", json=asked, headers=as_bob).json()["secret"])
    assert approved(own, other, said["approval"]["id"]).status_code == 403
    assert own.admin.post(f"/admin/approvals/{said['approval']['id']}", json={"approve": True}).status_code == 200


def test_a_frozen_target_takes_two(own: GatewayProcess) -> None:
    change(own, lambda whole: whole["slos"][0].update(objective=0.85))
    said = own.admin.post("/admin/reload").json()
    assert [each["path"] for each in said["loosens"]] == ["slos.up.objective"]


def test_a_bundle_that_admits_what_was_denied_waits_with_what_it_flips(own: GatewayProcess, bob: Path) -> None:
    error_of(own.chat(model="hidden"), 404, "model_not_found")
    offered = tables()
    offered["rows"]["acme"]["*"]["*"]["offers"]["hidden"] = "plain"
    write_bundle(own.config.parent / "rego", offered)
    said = own.admin.post("/admin/reload").json()
    assert said["applied"] is False
    (flip,) = [each for each in said["loosens"] if each["after"] == "allowed"]
    assert flip["path"].startswith("admission of acme/free/web to hidden (chat")
    error_of(own.chat(model="hidden"), 404, "model_not_found")
    assert approved(own, bob, said["approval"]["id"]).status_code == 200
    assert own.chat(model="hidden").status_code == 200


def test_a_bundle_of_other_admissions_that_flips_nothing_recorded_is_applied_and_named(own: GatewayProcess) -> None:
    before = own.chat().headers["x-bursar-policy"]
    tighter = tables()
    tighter["rows"]["acme"]["*"]["*"]["blocked_tools"]["browser"] = True
    write_bundle(own.config.parent / "rego", tighter)
    said = ran(DONE, "reload", home=own.home).stdout
    after = own.chat().headers["x-bursar-policy"]
    assert before != after
    assert said.endswith(f": policy {before[:23]} -> {after[:23]}\n")


def test_the_command_line_asks_lists_and_approves(
    own: GatewayProcess, bob: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised(own, 5000)
    asked = ran(NO, "reload", home=own.home)
    assert "bursar approve" in asked.stdout
    assert "budgets.quota-day.limit: 100 -> 5,000: more fits the same window" in asked.stdout
    (waits,) = own.admin.get("/admin/approvals").json()["approvals"]
    assert waits["id"] in ran(DONE, "approvals", home=own.home).stdout
    assert "another person" in ran(NO, "approve", waits["id"], home=own.home).stderr
    said = ran(DONE, "approve", waits["id"], "--reason", "read it", "--key-file", str(bob), home=own.home).stdout
    assert f"approved {waits['id']}" in said
    assert "applied" in said
    assert limit(own) == 5000
    monkeypatch.setenv("BURSAR_ADMIN_KEY", bob.read_text())
    assert "already" in ran(NO, "approve", waits["id"], home=own.home).stderr
    assert ran(DONE, "reload", home=own.home).stdout.startswith("applied")
    (decided,) = [each for each in answer("approvals", "--all", "--json", home=own.home) if each["id"] == waits["id"]]
    assert (decided["state"], decided["reason"]) == ("approved", "read it")


def test_who_has_no_access_to_the_home_names_the_gateway(own: GatewayProcess, bob: Path, tmp_path: Path) -> None:
    raised(own, 5000)
    said = own.admin.post("/admin/reload").json()
    there = ("--url", str(own.admin.base_url).rstrip("/"), "--key-file", str(bob))
    nowhere = tmp_path / "nowhere"
    shown = ran(DONE, "approve", said["approval"]["id"], "--show", *there, home=nowhere)
    assert '"state": "pending"' in shown.stdout
    denied = ran(DONE, "approve", said["approval"]["id"], "--deny", *there, home=nowhere)
    assert denied.stdout.startswith("denied")
    ran(WRONG_USAGE, "approvals", *there[:2], home=nowhere)
    ran(WRONG_USAGE, "approvals", "--url", "https://x", *there[2:], home=nowhere)
    said = ran(WRONG_USAGE, "approvals", "--key-file", "nosuch", home=nowhere).stderr
    assert "--key-file nosuch cannot be read" in said


def test_without_a_gateway_nothing_waits(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").path
    assert "what waits for approval lives in one that does" in ran(AWAY, "approvals", home=home).stderr
    said = ran(AWAY, "reload", home=home).stderr
    assert said == f"bursar: no gateway runs on {home}: nothing to reload; a start takes the file as it is\n"


def test_an_approval_nobody_has_says_where_to_look(own: GatewayProcess) -> None:
    assert "bursar approvals" in ran(NO, "approve", "nothing", home=own.home).stderr


def test_a_grant_needs_a_second_person_where_grants_do(own: GatewayProcess, bob: Path) -> None:
    change(own, lambda whole: whole["approvals"].update(grants=True))
    assert own.admin.post("/admin/reload").json()["applied"] is True
    said = ran(DONE, "budget", "grant", "quota-day", "50", home=own.home)
    assert "not granted" in said.stdout
    (waits,) = own.admin.get("/admin/approvals").json()["approvals"]
    assert (waits["kind"], waits["detail"]["amount"]) == ("grant", 50)
    done = ran(DONE, "approve", waits["id"], "--key-file", str(bob), home=own.home)
    assert "granted 50 to quota-day (*)" in done.stdout


def test_one_word_is_enough_for_all_gateways_of_a_home(fake: FakeRuntime, tmp_path: Path) -> None:
    with RedisServer("always") as server:
        config = configured(tmp_path, fake.url, server)
        home = tmp_path / "home"
        with both(home) as (first, second):
            key = tmp_path / "bob"
            key.write_text(first.key("-", kind="admin")["secret"])
            headers = {"authorization": f"Bearer {key.read_text()}"}
            until(lambda: second.admin.get("/admin/keys", headers=headers).status_code == 200, "the other knows bob")
            whole = yaml.safe_load(config.read_text())
            whole["budgets"][0]["limit"] += 100
            write_config(config, whole)
            ran(NO, "reload", home=home)
            waiting = answer("approvals", "--json", home=home)
            assert len({each["id"] for each in waiting}) == 2
            assert len({each["digest"] for each in waiting}) == 1
            said = ran(DONE, "approve", waiting[1]["id"], "--key-file", str(key), home=home)
            assert said.stdout.count("applied") == 2
            for each in (first, second):
                (budget,) = each.admin.get("/admin/budgets", params={"budget": "few-requests"}).json()["budgets"]
                assert budget["limit"] == 104
            assert answer("approvals", "--json", home=home) == []


def test_gates_are_asked_from_the_command_line(own: GatewayProcess) -> None:
    own.key("free")
    unknown = ran(NO, "launch", "check", "--model", "nothing", "--env", "prod", home=own.home)
    assert unknown.stdout.startswith("no-go: launch of nothing in prod")
    assert "target_unknown" in unknown.stdout
    said = ran(NO, "release", "check", "--app", "web", "--team", "free", "--release", "1.2", home=own.home).stdout
    assert said.startswith("no-go: release of web@1.2 in test")
    assert "error_budget" in said
    rows = [row for row in own.records("control") if row["action"] == "gate_checked"]
    assert [row["subject"] for row in rows] == ["nothing", "web@1.2"]
    assert "no application has a key" in ran(NO, "release", "check", "--app", "nobody", home=own.home).stderr
    ran(WRONG_USAGE, "release", "check", "--app", "web", "--team", "free", "--env", "prod", home=own.home)
    ran(WRONG_USAGE, "launch", "check", home=own.home)
    ran(WRONG_USAGE, "launch", "check", "--tool", "shell", "--at", "later", home=own.home)


def test_what_a_gate_says_of_another_time_is_recorded_as_no_check(own: GatewayProcess) -> None:
    """At a time in the past, evidence that has expired since would count."""
    said = ran(NO, "launch", "check", "--tool", "past", "--at", "2026-01-31T10:00", home=own.home)
    assert "says nothing of now" in said.stderr
    assert rows(own, "past") == ["gate_asked"]


def test_a_gate_without_a_gateway_goes_by_the_configuration_or_not_at_all(own: GatewayProcess, tmp_path: Path) -> None:
    home = Home(tmp_path / "home").path
    here = ran(NO, "launch", "check", "--tool", "nothing", home=home, config=own.config)
    assert here.stdout.startswith("no-go: launch of nothing in test")
    assert "not recorded" in here.stderr
    assert "no gateway runs" in ran(AWAY, "release", "check", "--app", "web", home=home, config=own.config).stderr


def test_a_restart_takes_the_file_as_it_is_and_records_what_is_looser(fake: FakeRuntime, tmp_path: Path) -> None:
    config = deploy(tmp_path, fake.url)
    with gateway_process.running(tmp_path / "home", config) as first:
        assert [row for row in first.records("control") if row["action"] == "loosened"] == []
        raised(first, 5000)
        first.admin.post("/admin/reload")
        assert len(first.admin.get("/admin/approvals").json()["approvals"]) == 1
    with gateway_process.running(tmp_path / "home", config) as second:
        assert limit(second) == 5000
        assert second.admin.get("/admin/approvals").json() == {"approvals": []}
        (row,) = [row for row in second.records("control") if row["action"] == "loosened"]
        assert (row["actor"], row["detail"][0]["path"]) == ("start", "budgets.quota-day.limit")
