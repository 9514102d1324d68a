"""What is kept of an answer, and the scoring of those that are sampled."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from gateway.answers import CALLS_CHARACTERS_MAX, Collector, offered_in
from gateway.quality import BreaksSchema, Sampler, by_process
from gateway.quality_config import Quality
from gateway.signals import Signals
from policy.checks.port import CheckError, CheckFailed
from policy.checks.process import CheckProcess
from policy.quality import Answer
from runtime.openai.sse import Meter
from tests.gateway.fake_runtime import chunk, closing, events, usage, whole

ROW = {"request_id": "r1", "org": "acme", "team": "search", "app": "web", "served_model": "plain"}
SCHEMA = {"type": "json_schema", "json_schema": {"schema": {"type": "object", "required": ["a"]}}}
MIB = 1 << 20


@dataclass
class Kept:
    """The rows that signals made."""

    rows: list[dict[str, Any]]

    def append(self, kind: str, body: Mapping[str, Any], /) -> int:
        self.rows.append(dict(body))
        return len(self.rows)


def calling(name: str, arguments: str = "", index: int = 0) -> str:
    """A chunk that begins a tool call, or, without a name, goes on with it."""
    function = {"name": name, "arguments": arguments} if name else {"arguments": arguments}
    call = {"index": index, "type": "function", "function": function}
    return json.dumps({"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]})


def ending(reason: str) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})


def passed_on(collector: Collector, payloads: list[str], cut_at: int = 0) -> None:
    """Give a stream to a meter, in pieces of that many bytes, and what it passes on to the collector."""
    meter = Meter(choices=1, show_final=False, show_all=False, event_bytes_max=MIB)
    data = "".join(events(*payloads, "[DONE]")).encode()
    step = cut_at or len(data)
    for at in range(0, len(data), step):
        out = meter.feed(data[at : at + step])
        if out:
            collector.feed(out)
    assert meter.done


@pytest.mark.parametrize("cut_at", [0, 1, 7, 100])
def test_the_text_of_a_stream_is_put_together_whatever_it_came_in(cut_at: int) -> None:
    collector = Collector(MIB)
    payloads = [chunk("one "), chunk("two ", usage(2)), chunk("three"), ending("stop"), closing(usage(3))]
    passed_on(collector, payloads, cut_at)
    assert collector.answers() == [Answer("one two three", "stop")]
    assert collector.called() == []


def test_choices_are_kept_apart_and_completions_are_read_too() -> None:
    collector = Collector(MIB)
    passed_on(collector, [chunk("a"), chunk("x", index=1), chunk("b"), chunk("y", index=1)])
    assert [answer.text for answer in collector.answers()] == ["ab", "xy"]
    other = Collector(MIB)
    other.whole({"choices": [{"index": 0, "text": "plain text", "finish_reason": "length"}]})
    assert other.answers() == [Answer("plain text", "length")]
    third = Collector(MIB)
    third.whole(json.loads(whole(usage(3), "one two three")))
    assert third.answers() == [Answer("one two three", "stop")]


def test_tool_calls_are_named_once_for_each_call() -> None:
    tools = [{"function": {"name": "search"}}, {"type": "custom", "custom": {"name": "fetch"}}, 7]
    offered = offered_in({"tools": tools, "functions": [{"name": "older"}, 7]})
    assert offered == {"search", "fetch", "older"}
    for collector in (Collector(0, offered=offered), Collector(MIB, offered=offered)):
        payloads = [chunk("I look. "), calling("search", '{"q":'), calling("", '"x"}'), calling("fetch", "{}", 1)]
        passed_on(collector, [*payloads, ending("tool_calls")])
        assert collector.called() == ["search", "fetch"]
        assert all(answer.calls_tools for answer in collector.answers())


def test_a_name_that_was_not_offered_is_text_of_the_model_and_not_told() -> None:
    collector = Collector(0, offered=offered_in({"tools": "x", "functions": 7}))
    passed_on(collector, [calling("my number is 123-45-6789"), ending("tool_calls")])
    assert collector.called() == [""]


def test_without_sampling_no_text_is_kept() -> None:
    collector = Collector(0)
    passed_on(collector, [chunk("secret "), chunk("words"), ending("stop")])
    assert not collector.reads_text
    assert collector.answers() == []


def test_what_is_kept_is_bounded() -> None:
    collector = Collector(1_000)
    passed_on(collector, [chunk("x" * 100) for _ in range(500)])
    [answer] = collector.answers()
    assert answer.is_cut
    assert 1_000 <= len(answer.text) <= 1_100
    calls = Collector(0, offered=frozenset({"f"}))
    passed_on(calls, [calling("f"), *(calling("", "y" * 1_000) for _ in range(500))])
    assert calls.called() == ["f"]
    assert calls._assembly.size_chars <= CALLS_CHARACTERS_MAX + 1_000


@pytest.mark.parametrize("events", [b"data: {\n\n", b"data: [1]\n\n", b": ping\n\n", b"\xff\xfe", b"data: [DONE]\n\n"])
def test_what_is_no_chunk_is_passed_over(events: bytes) -> None:
    collector = Collector(MIB)
    collector.feed(events)
    collector.feed(b'data: {"choices":\ndata: [{"delta":{"content":"in two lines"}}]}\n\n')
    assert [answer.text for answer in collector.answers()] == ["in two lines"]


def sampler_of(rows: list[dict[str, Any]], checks: BreaksSchema | None = None, **more: Any) -> tuple[Sampler, Signals]:
    signals = Signals(Kept(rows), lambda: True, lambda: 1_772_280_000_000_000)
    return Sampler(signals, Quality(sample=1), checks, **more), signals


def text_of(sampler: Sampler, text: str, body: Mapping[str, Any] | None = None) -> Collector:
    collector = sampler.collector("r1", body or {}, generates=True, offers_tools=False)
    assert collector is not None
    collector.whole({"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]})
    return collector


def noted(signals: Signals, rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    signals.flush()
    return sorted((row["name"], row["level"], row["subject"]) for row in rows)


def test_only_sampled_answers_are_read_and_embeddings_never() -> None:
    sampler, _ = sampler_of([])
    assert sampler.collector("r1", {}, generates=False, offers_tools=False) is None
    sampler.config = Quality(sample=0)
    assert sampler.collector("r1", {}, generates=True, offers_tools=False) is None
    for_tools = sampler.collector("r1", {}, generates=True, offers_tools=True)
    assert for_tools is not None
    assert not for_tools.reads_text


async def test_a_failing_answer_makes_two_signals_and_none_holds_its_text() -> None:
    rows: list[dict[str, Any]] = []
    sampler, signals = sampler_of(rows)
    sampler.score(ROW, text_of(sampler, "the secret is 12345", {"response_format": {"type": "json_object"}}))
    await asyncio.sleep(0)
    assert noted(signals, rows) == [("quality", "failed", "plain"), ("quality_failed", "warn", "schema")]
    assert "12345" not in json.dumps(rows)


async def test_a_good_answer_is_counted_only() -> None:
    rows: list[dict[str, Any]] = []
    sampler, signals = sampler_of(rows)
    sampler.score(ROW, text_of(sampler, "Paris"))
    await asyncio.sleep(0)
    assert noted(signals, rows) == [("quality", "ok", "plain")]


async def test_a_schema_is_checked_elsewhere_and_the_answer_is_judged_when_that_has_answered() -> None:
    rows: list[dict[str, Any]] = []
    asked: list[tuple[Mapping[str, Any], str]] = []

    async def breaks(schema: Mapping[str, Any], text: str) -> bool:
        asked.append((schema, text))
        return "b" in text

    sampler, signals = sampler_of(rows, breaks)
    sampler.score(ROW, text_of(sampler, '{"b": 1}', {"response_format": SCHEMA}))
    sampler.score({**ROW, "served_model": "good"}, text_of(sampler, '{"a": 1}', {"response_format": SCHEMA}))
    assert noted(signals, rows) == []
    await asyncio.sleep(0.01)
    assert noted(signals, rows) == [
        ("quality", "failed", "plain"),
        ("quality", "ok", "good"),
        ("quality_failed", "warn", "schema"),
    ]
    assert asked[0] == (SCHEMA["json_schema"]["schema"], '{"b": 1}')  # type: ignore[index]


async def test_a_schema_that_cannot_be_checked_breaks_nothing() -> None:
    rows: list[dict[str, Any]] = []

    async def breaks(schema: Mapping[str, Any], text: str) -> bool:
        raise CheckFailed("timeout", "it took too long")

    sampler, signals = sampler_of(rows, breaks)
    sampler.score(ROW, text_of(sampler, '{"a": 1}', {"response_format": SCHEMA}))
    await asyncio.sleep(0.01)
    assert noted(signals, rows) == [("quality", "ok", "plain")]


async def test_schemas_are_checked_by_the_process_of_verification() -> None:
    process = CheckProcess(timeout_s=20, pii_entities=())
    try:
        breaks = by_process(process)
        assert await breaks({"type": "object", "required": ["a"]}, '{"b": 1}')
        assert not await breaks({"type": "object", "required": ["a"]}, '{"a": 1}')
        with pytest.raises(CheckError):
            await breaks({"type": "nonsense"}, "{}")
    finally:
        await process.close()


async def test_no_more_answers_wait_for_a_check_than_may() -> None:
    rows: list[dict[str, Any]] = []

    async def hangs(schema: Mapping[str, Any], text: str) -> bool:
        await asyncio.sleep(60)
        return True

    sampler, signals = sampler_of(rows, hangs, checking_max=3)
    for _ in range(10):
        sampler.score(ROW, text_of(sampler, '{"a": 1}', {"response_format": SCHEMA}))
    await asyncio.sleep(0)
    assert sampler.skipped == 7
    await sampler.close()
    assert noted(signals, rows) == []
