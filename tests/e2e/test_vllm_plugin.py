"""What the plugin tells of a real vLLM's steps adds up to what vLLM itself counts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from openai import AsyncOpenAI
from prometheus_client.parser import text_string_to_metric_families

from runtime.vllm.control import VllmControl
from runtime.vllm.exchange import get
from tests.e2e.conftest import MODEL_NAME
from tests.e2e.replay import Replay, Stay, finished_lines, replayed
from tests.e2e.vllm_changes import TINY_CACHE
from tests.e2e.vllm_environment import MODEL, PYTHON, ROOT

pytestmark = pytest.mark.timeout(600)
REQUESTS = 32
LONG_TOKENS = 600  # some seconds of answer, for vLLM notices a client that left late when its processor is busy
HEAD = "the same beginning of every request, long enough for some blocks of the cache "
STEPS = ROOT / "tests" / "e2e" / "scheduler_steps.py"


@dataclass(slots=True)
class Load:
    """What was sent: the usage that vLLM answered with, by request id, and those whose client left."""

    usages: dict[str, Any] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Told:
    """A mixed load, what the telemetry says of it, and what vLLM's counters grew by."""

    load: Load
    replay: Replay
    finished: list[list[Any]]
    counted: Counter[str]
    busy_us: int
    began_us: int
    wall_us: int


@pytest.fixture(scope="module")
def told(vllm_control: VllmControl) -> Told:
    """One load of every kind on a vLLM whose cache is too small for it, replayed once it is at rest."""
    assert vllm_control.apply(TINY_CACHE).outcome == "applied"
    folder = vllm_control.launch.telemetry
    assert folder is not None
    before, quiet = counters(vllm_control.base_url), replayed(folder)
    began = len(finished_lines(folder))
    began_us = time.time_ns() // 1000
    load = asyncio.run(mixed(vllm_control.base_url))
    assert vllm_control.drain()
    time.sleep(0.2)  # the front end tells of the last request when it has answered it
    wall_us = time.time_ns() // 1000 - began_us
    after = counters(vllm_control.base_url)
    after.subtract(before)
    replay = replayed(folder)
    replay.stays = replay.stays[len(quiet.stays) :]
    busy_us = replay.busy_us - quiet.busy_us
    return Told(load, replay, finished_lines(folder)[began:], after, busy_us, began_us, wall_us)


