"""Whatever a runtime does to a stream: the client is told, what was seen is charged, and nothing stays held."""

import json
import time
from functools import partial
from typing import Any

import httpx
import pytest

from tests.gateway.deployment import EVENT_BYTES_MAX, HELLO_BOUND
from tests.gateway.fake_runtime import PROMPT_TOKENS, FakeRuntime, chunk, closing, events, sse, usage
from tests.gateway.gateway_process import GatewayProcess, error_of, until

CAP = 20
TWO = events(chunk("one", usage(1)), chunk("two", usage(2)))
UNMETERED = events(chunk("one"), chunk("two"))
END = events(closing(usage(2)), "[DONE]")


def ask(gateway: GatewayProcess, script: dict[str, Any], team: str = "free", **body: Any) -> httpx.Response:
    return gateway.chat(team, stream=True, script=script, **{"max_tokens": CAP, **body})


def payloads(answer: httpx.Response) -> list[Any]:
    """The JSON of each event of a stream, or its text where it has none."""
    found = [event.removeprefix("data: ") for event in answer.text.split("\n\n") if event]
    return [json.loads(each) if each.startswith("{") else each for each in found]


def content(answer: httpx.Response) -> str:
    chunks = [each for each in payloads(answer) if isinstance(each, dict)]
    return "".join(choice["delta"]["content"] for each in chunks for choice in each.get("choices", []))


def charged(row: dict[str, Any]) -> int:
    amounts: list[int] = [charge[-1] for charge in row["charges"] if charge[0] == "org-day"]
    assert amounts == [row["input_tokens"] + row["output_tokens"]]
    return amounts[0]


def ended(gateway: GatewayProcess, answer: httpx.Response, status: str, http: int, certainty: str) -> dict[str, Any]:
    row = gateway.ended(answer)
    assert (row["status"], row["http_status"], row["certainty"]) == (status, http, certainty)
    assert row["stream"] is True
    return row


def assert_told(answer: httpx.Response, code: str) -> None:
    """The stream had begun, so its last event is the error, and it does not end as if it were whole."""
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    last = payloads(answer)[-1]
    assert last.keys() == {"error"}
    assert last["error"]["code"] == code
    assert "[DONE]" not in payloads(answer)


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("split", [False, True])
def test_events_are_read_however_they_are_cut(gateway: GatewayProcess, split: bool, end: str) -> None:
    parts = [chunk("one", usage(1)), chunk("two", usage(2)), closing(usage(2)), "[DONE]"]
    answer = ask(gateway, sse(*events(*parts, end=end), split=split))
    assert content(answer) == "onetwo"
    assert payloads(answer)[-1] == "[DONE]"
    assert charged(ended(gateway, answer, "ok", 200, "exact")) == PROMPT_TOKENS + 2


def test_many_events_in_one_write_are_taken_apart(gateway: GatewayProcess) -> None:
    answer = ask(gateway, sse("".join([": hello\n\n", *TWO, "event: x\nid: 7\n\n", *END])))
    assert content(answer) == "onetwo"
    assert charged(ended(gateway, answer, "ok", 200, "exact")) == PROMPT_TOKENS + 2


def test_an_event_of_several_lines_is_one_event(gateway: GatewayProcess) -> None:
    pretty = json.dumps(json.loads(chunk("one", usage(1))), indent=1).replace("\n", "\ndata: ")
    answer = ask(gateway, sse(f"data: {pretty}\n\n", *END))
    assert content(answer) == "one"
    assert charged(ended(gateway, answer, "ok", 200, "exact")) == PROMPT_TOKENS + 2


def test_a_stream_without_usage_is_charged_its_bound(gateway: GatewayProcess) -> None:
    answer = ask(gateway, sse(*UNMETERED, *events("[DONE]")))
    assert content(answer) == "onetwo"
    assert charged(ended(gateway, answer, "ok", 200, "at_most")) == HELLO_BOUND + len("onetwo")


