"""Whatever a caller sends in a body: a 400 that names the field, one refused row, nothing held, the process alive."""

import json
from typing import Any

import httpx
import pytest

from tests.gateway.deployment import CONTEXT_TOKENS
from tests.gateway.fake_runtime import FakeRuntime
from tests.gateway.gateway_process import HELLO, GatewayProcess, error_of

CHAT = "/v1/chat/completions"


def post(gateway: GatewayProcess, body: bytes | dict[str, Any], path: str = CHAT) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return gateway.client.post(path, content=content, headers=gateway.headers("free"))


def assert_refused(gateway: GatewayProcess, answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    error = error_of(answer, status, code)
    row = gateway.ended(answer)
    assert (row["status"], row["http_status"], row["error_code"]) == ("refused", status, code)
    assert not row["charges"]
    assert row["certainty"] == "exact"
    return error


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model": "plain",}',
        b"null",
        b"[]",
        b'"plain"',
        b"\xff\xfe{}",
        b'{"model": "plain", "messages": [{"role": "user", "content": "\xc3\x28"}]}',
        b'{"model": "plain", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "plain", "temperature": NaN}',
        b"[" * 100_000,
        b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    ],
    ids=lambda body: repr(body[:24]),
)
def test_a_body_that_is_not_a_json_object_is_refused(gateway: GatewayProcess, body: bytes) -> None:
    error = assert_refused(gateway, post(gateway, body), 400, "invalid_request")
    assert "JSON" in error["message"]


