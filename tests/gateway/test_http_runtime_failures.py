"""Whatever a runtime does to an unary request: a clear error, one settled row, nothing held, the process alive."""

import json
import time
from typing import Any

import httpx
import pytest

from tests.gateway.deployment import HELLO_BOUND, RESPONSE_BYTES_MAX
from tests.gateway.fake_runtime import OUTPUT_TOKENS, PROMPT_TOKENS, FakeRuntime, usage, whole
from tests.gateway.gateway_process import GatewayProcess, error_of, until

CAP = 20
ERROR = {"error": {"message": "the runtime's own words", "type": "BadRequestError", "param": None, "code": 400}}


def tokens(row: dict[str, Any]) -> int:
    """What the day's budget of tokens was charged by a row, which names it once."""
    charged = [
        amount for budget, _, _, resource, amount in row["charges"] if (budget, resource) == ("org-day", "tokens")
    ]
    assert len(charged) == 1
    assert charged[0] == row["input_tokens"] + row["output_tokens"]
    total: int = charged[0]
    return total


def failed(gateway: GatewayProcess, answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The row of a call that failed at the runtime."""
    error_of(answer, status, code)
    row = gateway.ended(answer)
    assert (row["status"], row["http_status"], row["error_code"]) == ("failed", status, code)
    return row


def test_a_runtime_that_refuses_connections_costs_nothing(gateway: GatewayProcess) -> None:
    for stream in (False, True):
        row = failed(gateway, gateway.chat(model="absent", stream=stream), 502, "upstream_error")
        assert not row["charges"]
        assert row["certainty"] == "exact"


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_runtime_that_finds_fault_with_the_request_is_quoted(gateway: GatewayProcess, status: int) -> None:
    answer = gateway.chat(script={"status": status, "steps": [json.dumps(ERROR)]})
    assert answer.status_code == status
    assert answer.json() == ERROR
    row = gateway.ended(answer)
    assert (row["status"], row["http_status"], row["certainty"]) == ("failed", status, "exact")
    assert tokens(row) == 0


@pytest.mark.parametrize("status", [201, 302, 401, 403, 405, 409, 418, 500, 501, 502, 504, 599])
def test_a_runtime_that_answers_with_another_status_is_an_upstream_error(gateway: GatewayProcess, status: int) -> None:
    script = {"status": status, "headers": ["Location: /elsewhere"], "steps": [json.dumps(ERROR)]}
    row = failed(gateway, gateway.chat(script=script), 502, "upstream_error")
    assert tokens(row) == 0
    assert row["certainty"] == "exact"


@pytest.mark.parametrize("status", [429, 503])
def test_a_runtime_that_is_overloaded_is_said_so(gateway: GatewayProcess, status: int) -> None:
    answer = gateway.chat(script={"status": status, "steps": [json.dumps(ERROR)]})
    row = failed(gateway, answer, 503, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1
    assert tokens(row) == 0


def test_an_error_that_reports_usage_is_charged_what_it_reports(gateway: GatewayProcess) -> None:
    script = {"status": 500, "steps": [json.dumps({**ERROR, "usage": usage(2)})]}
    row = failed(gateway, gateway.chat(script=script), 502, "upstream_error")
    assert tokens(row) == PROMPT_TOKENS + 2
    assert row["certainty"] == "exact"


@pytest.mark.parametrize("text", ["", "not json", "[]", "null", '"text"', '{"choices": [', "\xff\xfe"])
def test_an_answer_that_is_not_an_object_is_charged_in_full(gateway: GatewayProcess, text: str) -> None:
    answer = gateway.chat(max_tokens=CAP, script={"encoding": "latin-1", "steps": [text] if text else []})
    row = failed(gateway, answer, 502, "upstream_error")
    assert tokens(row) == HELLO_BOUND + CAP
    assert row["certainty"] == "at_most"


@pytest.mark.parametrize(
    "used",
    [
        None,
        {},
        {"prompt_tokens": -1, "completion_tokens": 3},
        {"prompt_tokens": "7", "completion_tokens": 3},
        {"prompt_tokens": 7, "completion_tokens": 10**15},
        {"prompt_tokens": 7.5, "completion_tokens": 3},
        {"prompt_tokens": True, "completion_tokens": 3},
        {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 8}},
        {"prompt_tokens": 7, "completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 4}},
    ],
)
def test_an_answer_without_a_believable_usage_is_charged_its_bound(gateway: GatewayProcess, used: Any) -> None:
    """The input as it was bounded, and one token for each byte of output that was seen."""
    answer = gateway.chat(max_tokens=CAP, script={"steps": [whole(used, content="five5")]})
    assert answer.status_code == 200
    row = gateway.ended(answer)
    assert (row["status"], row["certainty"]) == ("ok", "at_most")
    assert tokens(row) == HELLO_BOUND + len("five5")


def test_an_answer_without_usage_is_never_charged_more_than_was_held(gateway: GatewayProcess) -> None:
    answer = gateway.chat(max_tokens=CAP, script={"steps": [whole(None, content="x" * 1000)]})
    assert tokens(gateway.ended(answer)) == HELLO_BOUND + CAP


def test_cached_and_reasoning_tokens_are_kept_apart(gateway: GatewayProcess) -> None:
    used = {**usage(3, cached=4), "completion_tokens_details": {"reasoning_tokens": 2}}
    row = gateway.ended(gateway.chat(script={"steps": [whole(used)]}))
    assert (row["cached_input_tokens"], row["reasoning_tokens"], row["certainty"]) == (4, 2, "exact")


def test_more_than_was_held_is_posted_alarmed_and_counted(gateway: GatewayProcess) -> None:
    before = gateway.metric("bursar_overage_total", budget="overspent-day")
    answer = gateway.chat("overspent", max_tokens=CAP, script={"steps": [whole(usage(5000, prompt=9000))]})
    assert answer.status_code == 200
    row = gateway.ended(answer)
    assert tokens(row) == 14_000
    assert row["certainty"] == "exact"
    over = 14_000 - HELLO_BOUND - CAP
    signals = [signal for signal in gateway.records("signal") if signal["subject"] == "overspent-day"]
    assert [(signal["name"], signal["level"], signal["value"]) for signal in signals] == [("overage", "alarm", over)]
    assert gateway.metric("bursar_overage_total", budget="overspent-day") == before + 1
    (counter,) = gateway.admin.get("/admin/budgets", params={"budget": "overspent-day"}).json()["counters"]
    assert (counter["spent"], counter["held"]) == (14_000, 0)


@pytest.mark.parametrize("steps", [[None], ['{"choices":', None]], ids=["before a byte of it", "in the middle"])
def test_an_answer_that_is_cut_off_is_charged_in_full(gateway: GatewayProcess, steps: list[Any]) -> None:
    row = failed(gateway, gateway.chat(max_tokens=CAP, script={"steps": steps}), 502, "upstream_error")
    assert tokens(row) == HELLO_BOUND + CAP
    assert row["certainty"] == "at_most"


def test_a_connection_cut_before_the_head_is_charged_in_full(gateway: GatewayProcess) -> None:
    answer = gateway.chat(max_tokens=CAP, script={"late_head": True, "steps": [0.05, None]})
    row = failed(gateway, answer, 502, "upstream_error")
    assert tokens(row) == HELLO_BOUND + CAP
    assert row["certainty"] == "at_most"


@pytest.mark.parametrize("late_head", [True, False])
def test_a_runtime_that_stalls_is_timed_out(gateway: GatewayProcess, fake: FakeRuntime, late_head: bool) -> None:
    began_s = time.monotonic()
    answer = gateway.chat(model="brief", max_tokens=CAP, script={"late_head": late_head, "steps": [20, "{}"]})
    assert time.monotonic() - began_s < 4
    row = failed(gateway, answer, 504, "upstream_timeout")
    assert tokens(row) == HELLO_BOUND + CAP
    assert row["certainty"] == "at_most"
    until(lambda: row["request_id"] in fake.left, "the runtime to be left")


def test_an_answer_that_is_too_large_is_not_kept(gateway: GatewayProcess) -> None:
    before = gateway.resident_bytes()
    answer = gateway.chat(max_tokens=CAP, script={"steps": [["x" * 65536, 2000]]})
    row = failed(gateway, answer, 502, "upstream_error")
    assert tokens(row) == HELLO_BOUND + CAP
    assert gateway.resident_bytes() - before < 32 * RESPONSE_BYTES_MAX


def test_a_runtime_that_keeps_failing_is_left_alone_for_a_while(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    broken = {"status": 500, "steps": [json.dumps(ERROR)]}
    for _ in range(2):
        error_of(gateway.chat(model="fragile", script=broken), 502, "upstream_error")
    calls = len(fake.received)
    answer = gateway.chat(model="fragile")
    assert "healthy" in error_of(answer, 502, "upstream_error")["message"]
    assert not gateway.ended(answer)["charges"]
    assert len(fake.received) == calls
    assert gateway.client.get("/readyz").json()["runtimes"]["fragile"] is False
    time.sleep(1.1)
    answer = gateway.chat(model="fragile")
    assert answer.status_code == 200
    assert gateway.ended(answer)["output_tokens"] == OUTPUT_TOKENS
    assert gateway.client.get("/readyz").json()["runtimes"]["fragile"] is True


def test_an_overloaded_runtime_is_tried_once_more_before_it_is_believed(
    gateway: GatewayProcess, fake: FakeRuntime
) -> None:
    before = len(fake.received)
    answer = gateway.chat(script={"status": 503, "steps": ["{}"]})
    error_of(answer, 503, "overloaded")
    assert len(fake.received) == before + 1  # both carried one request id
    gateway.ended(answer)
