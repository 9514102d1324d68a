"""Accelerator time of a real vLLM: what is charged adds up to what its scheduler computed, and tokens agree."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from openai import AsyncOpenAI

from gateway.token_checks import SETTLES_US
from runtime.vllm.control import VllmControl
from tests.e2e.configuration import write_configuration
from tests.e2e.conftest import MODEL_NAME
from tests.e2e.deployment import Deployment, eventually
from tests.e2e.governed import Episode, Governed, sampled
from tests.e2e.traffic import asked, leave_after
from tests.e2e.vllm_changes import TINY_CACHE
from tests.gateway.told import told

pytestmark = pytest.mark.timeout(900)
SEED = 20260103
REQUESTS, AT_ONCE = 48, 12
RUNTIME = "vllm"
HEAD = "The same beginning of many a question about shelves, boxes, bolts and their places in the house. " * 2
ACCOUNT_SQL = """
SELECT toInt64(sum(capacity_us)) AS capacity, toInt64(sum(busy_us)) AS busy, toInt64(sum(idle_us)) AS idle,
       toInt64(sum(lost_us)) AS lost, toInt64(sum(attributed_us)) AS attributed, toInt64(sum(foreign_us)) AS foreign,
       toInt64(sum(unattributed_us)) AS unattributed, toInt64(max(preemptions)) AS preemptions,
       toInt64(argMax(prefix_hits, ts)) AS hits
FROM runtime_sample WHERE runtime = 'vllm'
"""
CHARGED_SQL = """
SELECT request_id, toInt64(sum(gpu_us)) AS gpu, toInt64(sum(kv_block_us)) AS kv, toInt64(sum(queue_us)) AS queue,
       toInt64(sum(cached_input_tokens)) AS cached, maxIf(status, status != 'adjusted') AS ended,
       countIf(status = 'adjusted') AS corrected, maxIf(certainty, status = 'adjusted') AS certain
FROM usage WHERE runtime = 'vllm' GROUP BY request_id
"""
COMPLETED_SQL = """
SELECT request_id, toInt64(input_tokens) AS input_tokens, toInt64(cached_input_tokens) AS cached_input_tokens,
       toInt64(output_tokens) AS output_tokens
FROM usage WHERE runtime = 'vllm' AND status = 'ok' AND certainty = 'exact'
"""


@pytest.fixture(scope="module")
def metered(vllm_control: VllmControl, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Governed]:
    """`bursar up` in front of a vLLM whose cache is too small for its load, and whose telemetry it follows."""
    assert vllm_control.apply(TINY_CACHE).outcome == "applied"
    folder = tmp_path_factory.mktemp("metered")
    url = vllm_control.base_url
    path = write_configuration(folder, MODEL_NAME, url, url)
    _follow(path, vllm_control.launch.telemetry)
    with Deployment(folder / "home", path) as deployment:
        yield Governed(deployment, url, url, started=sampled(url))


def _follow(path: Path, telemetry: Path | None) -> None:
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    document["runtimes"][0] |= {"telemetry": str(telemetry), "sample_interval_s": 1, "power_w": 100}
    path.write_text(yaml.safe_dump(document), encoding="utf-8")


def number(found: list[dict[str, Any]], name: str) -> int:
    return sum(int(row[name]) for row in found)


async def test_what_requests_are_charged_is_what_the_scheduler_computed(metered: Governed) -> None:
    episode = metered.episode("attributed")
    await _mixed(metered, episode)
    rows = metered.rows("attributed/", episode.sent)
    metered.quiet_sample()
    # One more, so that those that were aborted before they were computed are known to be so.
    after = metered.episode("after")
    async with metered.client() as client:
        await client.chat.completions.create(**asked("The last one.", 4), extra_headers=after.headers())
    metered.rows("after/", 1)

    def agreed() -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        (account,) = metered.deployment.flushed_rows(ACCOUNT_SQL)
        charged = metered.deployment.flushed_rows(CHARGED_SQL)
        ours = int(account["attributed"]) - int(account["foreign"])
        return (account, charged) if 0 < ours == number(charged, "gpu") else None

    account, charged = eventually(agreed, "what was charged is what was attributed")
    times = {name: int(value) for name, value in account.items()}
    assert times["lost"] == times["unattributed"] == 0
    assert times["busy"] == times["attributed"]
    assert times["capacity"] == times["busy"] + times["idle"]
    assert times["preemptions"] > 0
    assert {row["ended"] for row in charged} == {"ok", "cut"}
    assert {row["certain"] for row in charged} == {"exact"}
    assert all(int(row["corrected"]) >= 1 for row in charged)
    assert min(int(row["kv"]) for row in charged if row["ended"] == "ok") > 0
    assert number(charged, "queue") > 0
    assert len(charged) == len(rows) + 1
    print(json.dumps(times))  # noqa: T201 the figures of this run, for docs/gpu-time.md


async def test_tokens_of_what_completed_agree_with_the_scheduler(metered: Governed, vllm_control: VllmControl) -> None:
    assert vllm_control.launch.telemetry is not None
    engine = told(vllm_control.launch.telemetry)
    rows = metered.deployment.flushed_rows(COMPLETED_SQL)
    alone = [row for row in rows if engine[row["request_id"]].reasons["finished"] == 1]
    assert len(alone) > REQUESTS // 3
    assert [row for row in alone if engine[row["request_id"]].differs_from(row)] == []
    assert number(alone, "cached_input_tokens") > 0
    assert [row for row in rows if engine[row["request_id"]].output_tokens != int(row["output_tokens"])] == []


def test_what_scheduler_and_front_end_counted_is_what_was_charged(metered: Governed) -> None:
    """A difference shows once nothing more is heard of a request for a while."""
    time.sleep(SETTLES_US / 1e6 + 5)
    page = metered.deployment.page(f"{metered.deployment.url}/metrics").decode()
    claimed, drift = (
        [line for line in page.splitlines() if line.startswith(name) and f'"{RUNTIME}"' in line]
        for name in ("bursar_accelerator_us_total{", "bursar_token_drift_total{")
    )
    assert any('"claimed"' in line for line in claimed), page
    assert drift == []


async def _mixed(governed: Governed, episode: Episode) -> None:
    """Whole, streamed and several answers at once, and clients that leave early or late."""
    random, seats = Random(SEED), asyncio.Semaphore(AT_ONCE)
    async with governed.client() as client, asyncio.TaskGroup() as group:
        for place in range(REQUESTS):
            group.create_task(_one(client, episode, seats, place % 4, random.random()))


async def _one(client: AsyncOpenAI, episode: Episode, seats: asyncio.Semaphore, kind: int, chance: float) -> None:
    body = asked(f"{HEAD * (1 + int(chance * 3))} Shelf {chance:.2f}?", 20 + int(chance * 150))
    async with seats:
        if kind == 0:
            await client.chat.completions.create(**body, extra_headers=episode.headers())
        elif kind == 1:
            stream = await client.chat.completions.create(**body, stream=True, extra_headers=episode.headers())
            assert [chunk async for chunk in stream]
        elif kind == 2:
            headers = episode.headers(choices=2)
            answer = await client.chat.completions.create(**body, n=2, temperature=1.0, extra_headers=headers)
            assert len(answer.choices) == 2
        else:
            await leave_after(client, 1 + int(chance * 8), body, episode.headers())