def test_a_stream_that_ends_early_after_a_report_is_charged_it_and_the_step_in_flight(gateway: GatewayProcess) -> None:
    for last in ([], [None]):
        answer = ask(gateway, sse(*TWO, 0.05, *last))
        assert_told(answer, "upstream_error")
        assert content(answer) == "onetwo"
        row = ended(gateway, answer, "failed", 502, "at_least")
        assert charged(row) == PROMPT_TOKENS + 2 + 1


def test_a_stream_that_ends_early_without_a_report_is_charged_what_was_seen(gateway: GatewayProcess) -> None:
    for last in ([], [None]):
        answer = ask(gateway, sse(*UNMETERED, 0.05, *last))
        assert_told(answer, "upstream_error")
        assert charged(ended(gateway, answer, "failed", 502, "at_most")) == HELLO_BOUND + len("onetwo")


def test_a_stream_cut_before_its_first_byte_is_an_upstream_error(gateway: GatewayProcess) -> None:
    for late_head in (True, False):
        answer = ask(gateway, sse(0.05, None, late_head=late_head))
        error_of(answer, 502, "upstream_error")
        assert charged(ended(gateway, answer, "failed", 502, "at_most")) == HELLO_BOUND


def test_an_empty_stream_is_an_upstream_error(gateway: GatewayProcess) -> None:
    answer = ask(gateway, sse())
    error_of(answer, 502, "upstream_error")
    assert charged(ended(gateway, answer, "failed", 502, "at_most")) == HELLO_BOUND


