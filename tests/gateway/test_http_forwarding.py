"""What reaches the runtime: everything the client said, but for the fields and headers that are Bursar's to set."""

import json
from typing import Any

import httpx
import pytest

from domain.ids import uuid7
from tests.gateway.fake_runtime import FakeRuntime, Received, chunk, closing, events, sse, usage
from tests.gateway.gateway_process import HELLO, GatewayProcess

UNKNOWN: dict[str, Any] = {
    "temperature": 0.1,
    "seed": 2**53 + 1,
    "logit_bias": {"50256": -100},
    "made_up": {"nested": [None, True, 1e-9, "ä€😀", {"deep": []}]},
    "response_format": {"type": "json_object"},
    "stop": ["\n", "END"],
    "user": "ada",
    "metadata": {},
    "max_logprobs": None,
}


def received(gateway: GatewayProcess, fake: FakeRuntime, answer: httpx.Response) -> Received:
    assert answer.status_code == 200, answer.text
    return fake.received[gateway.ended(answer)["request_id"]]


def payloads(answer: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def test_unknown_fields_reach_the_runtime_untouched(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    body = received(gateway, fake, gateway.chat(**UNKNOWN)).body
    assert {name: body[name] for name in UNKNOWN} == UNKNOWN
    assert body["messages"] == HELLO
    assert body.keys() - UNKNOWN.keys() == {"model", "messages", "max_tokens", "cache_salt", "priority"}


def test_credentials_and_other_headers_stay_here(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    headers = {"cookie": "a=b", "x-api-key": "bsk-other", "openai-organization": "org", "x-forwarded-for": "::1"}
    got = received(gateway, fake, gateway.chat(headers=headers))
    assert got.headers.keys() == {"host", "content-type", "content-length", "x-request-id"}
    assert gateway.key("free") not in json.dumps([got.headers, got.body])


def test_a_runtime_with_a_key_of_its_own_is_called_with_it(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    got = received(gateway, fake, gateway.chat(model="foreign"))
    assert got.headers["authorization"] == "Bearer runtime-secret"


def test_a_runtime_that_is_not_vllm_gets_no_fields_of_vllm(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    options = {"include_usage": False, "continuous_usage_stats": True}
    body = received(gateway, fake, gateway.chat(model="foreign", stream=True, stream_options=options, priority=9)).body
    assert "cache_salt" not in body
    assert "priority" not in body
    assert body["stream_options"] == {"include_usage": True}


def test_request_ids_are_bursars_own_and_the_clients_is_kept(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    theirs = f"theirs-{uuid7()}"
    answer = gateway.chat(headers={"x-request-id": theirs})
    ours = answer.headers["x-request-id"]
    assert ours != theirs
    assert fake.received[ours].headers["x-request-id"] == ours
    assert gateway.ended(theirs)["request_id"] == ours


@pytest.mark.parametrize("given", ["x" * 5000, "a\tb", "a b", "=cmd|' /C'"])
def test_a_strange_request_id_does_no_harm(gateway: GatewayProcess, given: str) -> None:
    answer = gateway.chat(headers={"x-request-id": given})
    assert len(gateway.ended(answer)["client_request_id"]) <= 1024


def test_a_trace_is_carried_on(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    got = received(gateway, fake, gateway.chat(headers={"traceparent": trace}))
    assert got.headers["traceparent"].startswith("00-0af7651916cd43dd8448eb211c80319c-")


def test_the_run_is_in_the_row(gateway: GatewayProcess) -> None:
    assert gateway.ended(gateway.chat(headers={"x-bursar-run": "run-7"}))["run_id"] == "run-7"


def test_priority_is_policys(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    assert received(gateway, fake, gateway.chat(priority=-1000)).body["priority"] == 10


@pytest.mark.parametrize(("asked", "given"), [("0", 10), ("9", 10), ("11", 11), (str(2**53 - 1), 2**53 - 1)])
@pytest.mark.parametrize("stream", [False, True])
def test_a_caller_may_step_back_and_not_forward(
    gateway: GatewayProcess, fake: FakeRuntime, asked: str, given: int, stream: bool
) -> None:
    answer = gateway.chat(headers={"x-bursar-priority": asked}, priority=-1000, stream=stream)
    assert received(gateway, fake, answer).body["priority"] == given


def test_stepping_back_is_no_input_of_policy(gateway: GatewayProcess) -> None:
    """Decisions are cached by their input, so each value of the header would be one of its own."""
    known = gateway.ended(gateway.chat())["decision_id"]
    decisions = len(gateway.records("decision_inputs"))
    for asked in ("12", "345"):
        answer = gateway.chat(headers={"x-bursar-priority": asked})
        assert answer.headers["x-bursar-decision"] == gateway.ended(answer)["decision_id"] == known
    assert len(gateway.records("decision_inputs")) == decisions


def test_a_runtime_that_is_not_vllm_hears_of_no_priority(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    got = received(gateway, fake, gateway.chat(model="foreign", headers={"x-bursar-priority": "50"}))
    assert "priority" not in got.body
    assert got.headers.keys() == {"host", "content-type", "content-length", "x-request-id", "authorization"}


def test_the_model_is_called_by_its_runtimes_name(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    got = received(gateway, fake, gateway.chat(model="renamed"))
    assert got.body["model"] == "org/its-own-name"


def test_a_clients_request_id_field_is_not_passed_on(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    assert "request_id" not in received(gateway, fake, gateway.chat(request_id="mine")).body


def test_cache_salts_are_shared_within_a_team_only(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    def salt(team: str = "free", app: str = "web", **body: Any) -> str:
        headers = {"authorization": f"Bearer {gateway.key(team, app=app)}"}
        text: str = received(gateway, fake, gateway.chat(headers=headers, **body)).body["cache_salt"]
        return text

    assert salt() == salt() == salt(app="else") == salt(cache_salt="")
    salts = {salt(), salt("other"), salt(cache_salt="mine"), salt("other", cache_salt="mine"), salt(cache_salt="yours")}
    assert len(salts) == 5
    # What another team is given cannot be asked for by name.
    assert salt("other", cache_salt=salt()) not in salts
    assert all(len(each) == 32 for each in salts)


@pytest.mark.parametrize(
    ("options", "sees_final", "sees_all"),
    [
        (None, False, False),
        ({}, False, False),
        ({"include_usage": False}, False, False),
        ({"include_usage": True}, True, False),
        ({"include_usage": True, "continuous_usage_stats": True}, True, True),
        ({"continuous_usage_stats": True}, False, False),
    ],
)
def test_the_client_sees_the_usage_that_it_asked_for(
    gateway: GatewayProcess, fake: FakeRuntime, options: Any, sees_final: bool, sees_all: bool
) -> None:
    more = {} if options is None else {"stream_options": options}
    answer = gateway.chat(stream=True, **more)
    asked = received(gateway, fake, answer).body["stream_options"]
    assert asked == {**(options or {}), "include_usage": True, "continuous_usage_stats": True}
    chunks = payloads(answer)
    finals = [each for each in chunks if not each["choices"]]
    assert len(finals) == int(sees_final)
    assert all(("usage" in each) == sees_all for each in chunks if each["choices"])
    assert answer.text.endswith("data: [DONE]\n\n")
    assert gateway.ended(answer)["certainty"] == "exact"


def test_other_stream_options_reach_the_runtime(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    asked = received(gateway, fake, gateway.chat(stream=True, stream_options={"include_obfuscation": False})).body
    assert asked["stream_options"]["include_obfuscation"] is False


def test_chunks_are_passed_on_as_they_were_but_for_usage(gateway: GatewayProcess) -> None:
    parts = [chunk('tricky ","usage":{"x":1}}', usage(1)), chunk("ünï\\u0000", usage(2))]
    answer = gateway.chat(stream=True, script=sse(*events(*parts, closing(usage(2)), "[DONE]")))
    wanted = [{name: value for name, value in json.loads(part).items() if name != "usage"} for part in parts]
    assert payloads(answer) == wanted
    assert gateway.ended(answer)["output_tokens"] == 2


def test_an_unary_answer_is_passed_on_byte_for_byte(gateway: GatewayProcess) -> None:
    text = '{ "choices":[ ],"usage":{"prompt_tokens":7,"completion_tokens":1},"extra":1.10, "b":"\\u00e9"}'
    answer = gateway.chat(script={"steps": [text]})
    assert answer.text == text
    assert answer.headers["content-type"] == "application/json"


def test_embeddings_are_served_and_charged(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    asked = {"model": "embed", "input": ["a", "b"], "dimensions": 8}
    answer = gateway.client.post("/v1/embeddings", json=asked, headers=gateway.headers("free"))
    assert answer.json()["data"][0]["embedding"] == [0.5]
    row = gateway.ended(answer)
    assert (row["endpoint"], row["input_tokens"], row["output_tokens"]) == ("embeddings", 7, 0)
    body = fake.received[row["request_id"]].body
    assert (body["dimensions"], "max_tokens" in body) == (8, False)


def test_completions_are_served_and_charged(gateway: GatewayProcess) -> None:
    asked = {"model": "plain", "prompt": [1, 2, 3], "max_tokens": 4}
    answer = gateway.client.post("/v1/completions", json=asked, headers=gateway.headers("free"))
    row = gateway.ended(answer)
    assert (row["endpoint"], row["held_output_tokens"], row["status"]) == ("completions", 4, "ok")


def test_one_connection_serves_one_request_after_another(gateway: GatewayProcess) -> None:
    with httpx.Client(base_url=gateway.url, limits=httpx.Limits(max_connections=1)) as client:
        answers = []
        for number in range(20):
            body = {"model": "plain", "messages": HELLO, "stream": number % 2 == 0}
            answers.append(client.post("/v1/chat/completions", json=body, headers=gateway.headers("free")))
    assert {answer.status_code for answer in answers} == {200}
    assert len({gateway.ended(answer)["request_id"] for answer in answers}) == 20


@pytest.mark.parametrize("count", [2, 4])
def test_pipelined_requests_keep_their_own_bodies(gateway: GatewayProcess, fake: FakeRuntime, count: int) -> None:
    names = [f"pipelined-{count}-{number}" for number in range(count)]
    requests = []
    for seed, name in enumerate(names):
        body = json.dumps({"model": "plain", "messages": HELLO, "seed": seed}).encode()
        headers = {**gateway.headers("free"), "x-request-id": name, "host": "x", "content-length": str(len(body))}
        if name == names[-1]:
            headers["connection"] = "close"
        lines = "".join(f"{field}: {value}\r\n" for field, value in headers.items())
        requests.append(f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode() + body)
    with gateway.raw() as connection:
        connection.sendall(b"".join(requests))
        said = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert said.count(b"HTTP/1.1 200 OK\r\n") == count
    for seed, name in enumerate(names):
        assert fake.received[gateway.ended(name)["request_id"]].body["seed"] == seed
