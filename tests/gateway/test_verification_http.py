"""An answer that policy obliges to be verified is released only once every check has passed, whatever else happens."""

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from domain.ids import uuid7
from tests.gateway.fake_runtime import FakeRuntime, chunk, closing, events, sse, usage, whole
from tests.gateway.gateway_process import HELLO, GatewayProcess, error_of, until
from tests.gateway.verified_deployment import AWS, SCHEMA, says, withheld

FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
# Python's `re` needs some 2^40 steps for it.
FOREVER = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"properties": {"a": {"pattern": "^(a+)+$"}}}}}
ENDLESS = json.dumps({"a": "a" * 40 + "!"})


@pytest.mark.parametrize(
    ("model", "content", "check", "kind"),
    [
        ("secretive", f"Take this:\n{AWS}", "secrets", "AWS Access Key"),
        ("private", "Ask ada@example.com.", "pii", "EMAIL_ADDRESS"),
        ("both", f"{AWS} of ada@example.com", "secrets", "AWS Access Key"),
        ("judged", "something forbidden", "second_model", "not_released"),
    ],
)
def test_an_answer_that_fails_is_withheld_and_charged(
    verified: GatewayProcess, model: str, content: str, check: str, kind: str
) -> None:
    answer = verified.chat(model=model, script=says(content))
    error = withheld(verified, answer, check, kind)
    assert not any(word in json.dumps(error) for word in (AWS, "ada@example.com", "forbidden"))


@pytest.mark.parametrize("model", ["secretive", "private", "both", "judged", "tooled"])
def test_an_answer_that_passes_is_released_byte_for_byte(verified: GatewayProcess, model: str) -> None:
    script = says("Hello, how are you?")
    answer = verified.chat(model=model, script=script)
    assert (answer.status_code, answer.text) == (200, script["steps"][0])
    named = {"both": "secrets,pii", "judged": "second_model", "tooled": "tool_calls"}
    wanted = named.get(model, {"secretive": "secrets", "private": "pii"}.get(model))
    assert answer.headers["x-bursar-verified"] == wanted
    assert verified.ended(answer)["status"] == "ok"


def test_without_obligations_nothing_is_verified(verified: GatewayProcess) -> None:
    answer = verified.chat(script=says(AWS))
    assert AWS in answer.text
    assert "x-bursar-verified" not in answer.headers


def test_every_choice_is_verified(verified: GatewayProcess) -> None:
    messages = [{"role": "assistant", "content": text} for text in ("fine", "fine too", AWS)]
    choices = [{"index": index, "message": message} for index, message in enumerate(messages)]
    answer = verified.chat(model="secretive", n=3, script={"steps": [whole(usage(3), choices=choices)]})
    error = withheld(verified, answer, "secrets", "AWS Access Key")
    assert error["bursar"]["findings"] == [{"kind": "AWS Access Key", "where": "choice 2 content line 1"}]


@pytest.mark.parametrize("field", ["reasoning_content", "refusal", "made_up"])
def test_every_field_is_verified(verified: GatewayProcess, field: str) -> None:
    answer = verified.chat(model="secretive", script=says("fine", **{field: AWS}))
    withheld(verified, answer, "secrets", "AWS Access Key")


def test_the_second_model_reads_the_reasoning_that_is_released_too(verified: GatewayProcess) -> None:
    answer = verified.chat(model="judged", script=says("fine", reasoning_content="something forbidden"))
    withheld(verified, answer, "second_model", "not_released")


def test_completions_and_embeddings_are_verified(verified: GatewayProcess) -> None:
    def post(path: str, **body: Any) -> httpx.Response:
        return verified.client.post(path, json=body, headers=verified.headers("free"))

    script = {"steps": [json.dumps({"choices": [{"index": 0, "text": AWS}], "usage": usage(3)})]}
    withheld(
        verified, post("/v1/completions", model="secretive", prompt="x", script=script), "secrets", "AWS Access Key"
    )
    answer = post("/v1/embeddings", model="embed", input="x")
    assert (answer.status_code, answer.headers["x-bursar-verified"]) == (200, "secrets,pii")


