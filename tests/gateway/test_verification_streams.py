"""A stream under verification: what has been verified goes on, what has not waits, and a finding ends it."""

import json
import time
from typing import Any

import httpx
import pytest

from tests.gateway.deployment import RESPONSE_BYTES_MAX
from tests.gateway.fake_runtime import PROMPT_TOKENS, FakeRuntime, chunk, closing, events, sse, usage
from tests.gateway.gateway_process import HELLO, GatewayProcess, error_of, until
from tests.gateway.verified_deployment import AWS

LINES = ["First line.\n", "Second line.\n", "Third line.\n", "The end."]
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"required": ["a"]}}}]


def stream(texts: list[str], **more: Any) -> dict[str, Any]:
    """The script of a stream of these chunks, each reporting its usage."""
    parts = [chunk(text, usage(at)) for at, text in enumerate(texts, start=1)]
    return sse(*events(*parts, closing(usage(len(texts))), "[DONE]"), **more)


def call_chunk(**function: Any) -> str:
    delta = {"tool_calls": [{"index": 0, "function": function}]}
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}], "usage": usage(1)})


def payloads(text: str) -> list[Any]:
    found = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    return [json.loads(each) if each.startswith("{") else each for each in found]


def content(text: str, index: int = 0) -> str:
    choices = [each for part in payloads(text) if isinstance(part, dict) for each in part.get("choices", [])]
    return "".join(each["delta"].get("content") or "" for each in choices if each["index"] == index)


def ask(gateway: GatewayProcess, model: str, script: dict[str, Any], **body: Any) -> httpx.Response:
    return gateway.chat(model=model, stream=True, script=script, max_tokens=40, **body)


def ended(gateway: GatewayProcess, answer: httpx.Response, status: str, output: int, certainty: str) -> None:
    row = gateway.ended(answer)
    code = "verification_failed" if status == "failed" else ""
    assert (row["status"], row["error_code"]) == (status, code)
    assert (row["input_tokens"], row["output_tokens"], row["certainty"]) == (PROMPT_TOKENS, output, certainty)


