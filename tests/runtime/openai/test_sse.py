"""The meter reads any event stream however its bytes arrive, and shows the client what it asked for."""

import json
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.openai.sse import Meter
from runtime.openai.usage import Report
from runtime.port import Garbage

DONE = b"data: [DONE]\n\n"


def meter(*, choices: int = 1, show_final: bool = False, show_all: bool = False, event_bytes_max: int = 4096) -> Meter:
    return Meter(choices=choices, show_final=show_final, show_all=show_all, event_bytes_max=event_bytes_max)


def usage(prompt: int, output: int, cached: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def event(content: str = "x", used: dict[str, Any] | None = None, index: int = 0, compact: bool = True) -> bytes:
    body: dict[str, Any] = {"id": "c", "choices": [{"index": index, "delta": {"content": content}}]}
    if used is not None:
        body["usage"] = used
    return b"data: " + json.dumps(body, separators=(",", ":") if compact else None).encode() + b"\n\n"


def closing(used: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps({"id": "c", "choices": [], "usage": used}, separators=(",", ":")).encode() + b"\n\n"


def parsed(data: bytes) -> list[Any]:
    return [json.loads(each[6:]) for each in data.decode().split("\n\n") if each.startswith("data: {")]


texts = st.text(alphabet=st.characters(codec="utf-8"), max_size=12)
streams = st.lists(st.tuples(texts, st.booleans(), st.booleans()), min_size=1, max_size=6)


@given(streams, st.lists(st.integers(0, 2000), max_size=12), st.sampled_from([b"\n", b"\r\n"]))
def test_it_does_not_matter_where_the_stream_is_cut(
    chunks: list[tuple[str, bool, bool]], cuts: list[int], newline: bytes
) -> None:
    events = [
        event(text, usage(7, at) if reports else None, compact=compact)
        for at, (text, reports, compact) in enumerate(chunks)
    ]
    data = b"".join([*events, closing(usage(7, 9)), DONE]).replace(b"\n", newline)
    places = sorted({0, len(data), *(cut % len(data) for cut in cuts)})
    read = meter(event_bytes_max=1 << 20)
    out = b"".join(read.feed(data[start:end]) for start, end in pairwise(places)) + read.finish()
    assert read.done
    assert read.report == Report(7, 0, 9, 0)
    seen = parsed(out)
    assert [each["choices"][0]["delta"]["content"] for each in seen] == [text for text, _, _ in chunks]
    assert all("usage" not in each for each in seen)
    assert out.endswith(DONE)


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize(("show_final", "show_all"), [(False, False), (True, False), (True, True)])
def test_the_client_is_shown_what_it_asked_for(show_final: bool, show_all: bool, compact: bool) -> None:
    read = meter(show_final=show_final, show_all=show_all)
    seen = parsed(read.feed(event("a", usage(3, 1), compact=compact)) + read.feed(closing(usage(3, 1))))
    assert ("usage" in seen[0]) == show_all
    assert len(seen) == (2 if show_final else 1)


def test_each_choice_reports_for_itself_until_the_closing_sum() -> None:
    read = meter(choices=2)
    for output, index in ((1, 0), (1, 1), (2, 0), (5, 1)):
        read.feed(event(used=usage(7, output, cached=index), index=index))
    assert read.report == Report(7, 0, 7, 0)
    read.feed(closing(usage(7, 8)))
    assert read.report == Report(7, 0, 8, 0)


def test_without_reports_the_bytes_of_output_are_counted() -> None:
    read = meter()
    read.feed(event("four") + event("ü"))
    tool_call = {"choices": [{"index": 0, "delta": {"role": "assistant", "tool_calls": [{"id": "t"}]}}]}
    read.feed(b"data: " + json.dumps(tool_call).encode() + b"\n\n")
    assert read.report is None
    assert read.produced == len("four") + 2 + len('[{"id":"t"}]')


def test_comments_and_named_fields_pass_through() -> None:
    read = meter()
    for data in (b": ping\n\n", b"event: x\nid: 1\nretry: 5\n\n", b"\n\n"):
        assert read.feed(data) == data
    assert not read.done


@pytest.mark.parametrize("data", [b"data:[DONE]\n\n", b"data: [DONE]\r\n\r\n", b"event: end\ndata: [DONE] \n\n"])
def test_the_end_is_known_however_it_is_written(data: bytes) -> None:
    read = meter()
    assert read.feed(data) == DONE
    assert read.done


def test_an_end_without_its_blank_line_is_an_end() -> None:
    read = meter()
    assert read.feed(b"data: [DONE]") == b""
    assert read.finish() == DONE
    assert read.done


def test_an_event_over_several_lines_is_made_one() -> None:
    read = meter()
    out = read.feed(b'data: {"choices":\ndata: [{"index": 0, "delta": {"content": "x"}}]\ndata: }\n\n')
    assert parsed(out) == [{"choices": [{"index": 0, "delta": {"content": "x"}}]}]


def test_an_error_event_is_kept_and_passed_on() -> None:
    read = meter()
    data = b'data: {"error":{"message":"no"}}\n\n'
    assert read.feed(data) == data
    assert read.error == {"message": "no"}


@pytest.mark.parametrize("data", [b"hello\n\n", b"data: {\n\n", b"data: [1]\n\n", b'data: {"a":1}\ndata: {"b":2}\n\n'])
def test_what_is_no_event_stream_is_garbage(data: bytes) -> None:
    with pytest.raises(Garbage):
        meter().feed(data)


def test_a_report_that_cannot_be_is_garbage() -> None:
    def report_of(compact: bool) -> Report | None:
        read = meter()
        read.feed(event(used=usage(3, -1), compact=compact))
        return read.report

    for compact in (True, False):
        with pytest.raises(Garbage):
            report_of(compact)


def test_an_event_is_bounded_also_while_it_arrives() -> None:
    read = meter(event_bytes_max=100)
    for _ in range(9):
        assert read.feed(b"data: xxxxx") == b""
    with pytest.raises(Garbage, match="larger than 100"):
        read.feed(b"data: xxxxx")


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_raise_garbage(data: bytes) -> None:
    read = meter(event_bytes_max=64)
    with suppress(Garbage):
        read.feed(data)
        read.finish()
        assert read.report is None or read.report.input_tokens >= 0
