"""Correction rows: in the journal before they count, once each, and the same after any restart."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from domain.amounts import Amounts
from domain.charges import Charge
from gateway import adjustments, flow
from gateway.adjustments import Adjustments
from gateway.controls import Controls
from gateway.flow import Outcome
from gateway.governance import Governance
from gateway.keys import KeyStore
from gateway.metering import Observed
from ledger.holds import Hold
from ledger.journal import JournalFull
from runtime.openai.usage import Report
from tests.gateway.one_worker import US, OneWorker, admitted, budget

BUDGETS = [
    budget("tokens", 10_000),
    budget("gpu", 10**12, "month", "gpu_us"),
    budget("cost", 10**15, "total", "list_cost_nusd"),
    budget("slots", 5, "total", "concurrency"),
]


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[OneWorker]:
    worker = OneWorker(tmp_path, sections={"budgets": BUDGETS})
    yield worker
    await worker.close()


def adjusting(worker: OneWorker, of: Governance) -> Adjustments:
    controls = Controls(of.book, of.journal, KeyStore(worker.home.keys), of.now_us)
    return Adjustments(of.book, of.journal, of.record_usage, controls, of.announce_crossings)


def spent(of: Governance) -> dict[str, int]:
    return {counter.budget.id: counter.spent for counter in of.book.counters(of.now_us() // US)}


async def settled(worker: OneWorker, of: Governance) -> dict[str, Any]:
    """The usage row of one request of 40 input tokens and 10 of output."""
    seen = Observed(sent=True, is_complete=True, report=Report(40, 0, 10, 0))
    flow.settle(of, await admitted(of), Outcome(seen, "ok", 200))
    return worker.records("usage")[-1]


async def test_a_difference_reaches_the_row_and_every_budget_that_was_charged(worker: OneWorker) -> None:
    of = await worker.open()
    original = await settled(worker, of)
    before = spent(of)
    difference = Amounts(tokens=-3, output_tokens=-3, gpu_us=1_234, list_cost_nusd=-45)
    row = adjustments.of_request(original, difference, of.now_us())
    assert adjusting(worker, of).post([row], reason="attribution", actor="ann") == 1
    posted = worker.records("usage")[-1]
    assert (posted["status"], posted["adjusts"]) == ("adjusted", original["event_id"])
    assert (posted["request_id"], posted["team"]) == (original["request_id"], original["team"])
    assert posted["event_id"] != original["event_id"]
    assert (posted["output_tokens"], posted["gpu_us"], posted["list_cost_nusd"]) == (-3, 1_234, -45)
    assert "input_tokens" not in posted
    assert "hold_id" not in posted
    assert {charge[0]: charge[4] for charge in posted["charges"]} == {"tokens": -3, "gpu": 1_234, "cost": -45}
    change = {"tokens": -3, "gpu": 1_234, "cost": -45, "slots": 0}
    assert spent(of) == {name: amount + change[name] for name, amount in before.items()}


async def test_a_threshold_that_a_correction_crosses_is_announced_once(worker: OneWorker) -> None:
    of = await worker.open()
    original = await settled(worker, of)
    for tokens in (9_000, 1, 2_000):
        row = adjustments.of_request(original, Amounts(tokens=tokens), of.now_us())
        adjusting(worker, of).post([row], reason="attribution", actor="ann")
    signals = [(row["subject"], row["level"]) for row in worker.records("signal") if row["name"] == "budget_threshold"]
    assert signals == [("tokens", "warn"), ("tokens", "exhausted")]


async def test_who_wanted_it_and_why_is_recorded(worker: OneWorker) -> None:
    of = await worker.open()
    row = adjustments.of_request(await settled(worker, of), Amounts(gpu_us=5), of.now_us())
    adjusting(worker, of).post([row], reason="attribution", actor="ann")
    control = worker.records("control")[-1]
    assert (control["action"], control["actor"], control["subject"]) == ("adjusted", "ann", row["event_id"])
    assert control["detail"] == {"reason": "attribution", "rows": 1, "last_event_id": row["event_id"]}


async def test_the_same_correction_twice_counts_once(worker: OneWorker) -> None:
    of = await worker.open()
    original = await settled(worker, of)
    before = spent(of)["gpu"]
    posting = adjusting(worker, of)
    for expected in (1, 0):
        row = adjustments.of_request(original, Amounts(gpu_us=7), of.now_us(), event_id="window-1/request-1")
        assert posting.post([row], reason="attribution", actor="loop") == expected
    assert spent(of)["gpu"] == before + 7
    assert len([row for row in worker.records("usage") if row["status"] == "adjusted"]) == 1
    assert len([row for row in worker.records("control") if row["action"] == "adjusted"]) == 1


async def test_corrections_stand_after_a_restart(worker: OneWorker) -> None:
    of = await worker.open()
    original = await settled(worker, of)
    charge = Charge(*original["charges"][0])
    rows = [
        adjustments.of_request(original, Amounts(tokens=-3, output_tokens=-3, gpu_us=99), of.now_us()),
        adjustments.of_counters([charge._replace(amount=11)], of.now_us()),
        adjustments.of_ledger([charge._replace(amount=1_000)], of.now_us()),
    ]
    adjusting(worker, of).post(rows, reason="reconcile", actor="ann")
    live = spent(of)
    assert live["tokens"] == 50 - 3 + 11, "what the ledger alone had missed changes no counter"
    await worker.close()
    again = await worker.open()
    assert spent(again) == live


async def test_a_correction_never_takes_the_room_of_what_is_open(worker: OneWorker) -> None:
    of = await worker.open()
    row = adjustments.of_request(await settled(worker, of), Amounts(gpu_us=7), of.now_us())
    before, seq = spent(of), of.journal.tail_seq
    posting = adjusting(worker, of)
    # More are open than all the room there is could settle.
    held = Hold("h", (), 0, 0, 0, {})
    of.book.holds.update({f"h{index}": held for index in range(100_000)})
    assert not of.has_room()
    with pytest.raises(JournalFull):
        posting.post([row], reason="attribution", actor="ann")
    assert (spent(of), of.journal.tail_seq) == (before, seq)
