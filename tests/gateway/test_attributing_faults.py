"""Attributing when Bursar itself fails, or when engines are not what is configured: it shows, and it goes on."""

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway.attributing import RETRY_S, Attributing
from gateway.scraping import Scraped
from observability import names
from runtime.telemetry.writer import TelemetryWriter
from runtime.vllm.sampling import VllmCounters
from tests.gateway.one_worker import US, OneWorker, admitted
from tests.gateway.test_attributing import FACTS, attributing, computed, engine, once, runtimes, worker
from tests.gateway.test_claims import adjusted, settle, spent

__all__ = ["worker"]


async def broken(part: Attributing, monkeypatch: pytest.MonkeyPatch, worker: OneWorker) -> None:
    """Let following the runtime fail once."""

    async def poll(now_us: int) -> Any:
        raise OverflowError

    engines = part._followed["fake"].engines
    assert engines is not None
    monkeypatch.setattr(engines, "poll", poll)
    await once(worker, part)


async def test_a_runtime_that_could_not_be_followed_shows_and_is_followed_again_without_posting_twice(
    worker: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = await worker.open()
    part, told = attributing(worker, of), engine(worker)
    computed(worker, told, settle(of, await admitted(of)), 50)
    await once(worker, part)
    assert f"{names.ATTRIBUTION_STOPPED} 0\n" in of.metrics.render().decode()
    await broken(part, monkeypatch, worker)
    assert f"{names.ATTRIBUTION_STOPPED} 1\n" in of.metrics.render().decode()
    settled_us = spent(of)
    computed(worker, told, settle(of, await admitted(of)), 60)
    estimated_us = spent(of) - settled_us
    call = await admitted(of)
    told.join(3, call.ask.intent.request_id, 40, 0, 0)
    told.step(worker.now_us, worker.now_us + 30, 5, 1, 0, [(3, 40)])
    await once(worker, part, (RETRY_S - 10) * US)
    assert part.stopped == 1, "not before its time"
    await once(worker, part, 20 * US)
    assert part.stopped == 0
    told.step(worker.now_us + 10, worker.now_us + 50, 5, 1, 0)
    told.leave(3, "finished", 10)
    worker.now_us += 50
    settle(of, call)
    computed(worker, told, settle(of, await admitted(of)), 80)
    await once(worker, part, 2 * US)
    assert spent(of) == 50 + estimated_us + 70 + 80, "what ended meanwhile keeps its estimate"
    assert len(adjusted(worker)) == 3
    await part.close()


async def test_a_request_with_an_answer_on_either_side_of_the_fault_is_charged_no_less_than_its_estimate(
    worker: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = await worker.open()
    part, told = attributing(worker, of), engine(worker)
    await once(worker, part)
    call = await admitted(of)
    await broken(part, monkeypatch, worker)
    computed(worker, told, call.ask.intent.request_id, 1000)
    await once(worker, part, (RETRY_S + 10) * US)
    computed(worker, told, call.ask.intent.request_id, 7)
    settle(of, call)
    estimated_us = spent(of)
    assert estimated_us > 1007
    await once(worker, part, 2 * US)
    assert spent(of) == estimated_us
    (correction,) = adjusted(worker)
    assert (correction.get("gpu_us", 0), correction["certainty"]) == (0, "at_least")
    await part.close()


async def test_foreign_time_is_sampled_once_over_a_fault(worker: OneWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    of = await worker.open()
    part, told = attributing(worker, of), engine(worker)
    await once(worker, part)
    computed(worker, told, "somebody", 500)
    for _ in range(2):
        await once(worker, part, 2 * US)
    await broken(part, monkeypatch, worker)
    await once(worker, part, (RETRY_S + 10) * US)
    for _ in range(2):
        await once(worker, part, 2 * US)
    rows = [row for row in worker.records("runtime_sample") if row["runtime"] == "fake"]
    assert sum(row.get("foreign_us", 0) for row in rows) == part.claims.tally("fake").foreign_us == 500
    await part.close()


async def test_attribution_that_ended_by_a_fault_shows_for_all_runtimes(
    worker: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = await worker.open()
    part = attributing(worker, of)
    await once(worker, part)

    async def post() -> None:
        raise OverflowError

    monkeypatch.setattr(part.claims, "post", post)
    with pytest.raises(OverflowError):
        async with asyncio.timeout(20):
            await part.run()
    assert part.stopped == len(part._followed) >= 1


@pytest.mark.parametrize(("configured", "level"), [({"gpus": 4}, "warning"), ({}, "info"), ({"gpus": 2}, None)])
async def test_other_accelerators_than_are_configured_are_said_once(
    worker: OneWorker, configured: dict[str, Any], level: str | None
) -> None:
    worker.sections["runtimes"] = runtimes(**configured)
    of = await worker.open()
    part = attributing(worker, of)
    TelemetryWriter(worker.folder / "told", "engine-0", FACTS | {"accelerators": 2}, clock_us=lambda: worker.now_us)
    with capture_logs() as logs:
        for _ in range(4):
            await once(worker, part, 2 * US)
    said = [each for each in logs if each["event"] == "accelerators"]
    assert [(each["log_level"], each["told"], each["runtime"]) for each in said] == [(level, 2, "fake")] * bool(level)
    await part.close()


async def test_telemetry_of_another_version_is_one_line_of_the_log(worker: OneWorker) -> None:
    of = await worker.open()
    part = attributing(worker, of)
    engine(worker)
    segment = worker.folder / "told" / "engine-0.0.jsonl"
    segment.write_text(segment.read_text().replace('["open",1,', '["open",2,', 1))
    with capture_logs() as logs:
        for _ in range(4):
            await once(worker, part, 2 * US)
    (said,) = [each for each in logs if each["event"] == "telemetry"]
    assert said["reason"] == "engine-0 tells in version 2, and this Bursar reads 1: install its plugin"
    await part.close()


async def test_a_row_has_the_idle_time_of_an_engine_beside_a_busy_one(
    worker: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scrape(_: str) -> Scraped:
        return Scraped(VllmCounters(0, 0, 0, 0, 0, running=1, waiting=0, kv_cache_usage=0.0), 0, 2)

    monkeypatch.setattr("gateway.runtime_samples.scrape", scrape)
    of = await worker.open()
    part, busy = attributing(worker, of), engine(worker)
    TelemetryWriter(worker.folder / "told", "engine-1", FACTS, clock_us=lambda: worker.now_us)
    busy.join(0, "somebody", 40, 0, 0)
    for _ in range(4):
        busy.step(worker.now_us, worker.now_us + 10 * US, 5, 1, 0)
        await once(worker, part, 10 * US)
    rows = [row for row in worker.records("runtime_sample") if row["runtime"] == "fake"][1:]
    expected = {"accelerators": 2, "wall_us": 10 * US, "capacity_us": 20 * US, "busy_us": 10 * US, "idle_us": 10 * US}
    assert len(rows) >= 2
    for row in rows:
        assert {name: row[name] for name in expected} == expected
    await part.close()