@pytest.mark.parametrize("depth", [200, 500, 900])
@pytest.mark.parametrize("where", ["metadata", "messages", "tools", "prompt"])
def test_a_body_that_is_nested_deeply_is_served_or_refused(gateway: GatewayProcess, where: str, depth: int) -> None:
    nested: Any = "x"
    for _ in range(depth):
        nested = [nested]
    value = [{"role": "user", "content": "x", "tool_calls": nested}] if where == "messages" else nested
    body = {"model": "plain", "messages": HELLO, "prompt": "hello", where: value}
    answer = post(gateway, body, "/v1/completions" if where == "prompt" else CHAT)
    row = gateway.ended(answer)
    if answer.status_code == 200:
        assert row["status"] == "ok"
    else:
        assert_refused(gateway, answer, 400, "invalid_request")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", None),
        ("model", 7),
        ("model", ""),
        ("model", "m" * 257),
        ("model", ["plain"]),
        ("messages", None),
        ("messages", "hello"),
        ("messages", []),
        ("messages", {"role": "user"}),
        ("messages[0]", ["hello"]),
        ("messages[1].role", [*HELLO, {"content": "x"}]),
        ("messages[1].content", [*HELLO, {"role": "user", "content": 7}]),
        ("stream", "true"),
        ("stream", 1),
        ("stream_options", []),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", "16"),
        ("max_tokens", True),
        ("max_tokens", 2**31 + 1),
        ("max_tokens", 10**30),
        ("max_tokens", CONTEXT_TOKENS + 1),
        ("max_completion_tokens", -5),
        ("n", 0),
        ("n", -1),
        ("n", 129),
        ("n", 2**63),
        ("n", "2"),
        ("n", True),
        ("best_of", 1000),
        ("tools", "shell"),
        ("tools", [{}] * 513),
        ("tools[0]", [{"type": 7}]),
        ("tools[0]", [{"type": "function", "name": "rm"}]),
        ("tools[0]", [{"type": "custom", "function": {"name": "add"}, "custom": {"name": "rm"}}]),
        ("tools[0]", [{"type": "web_search", "function": {"name": "add"}}]),
        ("functions", "shell"),
        ("functions[1]", [{"name": "add"}, {"type": "function", "function": {"name": "rm"}}]),
        ("cache_salt", 7),
        ("use_beam_search", True),
        ("kv_transfer_params", {"remote": "x"}),
        ("previous_response_id", "r"),
        ("background", True),
        ("web_search_options", {}),
        ("prompt_embeds", "AAAA"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_wrong_field_is_named(gateway: GatewayProcess, field: str, value: Any) -> None:
    body = {"model": "plain", "messages": HELLO, field.split("[", 1)[0]: value}
    error = assert_refused(gateway, post(gateway, body), 400, "invalid_request")
    assert error["param"] == field
    assert error["type"] == "invalid_request_error"
    assert field in error["message"]


@pytest.mark.parametrize("value", [None, 7, [], {}, [1, "a"], [["a"]], [[]], [1.5], [True], ["a"] * 2049, [[1]] * 2049])
@pytest.mark.parametrize(("path", "field"), [("/v1/completions", "prompt"), ("/v1/embeddings", "input")])
def test_a_wrong_prompt_is_named(gateway: GatewayProcess, path: str, field: str, value: Any) -> None:
    model = "embed" if field == "input" else "plain"
    answer = post(gateway, {"model": model, field: value}, path)
    assert assert_refused(gateway, answer, 400, "invalid_request")["param"] == field


@pytest.mark.parametrize(("path", "field"), [("/v1/completions", "prompt"), ("/v1/embeddings", "input")])
def test_a_missing_prompt_is_named(gateway: GatewayProcess, path: str, field: str) -> None:
    answer = post(gateway, {"model": "embed" if field == "input" else "plain"}, path)
    assert assert_refused(gateway, answer, 400, "invalid_request")["param"] == field


@pytest.mark.parametrize("model", ["nobody", "org/nothing", "plain\u0000", "modèle", "../../etc/passwd"])
def test_an_unknown_model_is_not_found(gateway: GatewayProcess, model: str) -> None:
    error = assert_refused(gateway, post(gateway, {"model": model, "messages": HELLO}), 404, "model_not_found")
    assert error["param"] == "model"


def test_a_model_on_an_endpoint_that_it_does_not_serve_is_refused(gateway: GatewayProcess) -> None:
    error = assert_refused(gateway, post(gateway, {"model": "embed", "messages": HELLO}), 400, "invalid_request")
    assert error["param"] == "model"


@pytest.mark.parametrize("value", ["", "-1", "+1", "1.5", "1e3", "high", "0x10", str(2**53), "9" * 400])
@pytest.mark.parametrize("stream", [False, True])
def test_a_priority_that_is_not_one_is_refused(gateway: GatewayProcess, value: str, stream: bool) -> None:
    answer = gateway.chat(headers={"x-bursar-priority": value}, stream=stream)
    error = assert_refused(gateway, answer, 400, "invalid_request")
    assert error["param"] == "x-bursar-priority"
    assert error["type"] == "invalid_request_error"
    assert "x-bursar-priority" in error["message"]


def test_choices_and_prompts_multiply_what_is_held(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    asked = {"model": "plain", "prompt": ["a", "b"], "n": 3, "max_tokens": 10}
    row = gateway.ended(post(gateway, asked, "/v1/completions"))
    assert row["held_output_tokens"] == 2 * 3 * 10
    assert fake.received[row["request_id"]].body["n"] == 3


def test_a_null_means_that_a_field_is_not_there(gateway: GatewayProcess) -> None:
    names = ("n", "best_of", "max_tokens", "stream", "stream_options", "tools", "cache_salt", "prompt_embeds")
    nulls: dict[str, Any] = dict.fromkeys(names)
    answer = gateway.chat(**nulls)
    assert answer.status_code == 200
    assert gateway.ended(answer)["status"] == "ok"


@pytest.mark.parametrize("name", ["tools", "response_format", "messages"])
def test_a_body_full_of_small_values_keeps_nobody_waiting(gateway: GatewayProcess, name: str) -> None:
    """Half a megabyte of JSON is bounded about as fast as it is read, because others wait meanwhile."""
    many = json.dumps([1] * 300_000, separators=(",", ":"))
    value = {
        "tools": f'[{{"type":"function","function":{{"name":"f","parameters":{{"enum":{many}}}}}}}]',
        "response_format": f'{{"type":"json_schema","schema":{{"enum":{many}}}}}',
        "messages": f'[{{"role":"user","content":"x","tool_calls":{many}}}]',
    }[name]
    messages = "" if name == "messages" else f'"messages":{json.dumps(HELLO)},'
    before_s = gateway.cpu_s()
    answer = post(gateway, f'{{"model":"plain",{messages}"{name}":{value}}}'.encode())
    assert answer.status_code == 200, answer.text
    assert gateway.cpu_s() - before_s < 0.3
    assert gateway.ended(answer)["status"] == "ok"
