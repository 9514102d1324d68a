"""Less than was asked, and said so: caps that shrink, models that stand in, tools that are taken out."""

from typing import Any

from tests.gateway.deployment import HELLO_BOUND
from tests.gateway.fake_runtime import FakeRuntime
from tests.gateway.gateway_process import GatewayProcess, error_of

SHELL = {"type": "function", "function": {"name": "shell", "parameters": {}}}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {}}}


def left(gateway: GatewayProcess, budget: str) -> int:
    (counter,) = gateway.admin.get("/admin/budgets", params={"budget": budget}).json()["counters"]
    remaining: int = counter["remaining"]
    return remaining


def test_a_cap_shrinks_to_what_fits_and_the_runtime_is_told(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    gateway.ended(gateway.chat("shrink", model="shrinking", max_tokens=3))
    remaining = left(gateway, "shrink-day")
    answer = gateway.chat("shrink", model="shrinking", max_tokens=4000, min_tokens=3000)
    assert answer.status_code == 200
    assert answer.headers["x-bursar-degraded"] == "max_tokens"
    row = gateway.ended(answer)
    fits = remaining - HELLO_BOUND
    assert row["held_output_tokens"] == fits
    assert row["degraded"] == "max_tokens"
    received = fake.received[row["request_id"]].body
    assert received["max_tokens"] == fits
    assert received["min_tokens"] == fits


def test_a_cap_does_not_shrink_under_the_least_that_policy_sets(gateway: GatewayProcess) -> None:
    while left(gateway, "shrink-day") >= HELLO_BOUND + 5:
        gateway.ended(gateway.chat("shrink", model="shrinking", max_tokens=3))
    answer = gateway.chat("shrink", model="shrinking", max_tokens=64)
    error = error_of(answer, 429, "insufficient_quota")
    assert error["bursar"]["asked"] == HELLO_BOUND + 5


def test_without_shrinking_a_cap_is_held_whole_or_not_at_all(gateway: GatewayProcess) -> None:
    error = error_of(gateway.chat("quota", max_tokens=100), 429, "insufficient_quota")
    assert error["bursar"]["asked"] == HELLO_BOUND + 100


def test_policy_lowers_the_cap(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        asked: dict[str, Any] = {name: 50}
        answer = gateway.chat(model="capped", **asked)
        row = gateway.ended(answer)
        assert answer.headers["x-bursar-degraded"] == row["degraded"] == "max_tokens"
        body = fake.received[row["request_id"]].body
        assert body[name] == row["held_output_tokens"] == 2
        assert not {"max_tokens", "max_completion_tokens"} - {name} & body.keys()


def test_a_cap_is_forwarded_even_if_the_client_names_none(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    row = gateway.ended(gateway.chat())
    assert fake.received[row["request_id"]].body["max_tokens"] == row["held_output_tokens"] == 64


def test_another_model_stands_in_for_one_whose_runtime_is_away(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    for stream in (False, True):
        answer = gateway.chat(model="backed", stream=stream)
        assert answer.status_code == 200
        assert answer.headers["x-bursar-degraded"] == "model"
        row = gateway.ended(answer)
        assert (row["status"], row["model"], row["served_model"], row["degraded"]) == ("ok", "backed", "plain", "model")
        assert (row["runtime"], row["price_version"]) == ("fake", "plain@2025-01-01")
        assert fake.received[row["request_id"]].body["model"] == "plain"
        voided = [each for each in gateway.records("hold") if each["request_id"] == row["request_id"]]
        assert [each["action"] for each in voided] == ["opened", "voided", "opened", "voided", "opened"]


def test_tools_that_policy_blocks_are_taken_out(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    answer = gateway.chat(tools=[SHELL, CLOCK], tool_choice="auto")
    assert answer.headers["x-bursar-degraded"] == "tools"
    body = fake.received[gateway.ended(answer)["request_id"]].body
    assert body["tools"] == [CLOCK]
    assert body["tool_choice"] == "auto"
    body = fake.received[gateway.ended(gateway.chat(tools=[SHELL], tool_choice="auto"))["request_id"]].body
    assert "tools" not in body
    assert "tool_choice" not in body


def test_tools_that_policy_blocks_are_taken_out_whatever_they_are_called_in(
    gateway: GatewayProcess, fake: FakeRuntime
) -> None:
    """Functions of the older kind, which come without a type, and custom tools; each goes by its own name."""
    functions = [SHELL["function"], CLOCK["function"]]
    custom = {"type": "custom", "custom": {"name": "shell"}}
    answer = gateway.chat(functions=functions, function_call="auto", tools=[custom], tool_choice="required")
    assert answer.headers["x-bursar-degraded"] == "tools"
    body = fake.received[gateway.ended(answer)["request_id"]].body
    assert (body["functions"], body["function_call"]) == ([CLOCK["function"]], "auto")
    assert body.keys().isdisjoint({"tools", "tool_choice"})
    answer = gateway.chat(functions=functions[:1], function_call={"name": "shell"})
    body = fake.received[gateway.ended(answer)["request_id"]].body
    assert body.keys().isdisjoint({"functions", "function_call"})
