"""The sweep: live holds are renewed in time, ownerless ones are charged once, and a broken journal does not end it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.governance import Governance
from gateway.live import Live, LiveCall
from gateway.repeats import Attempt, Name
from gateway.sweep import sweep, sweep_forever
from ledger.holds import Hold, State
from tests.gateway.one_worker import NOON_US, US, OneWorker, admitted, budget

TTL_S = 60
BUDGETS = [budget("day", 10_000), budget("slots", 5, "total", "concurrency"), budget("cost", 10**12, "month")]
BUDGETS[2]["resource"] = "list_cost_nusd"


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[OneWorker]:
    worker = OneWorker(tmp_path, sections={"budgets": BUDGETS, "book": {"hold_ttl_s": TTL_S}})
    yield worker
    await worker.close()


@dataclass
class Line:
    """A connection that carries one task and sends nothing."""

    task: asyncio.Task[None]
    call: LiveCall | None = None

    def take_body(self, bytes_max: int) -> bytes | None:
        return None

    def respond(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        return False


def call_of(hold: Hold, *, deadline_s: float = float("inf")) -> LiveCall:
    task = asyncio.current_task()
    assert task is not None
    return LiveCall(Line(task), deadline_s, hold)


def counters(of: Governance) -> dict[str, tuple[int, int]]:
    return {counter.budget.id: (counter.spent, counter.held) for counter in of.book.counters(of.now_us() // US)}


async def test_a_live_hold_is_renewed_once_a_third_of_its_time_has_passed(worker: OneWorker) -> None:
    of, live = await worker.open(), Live(10)
    hold = (await admitted(of)).hold
    live.calls.add(call_of(hold))
    renewals = []
    for after_s in (19.9, 20, 20.5, 40, 500):
        worker.now_us = NOON_US + int(after_s * US)
        sweep(of, live)
        renewals.append((hold.expires_at_us - NOON_US) / US)
    assert renewals == [60, 80, 80, 100, 560], "an owned hold is renewed late rather than expired"
    written = [record for record in worker.records("hold") if record["action"] == "renewed"]
    assert [record["expires_at_us"] for record in written] == [NOON_US + s * US for s in (80, 100, 560)]


async def test_an_ownerless_hold_is_charged_in_full_when_its_time_is_up_and_once(worker: OneWorker) -> None:
    of, live = await worker.open(), Live(10)
    hold = (await admitted(of)).hold
    held = counters(of)
    worker.now_us = NOON_US + TTL_S * US - 1
    sweep(of, live)
    assert counters(of) == held
    worker.now_us += 1
    sweep(of, live)
    sweep(of, live)
    assert hold.state is State.EXPIRED
    assert counters(of) == {"day": (100, 0), "slots": (0, 0), "cost": (held["cost"][1], 0)}
    (row,) = worker.records("usage")
    assert (row["status"], row["certainty"], row["hold_id"]) == ("expired", "at_most", hold.hold_id)
    assert (row["input_tokens"], row["output_tokens"]) == (40, 60)
    assert row["list_cost_nusd"] == held["cost"][1]
    assert {charge[0]: charge[4] for charge in row["charges"]} == {"day": 100, "slots": 0, "cost": held["cost"][1]}


async def test_holds_of_a_killed_worker_clear_after_a_restart_and_equal_the_ledger(worker: OneWorker) -> None:
    of = await worker.open()
    for _ in range(3):
        await admitted(of)
    await worker.close()
    worker.now_us += 30 * US
    reborn = await worker.open()
    assert counters(reborn)["slots"] == (0, 3)
    sweep(reborn, Live(10))
    assert counters(reborn)["slots"] == (0, 3)
    worker.now_us = NOON_US + TTL_S * US
    sweep(reborn, Live(10))
    sums = dict.fromkeys(("day", "slots", "cost"), 0)
    for row in worker.records("usage"):
        for charge in row["charges"]:
            sums[charge[0]] += charge[4]
    assert counters(reborn) == {name: (amount, 0) for name, amount in sums.items()}
    assert sums["day"] == 300


async def test_a_slot_that_expires_lets_in_who_waits_for_it(worker: OneWorker) -> None:
    of = await worker.open()
    await admitted(of)
    waiting = asyncio.create_task(of.waiting.wait(30))
    await asyncio.sleep(0)
    worker.now_us += TTL_S * US
    sweep(of, Live(10))
    await asyncio.wait_for(waiting, 1)
    assert len(of.waiting) == 0


async def test_an_answer_is_forgotten_in_time_though_nobody_asks_for_it(worker: OneWorker) -> None:
    of = await worker.open()
    name = Name("k1", "chat", b"key")
    attempt = of.repeats.begin(name, b"{}", "r", NOON_US)
    assert isinstance(attempt, Attempt)
    attempt.is_served = True
    of.repeats.end(attempt, NOON_US)
    worker.now_us = NOON_US + 3600 * US
    sweep(of, Live(10))
    assert isinstance(of.repeats.begin(name, b"{}", "r", NOON_US), Attempt)


async def test_a_sweep_that_cannot_write_stops_overdue_calls_all_the_same(worker: OneWorker) -> None:
    of, live = await worker.open(), Live(10)
    orphan = (await admitted(of)).hold
    owned = (await admitted(of)).hold
    held = counters(of)
    of.journal.close()
    worker.now_us += TTL_S * US
    sweeping = asyncio.create_task(sweep_forever(of, live))
    await asyncio.sleep(0)
    stuck = asyncio.create_task(asyncio.sleep(30))
    live.calls.add(LiveCall(Line(stuck), time.monotonic(), owned))
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(stuck, 5)
    await asyncio.sleep(0)
    assert not sweeping.done(), "the sweep goes on"
    assert orphan.state is State.OPEN, "a charge that cannot be recorded is not made"
    assert counters(of) == held
    sweeping.cancel()
    with suppress(asyncio.CancelledError):
        await sweeping


async def test_a_journal_that_failed_is_told_of_once_though_nothing_is_due(worker: OneWorker) -> None:
    of, live = await worker.open(), Live(10)
    of.journal.close()
    with capture_logs() as logs:
        sweeping = asyncio.create_task(sweep_forever(of, live))
        await asyncio.sleep(1.2)
        sweeping.cancel()
        with suppress(asyncio.CancelledError):
            await sweeping
    assert [entry["event"] for entry in logs] == ["nothing more is admitted"]
    assert "is closed" in logs[0]["reason"]
