"""Scraping: what a runtime shows at `/metrics`, or why it cannot be had."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from gateway.offers import Runtime
from gateway.scraping import ScrapeFailed, scrape

PAGE = """
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:prompt_tokens_total{engine="0",model_name="m"} 100.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local"} 77.0
vllm:generation_tokens_total{engine="0",model_name="m"} 50.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 4.0
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 90.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 64.0
vllm:num_preemptions_total{engine="0",model_name="m"} 5.0
vllm:e2e_request_latency_seconds_bucket{engine="0",le="0.3",model_name="m"} not a number
"""


@asynccontextmanager
async def serving(answer: Callable[[], web.Response]) -> AsyncIterator[str]:
    async def handle(_: web.Request) -> web.Response:
        return answer()

    app = web.Application()
    app.router.add_get("/metrics", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server: Any = site._server
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        await runner.cleanup()


async def test_the_counters_are_read_and_nothing_else_of_the_page() -> None:
    async with serving(lambda: web.Response(text=PAGE)) as url:
        counters, preemptions, engines = await scrape(url)
    assert engines == 1
    assert (counters.running, counters.waiting, counters.kv_cache_usage, preemptions) == (3, 2, 0.25, 5)
    assert (counters.prompt_tokens_total, counters.generation_tokens_total) == (100, 50)
    assert (counters.prefix_cache_queries, counters.prefix_cache_hits) == (90, 64)


async def test_engines_that_nobody_has_asked_yet_are_there_though_they_show_no_gauges() -> None:
    """So it is with several API servers, which share their metrics through files and leave out what was never set."""
    counters = [line for line in PAGE.splitlines(keepends=True) if "_total{" in line]
    idle = re.sub(r"\} .*", "} 0.0", "".join(counters))
    page = idle + idle.replace('engine="0"', 'engine="1"')
    async with serving(lambda: web.Response(text=page)) as url:
        at_first = await scrape(url)
        assert (at_first.counters.running, at_first.counters.waiting, at_first.engines) == (0, 0, 2)
        page += PAGE.replace('engine="0"', 'engine="2"')
        later = await scrape(url)
    assert (later.counters.running, later.counters.waiting, later.engines) == (3, 2, 3)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda: web.Response(status=503), "answered 503"),
        (lambda: web.Response(text="hello"), "no sample of vllm:"),
        (lambda: web.Response(text=PAGE.replace("num_preemptions_total", "preempted")), "num_preemptions_total"),
        (lambda: web.Response(text=PAGE.replace("} 100.0", "} many")), "not Prometheus text"),
        (lambda: web.Response(text=PAGE.replace("} 0.25", "} NaN")), "kv_cache_usage_perc is not a finite number"),
    ],
)
async def test_a_page_that_is_not_a_vllms_is_refused_with_the_reason(
    answer: Callable[[], web.Response], why: str
) -> None:
    async with serving(answer) as url:
        with pytest.raises(ScrapeFailed, match=why):
            await scrape(url)


async def test_nobody_listening_is_a_reason_too() -> None:
    with pytest.raises(ScrapeFailed, match="cannot be read"):
        await scrape("http://127.0.0.1:9")


def test_a_hold_sets_aside_so_many_times_the_estimate_rounded_up() -> None:
    named: dict[str, Any] = {"id": "a", "owner": "o", "url": "http://h", "gpu_nusd_per_hour": 7}
    runtime = Runtime(**named, gpu_us_per_input_mtok=3, gpu_us_per_output_mtok=101, hold_factor=1.5)
    assert (runtime.hold_rate.input_us_per_mtok, runtime.hold_rate.output_us_per_mtok) == (5, 152)
    assert (runtime.hold_rate.nusd_per_hour, runtime.rate.input_us_per_mtok) == (7, 3)
    assert Runtime(**named, gpu_us_per_input_mtok=3).hold_rate == Runtime(**named, gpu_us_per_input_mtok=3).rate


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"hold_factor": 0.5}, "greater than or equal to 1"),
        ({"url": "sim://", "telemetry": "here"}, "leave it out"),
        ({"work": {"prefill_token_ns": 0, "decode_request_ns": 0, "decode_context_ps": 0}}, "give at least one"),
        ({"nvml_devices": [1, 1]}, "twice"),
        ({"power_w": -1}, "greater than or equal to 0"),
        ({"sample_interval_s": 0.1}, "greater than or equal to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Runtime(**{"id": "a", "owner": "o", "url": "http://h", **settings})
