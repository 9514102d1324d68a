"""Through a real gateway, each thing that a request can do wrong leaves its signal and its rows of tools."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway import gateway_process
from tests.gateway.deployment import document
from tests.gateway.fake_runtime import FakeRuntime, chunk, events, sse, usage, whole
from tests.gateway.gateway_process import GatewayProcess, error_of, until, write_config

# What a team may is what it is called: the rules are those of no shipped bundle.
REGO = """package bursar.admission

import rego.v1

decision := {"allow": false, "reasons": [{"code": code, "message": "No."}], "obligations": {}} if {
	code := {"barred": "clearance_too_low", "risky": "risk_critical"}[input.principal.team]
} else := {"allow": true, "reasons": [], "obligations": {"blocked_tools": blocked}}

blocked := [tool | some tool in input.intent.tools; tool == "shell"]
"""
HELLO = [{"role": "user", "content": "hello"}]


def tools(*names: str) -> list[dict[str, Any]]:
    return [{"type": "function", "function": {"name": name, "parameters": {}}} for name in names]


def calling(*names: str) -> dict[str, Any]:
    """The script of an answer that calls these tools."""
    calls = [{"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}} for name in names]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    choices = [{"index": 0, "message": message, "finish_reason": "tool_calls"}]
    return {"steps": [json.dumps({"id": "c", "model": "m", "choices": choices, "usage": usage(3)})]}


@pytest.fixture(scope="module")
def gateway(fake: FakeRuntime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway that scores every answer."""
    folder = tmp_path_factory.mktemp("signals")
    (folder / "rego" / "bursar" / "admission").mkdir(parents=True)
    (folder / "rego" / "bursar" / "admission" / "admission.rego").write_text(REGO)
    config = write_config(folder / "bursar.yaml", {**document(fake.url), "quality": {"sample": 1}})
    with gateway_process.running(folder / "home", config) as gateway:
        yield gateway


def counts(gateway: GatewayProcess, team: str) -> dict[tuple[str, str], int]:
    """How often each signal has been noted of a team, by name and subject, but for answers that were scored."""
    found: dict[tuple[str, str], int] = {}
    for row in gateway.records("signal"):
        if row["team"] == team and row["name"] != "quality":
            key = (row["name"], row.get("subject", ""))
            found[key] = found.get(key, 0) + row["value"]
    return found


def await_counts(gateway: GatewayProcess, team: str, expected: dict[tuple[str, str], int]) -> None:
    """Wait until these signals have been noted; AssertionError where it stays at others."""
    until(lambda: counts(gateway, team).items() >= expected.items(), f"{expected} of {team}")
    assert counts(gateway, team) == expected


def scored(gateway: GatewayProcess, team: str) -> list[tuple[str, int]]:
    """The levels of the answers of a team that have been scored, and how many had each."""
    rows = [row for row in gateway.records("signal") if (row["team"], row["name"]) == (team, "quality")]
    return [(row["level"], row["value"]) for row in rows]


def test_a_violation_is_noted_with_its_reason_and_what_risk_refuses_is_not(gateway: GatewayProcess) -> None:
    for _ in range(3):
        error_of(gateway.chat("risky"), 403, "policy_denied")
        error_of(gateway.chat("barred"), 403, "policy_denied")
    await_counts(gateway, "barred", {("policy_violation", "clearance_too_low"): 3})
    assert counts(gateway, "risky") == {}


def test_blocked_and_called_tools_leave_rows_and_blocked_ones_a_signal(gateway: GatewayProcess) -> None:
    for _ in range(2):
        answer = gateway.chat("toolers", tools=tools("shell", "search"), script=calling("search", "search"))
        gateway.ended(answer)
    await_counts(gateway, "toolers", {("tool_blocked", "shell"): 2})
    rows = [row for row in gateway.records("tool_call") if row["team"] == "toolers"]
    assert sorted((row["tool"], row["phase"], row["verdict"]) for row in rows) == [
        *[("search", "called", "allow")] * 4,
        ("search", "offered", "allow"),
        *[("shell", "offered", "blocked")] * 2,
    ]
    assert {row["request_id"] for row in rows if row["phase"] == "called"} <= {
        row["request_id"] for row in gateway.records("usage")
    }
    assert all(row["decision_id"] and row["key_id"] for row in rows)