def test_a_stream_that_never_begins_is_timed_out(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    for late_head in (True, False):
        began_s = time.monotonic()
        answer = ask(gateway, sse(20, late_head=late_head), model="brief")
        assert time.monotonic() - began_s < 4
        error_of(answer, 504, "upstream_timeout")
        row = ended(gateway, answer, "failed", 504, "at_most")
        assert charged(row) == HELLO_BOUND
        until(partial(fake.left.__contains__, row["request_id"]), "the runtime to be left")


def test_a_stream_that_stalls_is_timed_out_and_told(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    answer = ask(gateway, sse(*TWO, 20), model="brief")
    assert_told(answer, "upstream_timeout")
    row = ended(gateway, answer, "failed", 504, "at_least")
    assert charged(row) == PROMPT_TOKENS + 2 + 1
    until(lambda: row["request_id"] in fake.left, "the runtime to be left")


def test_a_stream_that_goes_on_slowly_is_not_timed_out(gateway: GatewayProcess) -> None:
    answer = ask(gateway, sse(TWO[0], 0.4, TWO[1], 0.4, END[0], 0.4, END[1]), model="brief")
    assert charged(ended(gateway, answer, "ok", 200, "exact")) == PROMPT_TOKENS + 2


@pytest.mark.parametrize(
    "garbage",
    [
        "garbage\n\n",
        "data: {not json}\n\n",
        "data: [1, 2]\n\n",
        "data: 7\n\n",
        "<html>\r\n\r\n",
        "data: \xff\xfe\n\n",
    ],
)
def test_garbage_in_a_stream_ends_it(gateway: GatewayProcess, garbage: str) -> None:
    answer = ask(gateway, sse(*TWO, 0.1, garbage, 0.1, *END, encoding="latin-1"))
    assert_told(answer, "upstream_error")
    row = ended(gateway, answer, "failed", 502, "at_least")
    assert charged(row) == PROMPT_TOKENS + 2 + 1


@pytest.mark.parametrize("used", [{"prompt_tokens": "7"}, {"prompt_tokens": 7, "completion_tokens": -3}, {"x": 1}])
def test_reports_that_cannot_be_believed_are_charged_the_whole_hold(gateway: GatewayProcess, used: Any) -> None:
    answer = ask(gateway, sse(*events(chunk("one", used), chunk("two", used), "[DONE]")))
    row = gateway.ended(answer)
    assert row["certainty"] == "at_most"
    assert charged(row) == HELLO_BOUND + CAP


def test_a_closing_report_that_cannot_be_believed_is_charged_the_whole_hold(gateway: GatewayProcess) -> None:
    answer = ask(gateway, sse(*TWO, *events(closing({"prompt_tokens": -7}), "[DONE]")))
    row = gateway.ended(answer)
    assert row["certainty"] == "at_most"
    assert charged(row) == HELLO_BOUND + CAP


@pytest.mark.parametrize("tail", ["", "\n\n"])
def test_an_event_that_is_too_large_ends_the_stream(gateway: GatewayProcess, tail: str) -> None:
    answer = ask(gateway, sse(*TWO, 0.1, ["data: {" + "x" * EVENT_BYTES_MAX, 4], tail, 1))
    assert_told(answer, "upstream_error")
    assert charged(ended(gateway, answer, "failed", 502, "at_least")) == PROMPT_TOKENS + 2 + 1


def test_an_endless_stream_of_nothing_ends_too(gateway: GatewayProcess) -> None:
    before = gateway.resident_bytes()
    answer = ask(gateway, sse(*TWO, 0.1, ["x" * EVENT_BYTES_MAX, 2000]))
    assert_told(answer, "upstream_error")
    assert gateway.resident_bytes() - before < 32 * 1024 * 1024
    ended(gateway, answer, "failed", 502, "at_least")


def test_a_large_event_within_the_bound_is_passed_on(gateway: GatewayProcess) -> None:
    answer = ask(gateway, sse(*events(chunk("x" * (EVENT_BYTES_MAX - 1024), usage(1))), *END))
    assert len(content(answer)) == EVENT_BYTES_MAX - 1024
    ended(gateway, answer, "ok", 200, "exact")


def test_an_error_event_is_passed_on_and_the_call_has_failed(gateway: GatewayProcess) -> None:
    said = {"error": {"message": "out of memory", "type": "InternalServerError", "code": 500}}
    answer = ask(gateway, sse(*TWO, *events(json.dumps(said), "[DONE]")))
    assert said in payloads(answer)
    row = ended(gateway, answer, "failed", 502, "at_least")
    assert charged(row) == PROMPT_TOKENS + 2 + 1


@pytest.mark.parametrize("status", [400, 500, 503])
def test_an_error_instead_of_a_stream_is_an_error(gateway: GatewayProcess, status: int) -> None:
    body = json.dumps({"error": {"message": "no", "type": "x", "param": None, "code": status}})
    answer = ask(gateway, {"status": status, "steps": [body]})
    assert answer.status_code == {400: 400, 500: 502, 503: 503}[status]
    assert answer.json()["error"]["message"]
    row = ended(gateway, answer, "failed", answer.status_code, "exact")
    assert charged(row) == 0


def test_a_json_answer_to_a_stream_is_charged_and_told(gateway: GatewayProcess) -> None:
    answer = ask(gateway, {"steps": ['{"choices": []}']})
    assert_told(answer, "upstream_error")
    assert charged(ended(gateway, answer, "failed", 502, "at_most")) == HELLO_BOUND


def test_a_stream_that_reports_more_than_was_held_is_charged_it(gateway: GatewayProcess) -> None:
    answer = ask(gateway, sse(*events(chunk("x", usage(900)), closing(usage(900)), "[DONE]")))
    assert charged(ended(gateway, answer, "ok", 200, "exact")) == PROMPT_TOKENS + 900


def test_each_choice_of_a_cut_stream_is_charged(gateway: GatewayProcess) -> None:
    """Two choices that reported 3 and 2: their sum, a step in flight for each, and the input as it was bounded."""
    parts = [chunk("a", usage(1), 0), chunk("b", usage(2), 1), chunk("c", usage(3), 0)]
    answer = ask(gateway, sse(*events(*parts), 0.05, None), n=2)
    row = ended(gateway, answer, "failed", 502, "at_least")
    assert charged(row) == HELLO_BOUND + 3 + 2 + 2


def test_what_follows_the_end_of_a_stream_is_not_charged_again(gateway: GatewayProcess) -> None:
    answer = ask(gateway, sse(*TWO, *END, 0.1, *events(chunk("more", usage(50)), closing(usage(50)), "[DONE]")))
    assert charged(ended(gateway, answer, "ok", 200, "exact")) == PROMPT_TOKENS + 2
