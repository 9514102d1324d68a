"""A journal without room for more: what is open can still be settled, whatever else happens until then."""

from pathlib import Path

import orjson
import pytest

from gateway import flow
from gateway.admission import Admitted
from gateway.errors import Refusal
from gateway.flow import Outcome
from gateway.governance import Governance
from gateway.live import Live
from gateway.metering import Observed
from gateway.sweep import sweep
from ledger.recovery import snapshot, snapshot_bytes
from runtime.openai.usage import Report
from tests.gateway.one_worker import US, OneWorker, admitted, ask
from tests.gateway.test_sweep import call_of

MIB = 1 << 20
OPEN = 50
TTL_S = 60


async def full(tmp_path: Path) -> tuple[OneWorker, Governance, list[Admitted]]:
    """A worker with open holds whose journal admits nothing more."""
    sections = {"ledger": {"segment_bytes": MIB, "journal_bytes_max": 2 * MIB}, "book": {"hold_ttl_s": TTL_S}}
    worker = OneWorker(tmp_path, sections=sections)
    of = await worker.open()
    held = [await admitted(of) for _ in range(OPEN)]
    while of.has_room():
        result = await flow.admit(of, ask(of))
        if isinstance(result, Admitted):
            flow.void(of, result)
    return worker, of, held


def all_settled(of: Governance, held: list[Admitted]) -> None:
    for each in held:
        flow.settle(of, each, Outcome(Observed(sent=True, is_complete=True, report=Report(40, 0, 7, 0)), "ok", 200))
    assert not of.book.holds


async def test_requests_that_are_refused_leave_the_room_of_what_is_open(tmp_path: Path) -> None:
    worker, of, held = await full(tmp_path)
    for number in range(200):
        tools = tuple(f"tool-{number}-{index}-{'x' * 40}" for index in range(64))
        assert isinstance(await flow.admit(of, ask(of, tools=tools)), Refusal)
    all_settled(of, held)
    assert len([row for row in worker.records("usage") if row["status"] == "ok"]) == OPEN
    await worker.close()


async def test_renewals_leave_the_room_of_what_is_open(tmp_path: Path) -> None:
    worker, of, held = await full(tmp_path)
    live = Live(100)
    for each in held:
        live.calls.add(call_of(each.hold))
    for _ in range(400):
        worker.now_us += (TTL_S // 3 + 1) * US
        sweep(of, live)
    assert len(of.book.holds) == OPEN
    live.calls.clear()
    all_settled(of, held)
    await worker.close()


@pytest.mark.parametrize("size_bytes", [MIB, 40 * MIB])
async def test_no_room_is_counted_on_in_a_segment_that_a_snapshot_would_fill(tmp_path: Path, size_bytes: int) -> None:
    worker = OneWorker(tmp_path, sections={"ledger": {"segment_bytes": MIB, "journal_bytes_max": 4 * MIB}})
    of = await worker.open()
    of.journal.sync()
    assert of.journal.room_for(100)
    of.journal.expect_snapshot(size_bytes)
    rest = MIB // (8 << 10)
    assert not of.journal.room_for(rest)
    await worker.close()


async def test_the_size_of_a_snapshot_is_known_before_it_is_made(tmp_path: Path) -> None:
    worker = OneWorker(tmp_path)
    of = await worker.open()
    for _ in range(20):
        await admitted(of)
    counters = of.book.counters(of.now_us() // US)
    made_bytes = len(orjson.dumps(snapshot(of.book), default=list))
    assert made_bytes < snapshot_bytes(counters, len(of.book.holds)) < 4 * made_bytes
    assert snapshot_bytes([], 0) == 0
    await worker.close()
