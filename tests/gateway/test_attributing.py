"""Attributing: telemetry becomes corrections and samples, whatever becomes of folder, configuration and ledger."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from domain.ids import uuid7
from domain.tasks import end
from gateway.attributing import ACCOUNT_S_MAX, Attributing
from gateway.claims import Claim
from gateway.config_file import load
from gateway.controls import Controls
from gateway.governance import Governance
from gateway.keys import KeyStore
from gateway.runtime_samples import Lease
from runtime.telemetry.writer import TelemetryWriter
from tests.gateway.deployment import deploy, document
from tests.gateway.one_worker import ENVIRON, US, OneWorker, admitted
from tests.gateway.test_claims import adjusted, settle, spent

FACTS = {"engine": "sim 1", "model": "m", "block_size": 16, "num_blocks": 100, "accelerators": 1, "knobs": {}}


class Store:
    """A ledger whose samples are those of the journal; `is_away` while it cannot be asked."""

    def __init__(self, worker: OneWorker) -> None:
        self.worker = worker

    def flush(self) -> None:
        pass

    def rows(self, sql: str, **parameters: str) -> list[dict[str, Any]]:
        if "runtime_sample" not in sql:
            return []
        return [row for row in self.worker.records("runtime_sample") if row.get("sources")][-1:]


def runtimes(**settings: Any) -> list[dict[str, Any]]:
    """The runtimes of the deployment, of which `fake` has telemetry."""
    found: list[dict[str, Any]] = document("http://127.0.0.1:9")["runtimes"]
    found[0] |= {"telemetry": "told", "sample_interval_s": 1, "vllm": True, **settings}
    return found


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[OneWorker]:
    budget = {"id": "gpu", "owner": "o", "scope": {"org": "acme"}, "resource": "gpu_us", "limit": 10**12}
    sections = {"runtimes": runtimes(), "budgets": [{**budget, "window": "total"}]}
    worker = OneWorker(tmp_path, sections=sections)
    yield worker
    await worker.close()


def attributing(worker: OneWorker, of: Governance, *, has_ledger: bool = True) -> Attributing:
    controls = Controls(of.book, of.journal, KeyStore(worker.home.keys), of.now_us)
    store = Store(worker) if has_ledger else None
    find: Any = lambda: store  # noqa: E731
    return Attributing(worker.home, "gateway", of, controls, lambda: worker.loaded, find)


def engine(worker: OneWorker) -> TelemetryWriter:
    return TelemetryWriter(worker.folder / "told", "engine-0", FACTS, clock_us=lambda: worker.now_us)


def computed(
    worker: OneWorker, engine: TelemetryWriter, request_id: str, busy_us: int, reason: str = "finished"
) -> None:
    """One request that an engine computes alone, in one step that ends now."""
    worker.now_us += busy_us + 100
    engine.join(0, request_id, 40, 0, 3)
    engine.step(worker.now_us - busy_us, worker.now_us, 5, 1, 0, [(0, 40)])
    engine.leave(0, "finished", 10)


async def once(worker: OneWorker, part: Attributing, after_us: int = 0) -> None:
    worker.now_us += after_us
    await part.poll(worker.now_us)
    await part.sampled()


async def test_a_request_is_charged_what_the_engine_took_and_the_runtime_is_sampled(worker: OneWorker) -> None:
    of = await worker.open()
    part, told = attributing(worker, of), engine(worker)
    await once(worker, part)
    request_id = settle(of, await admitted(of))
    computed(worker, told, f"chatcmpl-{request_id}", 777)
    await once(worker, part)
    assert (spent(of), len(adjusted(worker))) == (777, 1)
    await once(worker, part, 2 * US)
    (sample,) = [row for row in worker.records("runtime_sample") if row["runtime"] == "fake"]
    account = {name: sample[name] for name in ("busy_us", "attributed_us", "in_flight_us", "kv_block_us", "steps")}
    assert account == {"busy_us": 777, "attributed_us": 777, "in_flight_us": 0, "kv_block_us": 5 * 777, "steps": 1}
    assert sample["state"] == "away", "nobody listens there, so its counters are not known"
    assert sample["idle_us"] == sample["wall_us"] - 777


async def test_a_runtime_without_telemetry_that_does_not_answer_has_no_row(worker: OneWorker) -> None:
    of = await worker.open()
    part = attributing(worker, of)
    await once(worker, part)
    await once(worker, part, 20 * US)
    assert {row["runtime"] for row in worker.records("runtime_sample")} == {"fake"}


async def test_samples_add_up_to_the_whole_over_a_restart(worker: OneWorker) -> None:
    of = await worker.open()
    part, told = attributing(worker, of), engine(worker)
    began_us = worker.now_us
    for busy_us in (100, 200):
        computed(worker, told, "somebody", busy_us)
        await once(worker, part, 2 * US)
    computed(worker, told, "somebody", 400)
    await part.poll(worker.now_us)  # read, and not sampled before the process dies
    part._lease.close()  # as the system does when a process dies
    await worker.close()
    of = await worker.open()
    part = attributing(worker, of)
    computed(worker, told, "somebody", 800)
    await once(worker, part)
    await once(worker, part, 2 * US)
    rows = [row for row in worker.records("runtime_sample") if row["runtime"] == "fake"]
    assert sum(row["busy_us"] for row in rows) == 1_500
    assert sum(row["attributed_us"] for row in rows) == sum(row["foreign_us"] for row in rows) == 1_500
    last_step_us = worker.now_us - 2 * US
    assert sum(row["wall_us"] for row in rows) == last_step_us - began_us


async def test_where_an_account_ended_is_waited_for_and_then_it_begins_anew(worker: OneWorker) -> None:
    of = await worker.open()
    part, told = attributing(worker, of, has_ledger=False), engine(worker)
    computed(worker, told, "somebody", 100)
    await once(worker, part)
    assert part.shown()["bursar_accelerator_us_total"] == {}
    await once(worker, part, int(ACCOUNT_S_MAX * US))
    computed(worker, told, "somebody", 300)
    await once(worker, part, 2 * US)
    assert part.shown()["bursar_accelerator_us_total"]["fake", "busy"] == 300


async def test_a_request_that_was_never_computed_is_charged_nothing_once_that_is_certain(worker: OneWorker) -> None:
    of = await worker.open()
    part, told = attributing(worker, of), engine(worker)
    await once(worker, part)
    settle(of, await admitted(of), "cut", is_complete=False, report=None)
    # Of an engine that has told of no request by Bursar's id yet nothing is known by its silence.
    for served in ("somebody", settle(of, await admitted(of)), "somebody"):
        computed(worker, told, served, 50)
        await once(worker, part)
    assert spent(of) == 50
    settle(of, await admitted(of), "cut", is_complete=False, report=None)
    charged = spent(of)
    await once(worker, part, US)
    assert spent(of) == charged > 50, "the engine may not have got to it yet"
    computed(worker, told, "somebody", 60)
    await once(worker, part)
    assert spent(of) == 50


async def test_where_telemetry_is_missing_the_charge_of_the_unheard_stays(worker: OneWorker) -> None:
    of = await worker.open()
    part, told = attributing(worker, of), engine(worker)
    computed(worker, told, settle(of, await admitted(of)), 50)
    await once(worker, part)
    settle(of, await admitted(of), "cut", is_complete=False, report=None)
    charged = spent(of)
    await once(worker, part)
    with (worker.folder / "told" / "engine-0.0.jsonl").open("ab") as file:
        file.write(b"garbage\n")
    computed(worker, told, "somebody", 60)
    await once(worker, part)
    assert spent(of) == charged
    assert part.shown()["bursar_telemetry_lost_total"] == {("fake", "garbage"): 1}


async def test_other_weights_count_from_the_reload_on_and_nothing_is_posted_twice(worker: OneWorker) -> None:
    of = await worker.open()
    part, told = attributing(worker, of), engine(worker)
    ids = [(await admitted(of)) for _ in range(2)]
    told.join(0, ids[0].ask.intent.request_id, 100, 0, 0)
    told.join(1, ids[1].ask.intent.request_id, 100, 0, 0)
    told.step(worker.now_us, worker.now_us + 1_000, 9, 2, 0, [(0, 100), (1, 100)])
    await once(worker, part)
    only_prefill = {"prefill_token_ns": 1, "decode_request_ns": 0, "decode_context_ps": 0}
    sections = {**worker.sections, "runtimes": runtimes(work=only_prefill)}
    worker.loaded = load(deploy(worker.folder, "http://127.0.0.1:9", **sections), ENVIRON)
    await once(worker, part)
    told.step(worker.now_us + 1_000, worker.now_us + 2_000, 9, 2, 0, [(1, 5)])
    for handle, each in enumerate(ids):
        told.leave(handle, "finished", 10)
        settle(of, each)
    await once(worker, part)
    totals = [row["gpu_us"] + 40 * 25 + 10 * 500 for row in adjusted(worker)]
    assert totals == [500, 1_500]


async def test_a_runtime_that_leaves_the_configuration_and_comes_back_posts_nothing_twice(worker: OneWorker) -> None:
    of = await worker.open()
    part, told = attributing(worker, of), engine(worker)
    computed(worker, told, settle(of, await admitted(of)), 50)
    await once(worker, part)
    with_telemetry = worker.loaded
    sections = {**worker.sections, "runtimes": document("http://127.0.0.1:9")["runtimes"]}
    worker.loaded = load(deploy(worker.folder, "http://127.0.0.1:9", **sections), ENVIRON)
    await once(worker, part)
    worker.loaded = with_telemetry
    await once(worker, part, US)
    computed(worker, told, settle(of, await admitted(of)), 70)
    await once(worker, part)
    assert len(adjusted(worker)) == 2
    assert spent(of) == 120


async def test_energy_is_estimated_from_the_watts_that_are_configured(worker: OneWorker) -> None:
    worker.sections["runtimes"] = runtimes(power_w=250)
    of = await worker.open()
    part = attributing(worker, of)
    computed(worker, engine(worker), settle(of, await admitted(of)), 1_000)
    await once(worker, part)
    await once(worker, part, 2 * US)
    (row,), sample = adjusted(worker), worker.records("runtime_sample")[-1]
    assert (row["energy_uj"], row["energy_source"]) == (250_000, "estimated")
    assert (sample["energy_uj"], sample["energy_source"], sample["nvml_busy_permille"]) == (250_000, "estimated", -1)


async def test_a_hold_sets_aside_more_than_the_estimate_where_that_is_asked_for(worker: OneWorker) -> None:
    worker.sections["runtimes"] = runtimes(hold_factor=3)
    of = await worker.open()
    call = await admitted(of)
    held = sum(counter.held for counter in of.book.counters(of.now_us() // US))
    assert held == 3 * (call.ask.intent.input_bound * 25 + call.hold.cap * 500) == call.hold.row["held_gpu_us"]
    settle(of, call)
    assert spent(of) == 40 * 25 + 10 * 500


async def test_one_gateway_of_a_home_writes_samples(worker: OneWorker, tmp_path: Path) -> None:
    of = await worker.open()
    part, told = attributing(worker, of), engine(worker)
    another = Lease(worker.home.run / "sampler.lock")
    assert another.is_ours()
    computed(worker, told, settle(of, await admitted(of)), 50)
    await once(worker, part)
    await once(worker, part, 2 * US)
    assert worker.records("runtime_sample") == []
    assert spent(of) == 50, "what is its own it posts all the same"
    another.close()
    computed(worker, told, "somebody", 70)
    await once(worker, part, 2 * US)
    assert [row["busy_us"] for row in worker.records("runtime_sample")] == [70], "the other wrote what was before"


async def test_a_runtime_that_cannot_be_followed_does_not_end_attribution_of_the_others(
    worker: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.sections["runtimes"] = [{**runtimes()[0], "id": "broken", "telemetry": "broken"}, *runtimes()]
    of = await worker.open()
    part, told = attributing(worker, of), engine(worker)
    await once(worker, part)
    asked = 0

    async def poll(now_us: int) -> list[Claim]:
        nonlocal asked
        asked += 1
        raise OverflowError

    engines = part._followed["broken"].engines
    assert engines is not None
    monkeypatch.setattr(engines, "poll", poll)
    with capture_logs() as logs:
        for _ in range(2):
            computed(worker, told, settle(of, await admitted(of)), 50)
            await once(worker, part, 2 * US)
    assert (spent(of), asked) == (100, 1)
    said = "telemetry is not followed now"
    assert [(each["event"], each["runtime"]) for each in logs if each["log_level"] == "error"] == [(said, "broken")]


async def test_a_sample_that_fails_is_said(worker: OneWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    of = await worker.open()
    part = attributing(worker, of)
    await once(worker, part)

    async def fail(*_: object, **__: object) -> None:
        raise OverflowError

    monkeypatch.setattr(part._followed["fake"].sampler, "sample", fail)
    with capture_logs() as logs:
        await once(worker, part, 2 * US)
    assert [(each["event"], each["runtime"]) for each in logs] == [("a sample failed", "fake")]


async def test_a_runtime_that_hangs_does_not_hold_up_the_samples_of_others(
    worker: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.sections["runtimes"] = [{**runtimes()[0], "id": "hangs", "telemetry": "hangs"}, *runtimes()]
    of = await worker.open()
    part = attributing(worker, of)
    await once(worker, part)
    monkeypatch.setattr(part._followed["hangs"].sampler, "sample", lambda *_, **__: asyncio.sleep(3_600))
    for samples in range(3):
        worker.now_us += 2 * US
        await part.poll(worker.now_us)
        async with asyncio.timeout(20):
            while len(worker.records("runtime_sample")) <= samples:  # noqa: ASYNC110 a journal has no event
                await asyncio.sleep(0.01)
    assert {row["runtime"] for row in worker.records("runtime_sample")} == {"fake"}
    for followed in part._followed.values():
        followed.close()


async def test_what_a_removed_runtime_told_last_is_posted(worker: OneWorker) -> None:
    of = await worker.open()
    part, told = attributing(worker, of), engine(worker)
    await once(worker, part)
    computed(worker, told, settle(of, await admitted(of)), 50)
    sections = {**worker.sections, "runtimes": document("http://127.0.0.1:9")["runtimes"]}
    worker.loaded = load(deploy(worker.folder, "http://127.0.0.1:9", **sections), ENVIRON)
    await once(worker, part)
    assert spent(of) == 50


async def test_closing_does_not_wait_for_ever_for_a_round_that_does_not_end(
    worker: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.attributing.CLOSE_S_MAX", 0.01)
    of = await worker.open()
    part = attributing(worker, of)
    monkeypatch.setattr(part.claims, "look_up", lambda: asyncio.sleep(3_600))
    running = asyncio.create_task(part.run())
    async with asyncio.timeout(20):
        while part._round is None:  # noqa: ASYNC110 nothing tells of it
            await asyncio.sleep(0.01)
        await end([running])
        await part.close()
    assert Lease(worker.home.run / "sampler.lock").is_ours()


async def test_drift_of_tokens_is_announced_once(worker: OneWorker) -> None:
    of = await worker.open()
    part, told = attributing(worker, of), engine(worker)
    told.join(0, settle(of, await admitted(of)), 40, 32, 0)
    told.step(worker.now_us, worker.now_us + 9, 1, 1, 0, [(0, 8)])
    told.leave(0, "finished", 10)
    for after_us in (0, 70 * US, 2 * US):
        await once(worker, part, after_us)
    (signal,) = [row for row in worker.records("signal") if row["name"] == "drift"]
    assert (signal["subject"], signal["value"], signal["detail"]["quantity"]) == ("fake", 32, "cached_input_tokens")


async def test_what_only_the_front_end_counted_otherwise_is_drift_too(worker: OneWorker) -> None:
    of = await worker.open()
    part, told = attributing(worker, of), engine(worker)
    front_end = TelemetryWriter(worker.folder / "told", "requests-0", FACTS, clock_us=lambda: worker.now_us)
    counted = {"prompt_tokens": 40, "cached_tokens": 0, "queued_us": 0, "prefill_us": 0, "decode_us": 0, "e2e_us": 0}
    for output_tokens in (10, 12):
        request_id = settle(of, await admitted(of))
        computed(worker, told, f"chatcmpl-{request_id}", 50)
        front_end.finished(request_id, "stop", output_tokens=output_tokens, preemptions=0, **counted)
    for after_us in (0, 70 * US):
        await once(worker, part, after_us)
    assert part.shown()["bursar_token_drift_total"] == {("fake", "output_tokens"): 2}


async def test_ending_posts_what_has_come_by_then(worker: OneWorker) -> None:
    of = await worker.open()
    part, told = attributing(worker, of), engine(worker)
    running = asyncio.create_task(part.run())
    await asyncio.sleep(0.4)
    computed(worker, told, settle(of, await admitted(of)), 50)
    await end([running])
    await part.close()
    assert spent(of) == 50
    (control,) = [row for row in worker.records("control") if row["action"] == "adjusted"]
    assert control["detail"]["rows"] == 1


async def test_a_backlog_leaves_the_event_loop_to_others(worker: OneWorker) -> None:
    of = await worker.open()
    part, told = attributing(worker, of), engine(worker)
    for number in range(5_000):
        told.join(0, uuid7(), 40, 0, 3)
        told.step(worker.now_us + number * 10, worker.now_us + number * 10 + 9, 5, 1, 0, [(0, 40)])
        told.leave(0, "finished", 1)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    await once(worker, part)
    other.cancel()
    assert part.shown()["bursar_accelerator_us_total"]["fake", "busy"] == 9 * 5_000
    assert turns > 50