def test_calls_in_a_stream_are_seen_too(gateway: GatewayProcess) -> None:
    call = {"index": 0, "id": "x", "type": "function", "function": {"name": "search", "arguments": '{"q":'}}
    first = {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]}
    rest = {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}}]}
    script = sse(*events(json.dumps(first), json.dumps(rest), chunk("", usage(2)), "[DONE]"))
    gateway.ended(gateway.chat("streamers", stream=True, tools=tools("search"), script=script))
    until(lambda: bool([row for row in gateway.records("tool_call") if row["phase"] == "called"]), "the call")
    called = [row for row in gateway.records("tool_call") if (row["team"], row["phase"]) == ("streamers", "called")]
    assert [row["tool"] for row in called] == ["search"]


def test_a_runtime_that_fails_is_noted_and_one_that_refuses_a_request_is_not(gateway: GatewayProcess) -> None:
    error_of(gateway.chat("failing", script={"status": 500, "steps": ["{}"]}), 502, "upstream_error")
    gateway.ended(gateway.chat("failing", stream=True, script=sse(*events(chunk("a", usage(1))), None)))
    error_of(gateway.chat("failing", model="absent"), 502, "upstream_error")
    said = json.dumps({"error": {"message": "too long", "type": "invalid_request_error", "code": None}})
    assert gateway.chat("failing", script={"status": 400, "steps": [said]}).status_code == 400
    error_of(gateway.chat("failing", script={"status": 429, "steps": ["{}"]}), 503, "overloaded")
    await_counts(gateway, "failing", {("upstream_error", "fake"): 2, ("upstream_error", "absent"): 1})
    assert not [row for row in gateway.records("signal") if (row["team"], row["name"]) == ("failing", "quality")]


@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_scored_whole_or_streamed_and_their_text_is_nowhere(gateway: GatewayProcess, stream: bool) -> None:
    secret, team = "correct horse battery staple ", f"scored-{stream}"
    loop = secret * 60
    script = {"steps": [whole(usage(3), loop)]}
    if stream:
        script = sse(*events(*[chunk(secret, usage(at + 1)) for at in range(60)], "[DONE]"))
    gateway.ended(gateway.chat(team, stream=stream, script=script))
    await_counts(gateway, team, {("quality_failed", "repetition"): 1})
    assert scored(gateway, team) == [("failed", 1)]
    for path in (gateway.home / "journal").rglob("*"):
        assert path.is_dir() or secret.strip().encode() not in path.read_bytes()


def test_a_good_answer_passes_and_one_that_is_no_json_does_not(gateway: GatewayProcess) -> None:
    gateway.ended(gateway.chat("good"))
    gateway.ended(gateway.chat("bad", response_format={"type": "json_object"}))
    await_counts(gateway, "bad", {("quality_failed", "schema"): 1})
    until(lambda: bool(scored(gateway, "good")), "the score")
    assert (counts(gateway, "good"), scored(gateway, "good")) == ({}, [("ok", 1)])


def test_a_bundle_that_is_put_back_is_a_rollback(gateway: GatewayProcess) -> None:
    rules: Path = gateway.config.parent / "rego" / "bursar" / "admission" / "admission.rego"
    for text in (REGO + "\n# Another.\n", REGO):
        rules.write_text(text)
        assert gateway.admin.post("/admin/reload").raise_for_status().json()["applied"]
    await_counts(gateway, "", {("rollback", "policy"): 1})


def test_what_was_noted_last_is_in_the_journal_when_the_gateway_has_stopped(fake: FakeRuntime, tmp_path: Path) -> None:
    (tmp_path / "rego" / "bursar" / "admission").mkdir(parents=True)
    (tmp_path / "rego" / "bursar" / "admission" / "admission.rego").write_text(REGO)
    gateway = GatewayProcess(tmp_path / "home", write_config(tmp_path / "bursar.yaml", document(fake.url)))
    gateway.key("barred")
    error_of(gateway.chat("barred"), 403, "policy_denied")
    assert gateway.stop() == 0
    assert [row["value"] for row in gateway.records("signal") if row["name"] == "policy_violation"] == [1]