def test_a_runtimes_word_on_the_request_that_quotes_the_model_is_verified(verified: GatewayProcess) -> None:
    said = json.dumps({"error": {"message": f"tool call cannot be read: input_value={AWS}", "type": "x", "code": 400}})
    answer = verified.chat(model="secretive", script={"status": 400, "steps": [said]})
    error = error_of(answer, 403, "verification_failed")
    assert error["bursar"]["findings"] == [{"kind": "AWS Access Key", "where": "error.message line 1"}]
    assert AWS not in answer.text
    assert verified.ended(answer)["status"] == "failed"


def test_a_runtimes_word_on_the_request_is_passed_on_and_not_called_verified(verified: GatewayProcess) -> None:
    said = '{"error": {"message": "too many tools", "type": "x", "param": null, "code": 400}}'
    answer = verified.chat(model="secretive", script={"status": 400, "steps": [said]})
    assert (answer.status_code, answer.text) == (400, said)
    assert "x-bursar-verified" not in answer.headers


@pytest.mark.parametrize("body", ['{"usage": {"prompt_tokens": 7}}', '{"choices": "text"}', '{"choices": ["text"]}'])
def test_an_answer_that_cannot_be_read_is_not_released(verified: GatewayProcess, body: str) -> None:
    answer = verified.chat(model="secretive", script={"steps": [body]})
    error_of(answer, 502, "upstream_error")
    assert verified.ended(answer)["status"] == "failed"


def test_a_check_that_nobody_knows_stops_the_request_before_it_is_sent(
    verified: GatewayProcess, fake: FakeRuntime
) -> None:
    calls = len(fake.received)
    answer = verified.chat(model="odd")
    assert answer.json()["error"]["code"] == "policy_unavailable"
    assert answer.status_code == 503
    row = verified.ended(answer)
    assert (row["status"], row["charges"]) == ("refused", ())
    assert len(fake.received) == calls


def test_a_fallback_is_held_to_its_own_obligations(verified: GatewayProcess) -> None:
    """The model that would be verified cannot be reached, and what stands in for it need not be."""
    answer = verified.chat(model="backed", script=says(AWS))
    assert (answer.status_code, verified.ended(answer)["served_model"]) == (200, "plain")
    assert "x-bursar-verified" not in answer.headers


def test_what_cannot_be_verified_is_not_served_by_another_model(verified: GatewayProcess) -> None:
    error = error_of(verified.chat(model="backed", return_token_ids=True), 400, "invalid_request")
    assert error["param"] == "return_token_ids"


@pytest.mark.parametrize(
    ("content", "kinds"),
    [
        ('{"age": "7"}', ["type"]),
        ("{}", ["required"]),
        ("Sure! {}", ["not_json"]),
        (None, ["not_json"]),
    ],
)
def test_json_has_to_be_as_it_was_asked_for(verified: GatewayProcess, content: str | None, kinds: list[str]) -> None:
    answer = verified.chat(model="formed", response_format=FORMAT, script=says(content))
    withheld(verified, answer, "json_schema", *kinds)


def test_json_that_is_as_it_was_asked_for_is_released(verified: GatewayProcess) -> None:
    for asked, content in ((FORMAT, '{"age": 7}'), ({"type": "json_object"}, "{}")):
        answer = verified.chat(model="formed", response_format=asked, script=says(content))
        assert (answer.status_code, answer.headers["x-bursar-verified"]) == (200, "json_schema")
    answer = verified.chat(model="formed", response_format={"type": "json_object"}, script=says("[]"))
    withheld(verified, answer, "json_schema", "type")
    answer = verified.chat(model="formed", script=says("any text"))
    assert answer.status_code == 200
    assert "x-bursar-verified" not in answer.headers


def test_a_refusal_is_not_what_was_asked_for(verified: GatewayProcess) -> None:
    answer = verified.chat(model="formed", response_format=FORMAT, script=says(None, refusal="I cannot."))
    withheld(verified, answer, "json_schema", "refusal")


@pytest.mark.parametrize(
    "schema", [None, 7, {"type": "x"}, {"$ref": "http://127.0.0.1:1/x"}, {"enum": ["x" * 300_000]}]
)
def test_a_schema_that_nothing_can_be_held_to_is_refused_before_the_call(
    verified: GatewayProcess, fake: FakeRuntime, schema: Any
) -> None:
    calls = len(fake.received)
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = verified.chat(model="formed", response_format=asked)
    error = error_of(answer, 400, "invalid_request")
    assert error["param"] == "response_format"
    assert "schema" in error["message"]
    row = verified.ended(answer)
    assert (row["status"], row["charges"]) == ("refused", ())
    assert len(fake.received) == calls