def counters(url: str) -> Counter[str]:
    """vLLM's totals, by name and source."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(get(url, "/metrics").decode()):
        for sample in family.samples:
            if sample.name.startswith("vllm:") and sample.name.endswith("_total"):
                found[sample.name.removeprefix("vllm:") + sample.labels.get("source", "")] += int(sample.value)
    return found


async def mixed(url: str) -> Load:
    """Requests of five kinds at once, named as Bursar names them."""
    load, random = Load(), Random(7)
    client = AsyncOpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0, timeout=120)
    async with client:
        async with asyncio.TaskGroup() as group:
            for number in range(REQUESTS):
                text = HEAD * random.randrange(1, 5) + f"and item {number} " + "x y z " * random.randrange(40)
                group.create_task(one(client, load, number % 5, text, random.randrange(5, 150)))
        for _ in range(2):
            await one(client, load, 3, "Nobody else is here.", 3)
    return load


async def one(client: AsyncOpenAI, load: Load, kind: int, text: str, tokens: int) -> None:
    """One request: a chat, a stream, a completion of two choices, or one whose client leaves sooner or later."""
    name = str(uuid.uuid4())
    asked: dict[str, Any] = {
        "model": MODEL_NAME,
        "max_tokens": tokens,
        "extra_headers": {"X-Request-Id": name},
        "extra_body": {"ignore_eos": True},
    }
    messages: Any = [{"role": "user", "content": text}]
    if kind == 0:
        load.usages[name] = (await client.chat.completions.create(**asked, messages=messages)).usage
    elif kind == 1:
        told = {"stream": True, "stream_options": {"include_usage": True}}
        stream = await client.chat.completions.create(**asked, **told, messages=messages)
        load.usages[name] = [chunk async for chunk in stream][-1].usage
    elif kind == 2:
        answer = await client.completions.create(**asked, n=2, prompt=[text], temperature=1.0)
        assert len(answer.choices) == 2
        load.usages[name] = answer.usage
    else:
        load.left.add(name)
        asked["max_tokens"] = LONG_TOKENS
        stream = await client.chat.completions.create(**asked, stream=True, messages=messages)
        chunks = 0
        async for _ in stream:
            chunks += 1
            if chunks > tokens // (1 if kind == 3 else 20):
                break
        await stream.close()


def last_stays(stays: list[Stay]) -> list[Stay]:
    """The stays that ended otherwise than by preemption."""
    return [stay for stay in stays if stay.reason != "preempted"]


def test_every_request_joins_and_leaves_under_the_name_that_was_sent(told: Told) -> None:
    assert told.replay.batch == {}
    assert {stay.request_id for stay in told.replay.stays} == told.load.usages.keys() | told.load.left
    reasons = Counter(stay.reason for stay in told.replay.stays)
    assert reasons["preempted"] > 0, "the cache was too small"
    assert 0 < reasons["aborted"] <= len(told.load.left)
    # Of those whose client left, a busy vLLM finishes some before it has noticed.
    ended = last_stays(told.replay.stays)
    assert [stay for stay in ended if stay.reason == "aborted" and stay.request_id not in told.load.left] == []
    completed = [stay.request_id for stay in ended if stay.request_id in told.load.usages]
    assert Counter(completed) == Counter(line[1] for line in told.finished if line[1] in told.load.usages)
    # One that was preempted and is aborted while it waits has left the batch already.
    assert sum(stay.request_id in told.load.left for stay in ended) <= len(told.load.left)


def test_completed_requests_computed_what_they_were_charged_for(told: Told) -> None:
    """Prompt less cached tokens, and a token less than the answer: the last one is never fed back."""
    compared = 0
    for name, usage in told.load.usages.items():
        stays = told.replay.of(name)
        assert sum(stay.output_tokens for stay in last_stays(stays)) == usage.completion_tokens
        if any(stay.reason == "preempted" for stay in stays):
            continue
        compared += 1
        assert sum(stay.prompt_tokens for stay in stays) == usage.prompt_tokens * len(stays)
        assert sum(stay.prefilled_tokens + stay.cached_tokens - stay.prompt_tokens for stay in stays) == 0
        assert sum(stay.decoded_tokens for stay in stays) == usage.completion_tokens - len(stays)
        if len(stays) == 1:
            assert stays[0].cached_tokens == usage.prompt_tokens_details.cached_tokens
    assert compared > 5


def test_the_streams_sums_are_vllms_own_counters(told: Told) -> None:
    """Prompts, tokens found in the cache at the first join, and answers are those of `/metrics`."""
    firsts, lasts = choices(told, first=True), choices(told, first=False)
    assert told.counted["prompt_tokens_total"] == sum(stays[0].prompt_tokens * count for stays, count in firsts)
    # Of two choices under one name it is not known which one a preemption befell.
    fewest = sum(sum(sorted(stay.cached_tokens for stay in stays)[:count]) for stays, count in firsts)
    most = sum(sum(sorted(stay.cached_tokens for stay in stays)[-count:]) for stays, count in firsts)
    assert 0 < fewest <= told.counted["prefix_cache_hits_total"] <= most
    assert told.counted["prompt_tokens_by_source_totallocal_cache_hit"] == told.counted["prefix_cache_hits_total"]
    # vLLM counts a preemption with the next answer: not that of a request which is aborted while it waits.
    preempted = Counter(stay.request_id for stay in told.replay.stays if stay.reason == "preempted")
    of_left = sum(preempted[name] for name in told.load.left)
    assert preempted.total() - of_left <= told.counted["num_preemptions_total"] <= preempted.total()
    listed = sum(line[-1] for line in told.finished if line[1] in told.load.usages)
    assert listed == preempted.total() - of_left
    # What is computed after a client has left and before the engine knows it is not counted.
    completed = sum(usage.completion_tokens for usage in told.load.usages.values())
    answered = sum(stay.output_tokens for stays, _ in lasts for stay in stays)
    assert completed < told.counted["generation_tokens_total"] <= answered


def choices(told: Told, *, first: bool) -> list[tuple[list[Stay], int]]:
    """For each request its first or last stays, all where they cannot be told apart, and how many choices it has."""
    found = []
    for name in told.load.usages.keys() | told.load.left:
        stays = told.replay.of(name)
        ended = last_stays(stays)
        count = max(1, len(ended))
        if first:
            found.append((stays if count > 1 else stays[:1], count))
        else:
            found.append((ended or stays[-1:], count))
    return found


def test_what_vllm_lists_as_finished_is_what_the_stream_says(told: Told) -> None:
    for _, name, reason, prompt, cached, output, queued_us, prefill_us, decode_us, e2e_us, _ in told.finished:
        assert reason == "length"
        assert min(queued_us, prefill_us, decode_us) >= 0
        assert e2e_us > 0
        mine = [stay for stay in told.replay.of(name) if stay.prompt_tokens == prompt]
        assert cached in {stay.cached_tokens for stay in mine}
        assert output in {stay.output_tokens for stay in mine}


def test_steps_lie_within_the_wall_clock_of_the_load_and_fill_most_of_it(told: Told) -> None:
    """Busy time is at most the wall's; what is left, the gaps between steps, is idle."""
    replay = told.replay
    assert replay.busy_us + replay.idle_us == replay.end_us - replay.began_us
    assert told.began_us < replay.end_us < told.began_us + told.wall_us, "times are Unix microseconds"
    assert told.wall_us / 2 < told.busy_us < told.wall_us


@pytest.mark.parametrize("mode", ["stepwise", "ahead"])
def test_vllms_own_scheduler_computed_what_the_telemetry_says(mode: str, tmp_path: Path) -> None:
    """Also with two batches in flight, which vLLM never has on a CPU: its scheduler is driven without a model."""
    environment = {**os.environ, "BURSAR_TELEMETRY": str(tmp_path), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(PYTHON), str(STEPS), str(MODEL), mode, "drive"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    scheduled = json.loads(done.stdout.splitlines()[-1])
    replay = replayed(tmp_path)
    assert replay.closed
    assert "off" not in replay.facts
    expected = Counter({re.sub(r"^chatcmpl-|-0123abcd$", "", name): n for name, n in scheduled["computed"].items()})
    assert replay.computed_tokens() == expected
    assert replay.steps == scheduled["steps"]
    assert {stay.reason for stay in replay.stays} == {"finished", "aborted", "preempted"}
