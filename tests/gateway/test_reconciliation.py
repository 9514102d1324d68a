"""Reconciliation of a live worker: what drifts is announced once and mended once, and a runtime only when it rests."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway import flow, reconciliation
from gateway.adjustments import Adjustments
from gateway.controls import Controls
from gateway.flow import Outcome
from gateway.governance import Governance
from gateway.keys import KeyStore
from gateway.metering import Observed
from gateway.reconciliation import NotComparable, Reconciliation, Result
from ledger.client import LedgerUnavailable, open_ledger, running
from ledger.reconcile import Totals
from runtime.openai.usage import Report
from runtime.port import RuntimeSpec
from tests.gateway.one_worker import US, OneWorker, admitted, budget

BUDGETS = [budget("tokens", 10_000), budget("cost", 10**15, "total", "list_cost_nusd")]
RUNTIME = {"fake": RuntimeSpec("fake", "http://127.0.0.1:9")}


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[OneWorker]:
    worker = OneWorker(tmp_path, sections={"budgets": BUDGETS})
    yield worker
    await worker.close()


@contextmanager
def comparing(worker: OneWorker, of: Governance, published: list[dict[str, Any]]) -> Iterator[Reconciliation]:
    """A reconciliation over this worker, and the ledger process of its home."""
    controls = Controls(of.book, of.journal, KeyStore(worker.home.keys), of.now_us)
    adjusting = Adjustments(of.book, of.journal, of.record_usage, controls)
    find = partial(running, worker.home.path)
    with open_ledger(worker.home.path, f"chdb://{worker.home.ledger}/store"):
        yield Reconciliation(of.book, of.journal, of.now_us, controls, adjusting, find, published.append)


async def settled(of: Governance) -> None:
    seen = Observed(sent=True, is_complete=True, report=Report(40, 0, 10, 0))
    flow.settle(of, await admitted(of), Outcome(seen, "ok", 200))


async def run(compare: Reconciliation, totals: list[Totals], **options: bool) -> Result:
    """Compare, with a runtime that answers these totals one after another and then the last of them again."""

    async def sample(spec: RuntimeSpec) -> Totals:
        return totals.pop(0) if len(totals) > 1 else totals[0]

    chosen = {"mend": False, "rebase": False, **options}
    return await compare.run(RUNTIME if totals else {}, sample, "ann", mend=chosen["mend"], rebase=chosen["rebase"])


async def test_a_live_counter_is_mended_once_by_whoever_asks_first(worker: OneWorker) -> None:
    of = await worker.open()
    for _ in range(3):
        await settled(of)
    published: list[dict[str, Any]] = []
    with comparing(worker, of, published) as compare:
        assert (await run(compare, [])).drifted == 0
        cost = next(each for each in of.book.counters(of.now_us() // US) if each.budget.id == "cost")
        before, limit = cost.spent, cost.limit
        cost.spent -= 7
        cost.cell.spent -= 7
        seen = await run(compare, [])
        assert [each["drift"] for each in seen.drifts] == [-7]
        assert compare.drift["counter", "list_cost_nusd"] == 7
        assert [(each["name"], each["value"]) for each in published] == [("drift", -7)]
        assert cost.spent == before - 7, "to look changes nothing"
        both = await asyncio.gather(run(compare, [], mend=True), run(compare, [], mend=True))
        assert sorted(each.mended for each in both) == [0, 1]
        assert (cost.spent, cost.limit) == (before, limit)
        assert compare.drift["counter", "list_cost_nusd"] == 0
        cost.spent += 9
        cost.cell.spent += 9
        assert (await run(compare, [], mend=True)).mended == 1
        assert cost.spent == before + 9, "the higher stands: nothing is refunded"
        assert (await run(compare, [])).drifted == 0
    assert [record["actor"] for record in worker.records("control") if record["action"] == "adjusted"] == ["ann", "ann"]


async def test_a_runtime_is_compared_at_rest_and_since_its_baseline(worker: OneWorker) -> None:
    of = await worker.open()
    with comparing(worker, of, []) as compare:
        first = await run(compare, [Totals(100, 10, 0)])
        assert "no baseline" in first.not_compared[0]
        await settled(of)
        second = await run(compare, [Totals(140, 20, 0)])
        assert (second.not_compared, second.drifted) == ((), 0)
        assert "not at rest" in (await run(compare, [Totals(n, n, n) for n in range(900, 910)])).not_compared[0]
        waiting = await admitted(of)
        assert "in flight" in (await run(compare, [Totals(140, 20, 0)])).not_compared[0]
        flow.void(of, waiting)
        assert "started again" in (await run(compare, [Totals(3, 0, 0)])).not_compared[0]
        assert (await run(compare, [Totals(3, 0, 0)])).not_compared == ()
        drifted = await run(compare, [Totals(8, 1, 0)], mend=True)
        assert ([each["drift"] for each in drifted.drifts], drifted.mended) == ([5, 1], 0)
        assert (await run(compare, [Totals(8, 1, 0)], rebase=True)).drifted == 2
        assert (await run(compare, [Totals(8, 1, 0)])).drifted == 0


async def test_a_runtime_is_not_compared_where_other_gateways_may_use_it(worker: OneWorker) -> None:
    worker.sections["book"] = {"url": "redis://127.0.0.1:9"}
    of = await worker.open()
    with comparing(worker, of, []) as compare:
        for _ in range(2):
            found = await run(compare, [Totals(100, 10, 0)])
            assert (found.drifted, len(found.not_compared)) == (0, 1)
            assert "other gateways of the shared book" in found.not_compared[0]


async def test_a_runtime_that_cannot_be_asked_says_why() -> None:
    with pytest.raises(NotComparable, match="cannot be read"):
        await reconciliation.sample(RUNTIME["fake"])


async def test_without_a_ledger_process_nothing_is_compared(worker: OneWorker) -> None:
    of = await worker.open()
    controls = Controls(of.book, of.journal, KeyStore(worker.home.keys), of.now_us)
    adjusting = Adjustments(of.book, of.journal, of.record_usage, controls)
    compare = Reconciliation(of.book, of.journal, of.now_us, controls, adjusting, lambda: None)
    with pytest.raises(LedgerUnavailable, match="bursar up"):
        await run(compare, [])
