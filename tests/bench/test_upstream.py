"""The fake upstream and the bare proxy, over real HTTP."""

import time
from itertools import pairwise
from statistics import median

import aiohttp
import orjson
import pytest

from bench.comparison import Running
from bench.load import Load, drive
from bench.workload import CHUNK_INTERVAL_S, CHUNKS, MODEL, PROMPT_TOKENS, TEXT, request_body

PATH = "/v1/chat/completions"


@pytest.fixture(params=["upstream", "bare proxy"])
def base_url(request: pytest.FixtureRequest, upstream_url: str, bare: Running) -> str:
    return upstream_url if request.param == "upstream" else bare.base_url


async def events_of(url: str, options: dict[str, bool]) -> list[dict[str, object]]:
    body = {"model": MODEL, "messages": [], "stream": True, "stream_options": options}
    async with aiohttp.ClientSession() as session, session.post(url + PATH, json=body) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        lines = [line async for line in response.content if line.strip()]
    assert lines.pop() == b"data: [DONE]\n"
    return [orjson.loads(line.removeprefix(b"data: ")) for line in lines]


async def test_a_unary_answer_is_shaped_as_vllms(base_url: str) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            base_url + PATH,
            data=request_body(stream=False),
            headers={"x-request-id": "abc", "content-type": "application/json"},
        ) as response,
    ):
        answer = await response.json()
    assert answer["id"] == "chatcmpl-abc"
    assert answer["choices"][0]["message"]["content"] == TEXT
    assert answer["usage"] == {
        "prompt_tokens": PROMPT_TOKENS,
        "total_tokens": PROMPT_TOKENS + CHUNKS,
        "completion_tokens": CHUNKS,
        "prompt_tokens_details": {"cached_tokens": 64},
    }


async def test_a_stream_without_options_reports_no_usage(base_url: str) -> None:
    events = await events_of(base_url, {})
    assert len(events) == 1 + CHUNKS
    assert all("usage" not in event for event in events)


async def test_a_stream_with_continuous_usage_counts_every_token_as_it_comes(base_url: str) -> None:
    events = await events_of(base_url, {"include_usage": True, "continuous_usage_stats": True})
    counted = [event["usage"]["completion_tokens"] for event in events]  # type: ignore[index]
    assert counted == [*range(CHUNKS + 1), CHUNKS]
    assert events[-1]["choices"] == []


async def test_the_bare_proxy_passes_a_stream_on_unchanged(upstream_url: str, bare: Running) -> None:
    direct, proxied = [await events_of(url, {"include_usage": True}) for url in (upstream_url, bare.base_url)]
    for event in (*direct, *proxied):
        event.pop("id")
    assert proxied == direct


async def test_chunks_come_one_by_one_on_a_schedule_of_5_ms(base_url: str) -> None:
    arrivals_s: list[float] = []
    async with (
        aiohttp.ClientSession() as session,
        session.post(base_url + PATH, data=request_body(stream=True)) as response,
    ):
        async for _ in response.content.iter_any():
            arrivals_s.append(time.monotonic())
    assert len(arrivals_s) > 0.8 * CHUNKS
    gaps_s = [later - earlier for earlier, later in pairwise(arrivals_s)]
    assert 0.8 * CHUNK_INTERVAL_S < median(gaps_s) < 1.6 * CHUNK_INTERVAL_S
    assert arrivals_s[-1] - arrivals_s[0] > 0.9 * CHUNKS * CHUNK_INTERVAL_S


async def test_an_unknown_path_is_404_through_the_proxy_too(base_url: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{base_url}/v1/nothing") as response:
        assert response.status == 404


def test_the_client_gets_every_answer_it_asked_for(base_url: str) -> None:
    report = drive(base_url, {}, Load(requests=60, concurrency=4))
    assert len(report.latencies_us) == 60
    assert report.latency_ms(50) <= report.latency_ms(99)


def test_the_client_gets_whole_streams_in_separate_reads(base_url: str) -> None:
    report = drive(base_url, {}, Load(requests=8, concurrency=4, stream=True))
    assert median(report.reads) > 0.8 * CHUNKS
    assert min(report.latencies_us) > 0.9 * CHUNKS * CHUNK_INTERVAL_S * 1e6


def test_what_a_load_costs_the_proxy_is_more_than_nothing_and_less_than_it_takes(bare: Running) -> None:
    started_s = time.monotonic()
    cost = bare.cost(Load(requests=100, concurrency=4))
    elapsed_us = (time.monotonic() - started_s) * 1e6
    assert cost.worker_us == pytest.approx(cost.all_us, rel=0.2)
    assert 10 < cost.worker_us < elapsed_us / 100