def test_a_check_that_takes_for_ever_fails_and_others_go_on(verified: GatewayProcess) -> None:
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(verified.chat, model="formed", response_format=FOREVER, script=says(ENDLESS))
        for _ in range(5):
            began_s = time.monotonic()
            assert verified.chat(script=says("fine")).status_code == 200
            assert time.monotonic() - began_s < 1.5
        answer = slow.result()
    withheld(verified, answer, "json_schema", "timeout")
    assert verified.chat(model="secretive", script=says("fine")).status_code == 200


def test_a_process_of_checks_that_dies_fails_the_check_and_is_replaced(verified: GatewayProcess) -> None:
    assert verified.chat(model="formed", response_format=FORMAT, script=says('{"age": 7}')).status_code == 200
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(verified.chat, model="formed", response_format=FOREVER, script=says(ENDLESS))
        time.sleep(0.7)
        killed = _checks_pids(verified)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        answer = slow.result()
    withheld(verified, answer, "json_schema", "crash")
    until(lambda: all(_has_ended(pid) for pid in killed), "the killed processes have ended")
    assert verified.chat(model="secretive", script=says("fine")).status_code == 200


def _checks_pids(gateway: GatewayProcess) -> list[int]:
    """The processes that make its checks: that of texts, where it has been needed, and that of schemas."""
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if b"policy.checks" in _read(path) and f"PPid:\t{gateway.pid}\n" in (path.parent / "status").read_text()
    ]


def _has_ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to hear of its end: which is once no other thread is."""
    threads = [*Path(f"/proc/{pid}/task").glob("*")]
    return len(threads) <= 1 and _read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()[:1] in ([], [b"Z"])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_repeat_of_what_was_withheld_runs_anew_and_of_what_was_released_does_not(
    verified: GatewayProcess, fake: FakeRuntime
) -> None:
    key, calls = uuid7(), len(fake.received)
    for _ in range(2):
        answer = verified.chat(model="secretive", headers={"idempotency-key": key}, script=says(AWS))
        withheld(verified, answer, "secrets", "AWS Access Key")
    assert len(fake.received) == calls + 2
    key = uuid7()
    first, again = [
        verified.chat(model="secretive", headers={"idempotency-key": key}, script=says("fine")) for _ in range(2)
    ]
    assert again.headers["x-bursar-replayed"] == "true"
    assert again.headers["x-bursar-verified"] == "secrets"
    assert again.content == first.content
    assert len(fake.received) == calls + 3


def test_a_client_that_leaves_during_a_check_is_charged_what_was_reported(verified: GatewayProcess) -> None:
    client_id = uuid7()
    body = {"model": "formed", "messages": HELLO, "response_format": FOREVER, "script": says(ENDLESS)}
    headers = verified.headers("free", **{"x-request-id": client_id})
    with httpx.Client(base_url=verified.url, timeout=0.6) as leaving, pytest.raises(httpx.TimeoutException):
        leaving.post("/v1/chat/completions", json=body, headers=headers)
    row = verified.ended(client_id)
    assert (row["status"], row["input_tokens"], row["output_tokens"], row["certainty"]) == ("cut", 7, 3, "exact")


def test_many_at_once_are_all_verified(verified: GatewayProcess) -> None:
    gate = threading.Barrier(12)
    verified.key("free")

    def send(number: int) -> bool:
        gate.wait()
        leaks = number % 3 == 0
        answer = verified.chat(model="secretive", stream=number % 2 == 0, script=_either(number, leaks=leaks))
        return (AWS in answer.text) is False and (("verification_failed" in answer.text) is leaks)

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(send, range(12)))
    until(lambda: verified.open_holds() == 0, "no open hold")


def _either(number: int, *, leaks: bool) -> dict[str, Any]:
    text = f"line {number}\n{AWS if leaks else 'fine'}\n"
    if number % 2:
        return says(text)
    return sse(*events(chunk(text, usage(3)), closing(usage(3)), "[DONE]"))
