"""Tools that an answer calls are held to what was offered and allowed; a second model is asked at one's own expense."""

import json
from typing import Any

import httpx
import pytest

from domain.ids import uuid7
from tests.gateway.fake_runtime import chunk, closing, events, sse, usage
from tests.gateway.gateway_process import HELLO, GatewayProcess, error_of, until
from tests.gateway.verified_deployment import AWS, SCHEMA, calling, says, withheld

ADD = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}
TOOLS = [ADD, *({"type": "function", "function": {"name": name}} for name in ("rm", "shell", "pay", "post"))]


@pytest.mark.parametrize(
    ("script", "kinds"),
    [
        (calling("add", '{"age": 7}'), []),
        (calling("add", '{"age": "7"}'), ["type"]),
        (calling("add", "not json"), ["arguments_not_a_json_object"]),
        (calling("multiply"), ["not_offered"]),
        (calling("rm"), ["not_offered"]),
        (calling("shell"), ["no_shell"]),
        (says("no call"), []),
        (says(None, function_call={"name": "rm", "arguments": "{}"}), ["not_offered"]),
        (calling("add", type="custom", custom={"name": "add", "input": "x"}, function=None), ["not_offered"]),
    ],
)
def test_a_tool_is_called_only_as_it_was_offered_and_policy_allows(
    verified: GatewayProcess, script: dict[str, Any], kinds: list[str]
) -> None:
    """`rm` is taken out of the request by policy, so it was not offered."""
    answer = verified.chat(model="tooled", tools=TOOLS, script=script)
    if kinds:
        error = withheld(verified, answer, "tool_calls", *kinds)
        assert "rm" not in json.dumps(error["bursar"])
    else:
        assert (answer.status_code, answer.text) == (200, script["steps"][0])


def test_each_call_leaves_a_row_of_what_policy_said(verified: GatewayProcess) -> None:
    calls = [{"type": "function", "function": {"name": name, "arguments": "{}"}} for name in ("post", "shell", "post")]
    answer = verified.chat(model="tooled", tools=TOOLS, script=says(None, tool_calls=calls))
    withheld(verified, answer, "tool_calls", "no_shell")
    request_id = answer.headers["x-request-id"]

    def told() -> list[tuple[str, str]]:
        rows = [row for row in verified.records("tool_call") if row["request_id"] == request_id]
        return sorted((row["tool"], row["verdict"]) for row in rows if row["phase"] == "called")

    assert told() == [("post", "verify"), ("post", "verify"), ("shell", "deny")]


@pytest.mark.parametrize("arguments", [{"age": "7"}, ["7"]])
def test_arguments_that_come_as_an_object_are_held_to_the_schema_too(verified: GatewayProcess, arguments: Any) -> None:
    """Nothing at all would conform to this one."""
    grow = {"name": "grow", "parameters": {"properties": SCHEMA["properties"]}}
    call = {"type": "function", "function": {"name": "grow", "arguments": arguments}}
    tools = [{"type": "function", "function": grow}]
    answer = verified.chat(model="tooled", tools=tools, script=says(None, tool_calls=[call]))
    assert error_of(answer, 403, "verification_failed")["bursar"]["check"] == "tool_calls"


def test_a_tool_may_need_further_checks(verified: GatewayProcess) -> None:
    arguments = json.dumps({"text": AWS})
    answer = verified.chat(model="tooled", tools=TOOLS, script=calling("post", arguments))
    withheld(verified, answer, "secrets", "AWS Access Key")
    answer = verified.chat(model="tooled", tools=TOOLS, script=calling("post", f'{{"\\u0041{AWS[1:]}": 1}}'))
    withheld(verified, answer, "secrets", "AWS Access Key")
    assert verified.chat(model="tooled", tools=TOOLS, script=calling("post")).status_code == 200
    answer = verified.chat(model="tooled", tools=TOOLS, script=calling("pay"))
    error_of(answer, 403, "approval_required")