def ended_broken(gateway: GatewayProcess, answer: httpx.Response) -> None:
    row = gateway.ended(answer)
    assert (row["status"], row["error_code"]) == ("failed", "upstream_error")
    assert row["output_tokens"] == len(LINES) + 1  # which may have been in the making


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("model", ["secretive", "private", "both", "tooled", "guarded", "judged"])
def test_a_stream_that_passes_is_released_as_it_was(verified: GatewayProcess, model: str, split: bool) -> None:
    texts = LINES if not split else ["".join(LINES)]
    answer = ask(verified, model, stream(texts, split=split), stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-bursar-verified"]
    assert content(answer.text) == "".join(LINES)
    assert payloads(answer.text)[-2:] == [json.loads(closing(usage(len(texts)))), "[DONE]"]
    ended(verified, answer, "ok", len(texts), "exact")


@pytest.mark.parametrize(
    "texts", [[AWS], [f"It is {AWS[:7]}", AWS[7:]], list(f"x {AWS}\n")], ids=["whole", "cut", "letters"]
)
def test_a_stream_whose_first_text_fails_is_a_403(verified: GatewayProcess, texts: list[str]) -> None:
    answer = ask(verified, "secretive", stream(texts))
    error = error_of(answer, 403, "verification_failed")
    assert error["bursar"]["kinds"] == ["AWS Access Key"]
    row = verified.ended(answer)
    assert (row["http_status"], row["error_code"]) == (403, "verification_failed")
    assert row["output_tokens"] >= 1


def test_a_stream_that_fails_later_ends_in_an_error_event(verified: GatewayProcess, fake: FakeRuntime) -> None:
    """The runtime would go on for long: it is left, and what it produced is charged."""
    parts = events(*[chunk(text, usage(at)) for at, text in enumerate([*LINES[:3], f"{AWS}\n"], start=1)])
    verified.chat(model="secretive")  # the process of checks is there
    began_s = time.monotonic()
    answer = ask(verified, "secretive", sse(*parts[:3], 2.0, parts[3], 20))
    assert time.monotonic() - began_s < 12
    assert answer.status_code == 200
    assert content(answer.text) == "".join(LINES[:2])
    last = payloads(answer.text)[-1]
    assert last["error"]["code"] == "verification_failed"
    assert last["error"]["bursar"]["findings"] == [{"kind": "AWS Access Key", "where": "choice 0 content line 4"}]
    assert AWS not in answer.text
    ended(verified, answer, "failed", 4 + 1, "at_least")
    request_id = answer.headers["x-request-id"]
    until(lambda: request_id in fake.left, "the runtime to be left")


def test_a_number_across_line_breaks_is_seen_before_any_of_its_lines_goes(verified: GatewayProcess) -> None:
    line = "This line is longer than a number over several lines can be, as most are.\n"
    parts = [chunk(text, usage(1)) for text in (line, f"{line}card 4111\n1111\n", "1111\n", "1111\n", "more\n")]
    verified.chat(model="private")  # the process of checks is there
    answer = ask(verified, "private", sse(*events(*parts[:2]), 2.0, *events(*parts[2:3]), 2.0, *events(*parts[3:]), 20))
    assert content(answer.text) == line
    assert payloads(answer.text)[-1]["error"]["bursar"]["kinds"] == ["CREDIT_CARD"]


def test_tokens_that_run_ahead_of_the_text_are_verified(verified: GatewayProcess) -> None:
    """As where a runtime holds text back that could begin a stop sequence, or leaves the reasoning out."""
    tokens = [{"token": piece, "logprob": 0.0} for piece in (AWS[:9], AWS[9:], "\\n")]
    choice = {"index": 0, "delta": {"content": ""}, "logprobs": {"content": tokens}, "finish_reason": None}
    script = sse(*events(json.dumps({"choices": [choice]}), chunk("fine", usage(3)), closing(usage(3)), "[DONE]"))
    error = error_of(ask(verified, "secretive", script, logprobs=True), 403, "verification_failed")
    assert error["bursar"]["findings"] == [{"kind": "AWS Access Key", "where": "choice 0 logprobs line 1"}]


def test_an_empty_stream_that_fails_is_a_403(verified: GatewayProcess) -> None:
    """The role and the end have no text that a check could wait for."""
    role = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    script = sse(*events(json.dumps(role), closing(usage(1)), "[DONE]"))
    form = {"type": "json_object"}
    error_of(ask(verified, "formed", script, response_format=form), 403, "verification_failed")


def test_every_choice_of_a_stream_is_verified(verified: GatewayProcess) -> None:
    parts = [
        chunk("one\n", usage(1), 0),
        chunk("uno\n", usage(1), 1),
        chunk("two\n", usage(2), 0),
        chunk(f"{AWS}\n", usage(2), 1),
        chunk("three\n", usage(3), 0),
    ]
    answer = ask(verified, "secretive", sse(*events(*parts, closing(usage(5)), "[DONE]"), split=True), n=2)
    assert AWS not in answer.text
    assert "verification_failed" in answer.text
    assert content(answer.text, 0) in ("", "one\n")
    assert verified.ended(answer)["status"] == "failed"


def test_lines_reach_the_client_while_the_stream_goes_on(verified: GatewayProcess) -> None:
    parts = events(*[chunk(text, usage(at)) for at, text in enumerate(LINES, start=1)])
    script = sse(*parts[:2], 3.0, *parts[2:], *events(closing(usage(4)), "[DONE]"))
    body = {"model": "secretive", "messages": HELLO, "stream": True, "script": script}
    verified.chat(model="secretive")  # the process of checks is there
    began_s = time.monotonic()
    with verified.client.stream("POST", "/v1/chat/completions", json=body, headers=verified.headers("free")) as answer:
        lines = answer.iter_lines()
        assert "First line." in next(lines)
        assert time.monotonic() - began_s < 2
        assert "The end." in "".join(lines)


def test_a_tool_call_is_passed_on_once_it_is_whole_and_allowed(verified: GatewayProcess) -> None:
    start, middle, end = (
        call_chunk(name="add", arguments=""),
        call_chunk(arguments='{"a"'),
        call_chunk(arguments=": 1}"),
    )
    tail = events(closing(usage(3)), "[DONE]")
    answer = ask(verified, "guarded", sse(*events(chunk("Well:\n", usage(1)), start, middle, end), *tail), tools=TOOLS)
    assert payloads(answer.text)[1:-1] == [
        {name: value for name, value in json.loads(part).items() if name != "usage"} for part in (start, middle, end)
    ]
    ended(verified, answer, "ok", 3, "exact")
    answer = ask(verified, "guarded", sse(*events(chunk("Well:\n", usage(1)), start, middle), *tail), tools=TOOLS)
    error = error_of(answer, 403, "verification_failed")
    assert error["bursar"]["kinds"] == ["arguments_not_a_json_object"]
    answer = ask(verified, "tooled", sse(*events(chunk("Well:\n", usage(1)), start, middle), *tail), tools=TOOLS)
    assert content(answer.text) == "Well:\n"
    assert payloads(answer.text)[-1]["error"]["bursar"]["check"] == "tool_calls"
    assert "add" not in answer.text


def test_a_stream_whose_answer_is_judged_whole_is_withheld_whole(verified: GatewayProcess) -> None:
    answer = ask(verified, "judged", stream([*LINES, "some", "thing forb", "idden"]))
    error = error_of(answer, 403, "verification_failed")
    assert error["bursar"]["check"] == "second_model"
    ended(verified, answer, "failed", 7, "exact")


def test_a_stream_that_breaks_off_releases_nothing_more(verified: GatewayProcess) -> None:
    parts = [chunk(text, usage(at)) for at, text in enumerate(LINES, start=1)]
    answer = ask(verified, "secretive", sse(*events(*parts), 0.05, None))
    assert content(answer.text) == "".join(LINES[:2])
    assert payloads(answer.text)[-1]["error"]["code"] == "upstream_error"
    assert verified.ended(answer)["status"] == "failed"


def test_an_error_event_is_the_runtimes_failure_and_releases_nothing_more(verified: GatewayProcess) -> None:
    """The text of the error, which may quote the model, is not passed on, and no check takes it for an answer."""
    said = json.dumps({"error": {"message": f"out of memory at {AWS}", "type": "x", "code": 500}})
    parts = events(*(chunk(text, usage(at)) for at, text in enumerate(LINES, start=1)))
    script = sse(*parts, 1.0, *events(said, "[DONE]"))  # so that the text is not read together with the error
    verified.chat(model="secretive")  # the process of checks is there
    answer = ask(verified, "secretive", script)
    assert content(answer.text) == "".join(LINES[:2])
    error = payloads(answer.text)[-1]["error"]
    assert (error["code"], "broke off its answer" in error["message"]) == ("upstream_error", True)
    ended_broken(verified, answer)
    answer = ask(verified, "formed", script, response_format={"type": "json_object"})
    assert "broke off its answer" in error_of(answer, 502, "upstream_error")["message"]
    ended_broken(verified, answer)
    answer = ask(verified, "tooled", script)
    assert AWS not in answer.text
    assert "[DONE]" not in answer.text
    ended_broken(verified, answer)


def test_what_waits_to_be_verified_is_bounded(verified: GatewayProcess) -> None:
    text = "x" * 16_000
    script = sse([events(chunk(text, usage(1)))[0], RESPONSE_BYTES_MAX // len(text) + 2], 20)
    answer = ask(verified, "judged", script)
    error_of(answer, 502, "upstream_error")
    assert verified.ended(answer)["status"] == "failed"


def test_a_long_stream_is_released_within_memory(verified: GatewayProcess) -> None:
    """Three times what may wait at once goes through, line by line."""
    line = "All work and no play makes Jack a dull boy. " * 40 + "\n"
    count = 3 * RESPONSE_BYTES_MAX // len(line)
    before = verified.resident_bytes()
    script = sse([events(chunk(line, usage(1)))[0] * 8, count // 8], *events(closing(usage(1)), "[DONE]"))
    answer = ask(verified, "secretive", script)
    assert content(answer.text) == line * (count // 8 * 8)
    assert verified.resident_bytes() - before < 64 * 1024 * 1024
    assert verified.ended(answer)["status"] == "ok"
