"""Scraping: what a vLLM, or the simulator, shows of itself at `/metrics`."""

import re
from http import HTTPStatus
from typing import NamedTuple

import aiohttp

from runtime.vllm.sampling import MetricsError, VllmCounters, counters_of, engines_shown, samples_by_name, total

TIMEOUT_S = 10.0
# Some 60 KB for each engine of a vLLM; it is searched in one go.
BYTES_MAX = 2 << 20
# A page has thousands of lines of histograms; reading all of them would keep the event loop for longer than a request.
_WANTED = re.compile(
    rb"^vllm:(?:prompt_tokens_total|generation_tokens_total|request_success_total|prefix_cache_queries_total"
    rb"|prefix_cache_hits_total|num_requests_running|num_requests_waiting|kv_cache_usage_perc|num_preemptions_total)"
    rb"[{ ].*$",
    re.MULTILINE,
)


class ScrapeFailed(Exception):
    """The page could not be had, or is not that of a vLLM; the message says why."""


class Scraped(NamedTuple):
    """The counters of a runtime, how often it has preempted a request, and of how many engines it shows them."""

    counters: VllmCounters
    preemptions: int
    engines: int


async def scrape(base_url: str) -> Scraped:
    """What a runtime shows now; raises ScrapeFailed."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"{base_url}/metrics") as answer:
            page = await answer.content.read(BYTES_MAX)
            while data := await answer.content.read(BYTES_MAX - len(page)):
                page += data
            if answer.status != HTTPStatus.OK:
                raise ScrapeFailed(f"its /metrics answered {answer.status}")
        text = b"\n".join([*_WANTED.findall(page), b""]).decode(errors="replace")
        samples = samples_by_name(text, None)
        return Scraped(counters_of(samples), total(samples, "num_preemptions_total"), engines_shown(samples))
    except (aiohttp.ClientError, TimeoutError, MetricsError) as error:
        raise ScrapeFailed(f"its /metrics cannot be read: {error or 'no answer in time'}") from error