def test_the_second_model_is_asked_at_the_expense_of_the_same_principal(verified: GatewayProcess, judge: Any) -> None:
    asked = len(judge[1])
    answer = verified.chat("jury", model="judged", headers={"x-bursar-run": "run-9"}, script=says("fine"))
    assert answer.status_code == 200
    row = verified.ended(answer)
    (question,) = judge[1][asked:]
    assert '"fine"' in question["messages"][0]["content"]
    assert "hello" in question["messages"][0]["content"]
    assert (question["model"], question["temperature"], question["max_tokens"]) == ("judge", 0, 16)
    own = question_of(verified, row["request_id"])
    for name in ("org", "team", "app", "key_id", "run_id"):
        assert own[name] == row[name]
    assert (own["served_model"], own["status"], own["input_tokens"], own["output_tokens"]) == ("judge", "ok", 11, 5)
    assert own["list_cost_nusd"] > 0


@pytest.mark.parametrize(
    ("content", "kind"),
    [("mumble", "verdict_unclear"), ("breaking", "second_model_failed"), ("x" * 200_001, "too_large")],
)
def test_anything_but_a_clear_yes_is_a_no(verified: GatewayProcess, content: str, kind: str) -> None:
    withheld(verified, verified.chat(model="judged", script=says(content)), "second_model", kind)


def test_a_second_model_that_stalls_is_timed_out_and_is_a_no(verified: GatewayProcess) -> None:
    answer = verified.chat(model="judged", script=says("stalling"))
    withheld(verified, answer, "second_model", "second_model_failed")
    own = question_of(verified, answer.headers["x-request-id"])
    assert (own["status"], own["http_status"], own["certainty"]) == ("failed", 504, "at_most")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_while_the_second_model_is_asked_ends_both(verified: GatewayProcess, stream: bool) -> None:
    """What it leaves is a complete answer, and is charged as one."""
    client_id = uuid7()
    streamed = sse(*events(chunk("stalling", usage(3)), closing(usage(3)), "[DONE]"))
    script = streamed if stream else says("stalling")
    body = {"model": "judged", "messages": HELLO, "stream": stream, "n": 4, "max_tokens": 40, "script": script}
    headers = verified.headers("free", **{"x-request-id": client_id})
    with httpx.Client(base_url=verified.url, timeout=0.6) as leaving, pytest.raises(httpx.TimeoutException):
        leaving.post("/v1/chat/completions", json=body, headers=headers)
    row = verified.ended(client_id)
    assert (row["status"], row["output_tokens"], row["certainty"]) == ("cut", 3, "exact")
    own = question_of(verified, row["request_id"])
    assert (own["status"], own["error_code"], own["certainty"]) == ("cut", "client_left", "at_most")


def question_of(gateway: GatewayProcess, request_id: str) -> dict[str, Any]:
    """The row of the question about that request's answer."""
    (own,) = [each for each in gateway.records("usage") if each.get("client_request_id") == f"verifies-{request_id}"]
    return own


def test_a_budget_that_cannot_hold_the_question_is_a_no(verified: GatewayProcess) -> None:
    """One request at a time, and the question is the second."""
    withheld(
        verified, verified.chat("narrow", model="judged", script=says("fine")), "second_model", "second_model_refused"
    )


def test_each_result_is_a_signal_and_each_tool_called_a_row(verified: GatewayProcess) -> None:
    failed = verified.chat("signalling", model="both", script=says(f"{AWS} of ada@example.com"))
    passed = verified.chat("signalling", model="both", script=says("fine"))
    denied = verified.chat("signalling", model="tooled", tools=TOOLS, script=calling("shell"))
    called = verified.chat("signalling", model="tooled", tools=TOOLS, script=calling("add", '{"age": 7}'))
    assert [each.status_code for each in (failed, passed, denied, called)] == [403, 200, 403, 200]

    def signals() -> set[tuple[str, str]]:
        mine = [row for row in verified.records("signal") if row["team"] == "signalling"]
        assert AWS not in json.dumps(mine)
        return {(row["name"], row["subject"]) for row in mine}

    wanted = {
        ("verification_failed", "secrets"),
        ("verification_passed", "secrets"),
        ("verification_passed", "pii"),
        ("verification_failed", "tool_calls"),
        ("verification_passed", "tool_calls"),
        ("tool_blocked", "shell"),
    }
    until(lambda: wanted <= signals(), f"{wanted - signals()} among the signals")
    for answer, tool, verdict in ((denied, "shell", "deny"), (called, "add", "allow")):
        request_id = answer.headers["x-request-id"]
        rows = [row for row in verified.records("tool_call") if row["request_id"] == request_id]
        assert [(row["tool"], row["phase"], row["verdict"]) for row in rows if row["phase"] == "called"] == [
            (tool, "called", verdict)
        ]
