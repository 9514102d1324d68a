"""Every usage row of a worker is numbered within its org, however it ends, before and after a kill."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from domain.intent import Principal
from gateway import assembly, flow, sweep
from gateway.admission import Ask
from gateway.errors import Refusal
from gateway.flow import Outcome
from gateway.governance import Governance
from gateway.live import Live
from gateway.metering import Observed
from gateway.rows import identity
from ledger.verifier import verified_journal
from runtime.openai.usage import Report
from tests.gateway.one_worker import US, OneWorker, admitted, ask, budget

BUDGETS = [budget("day", 250)]


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[OneWorker]:
    worker = OneWorker(tmp_path, sections={"budgets": BUDGETS})
    yield worker
    await worker.close()


def ask_of(of: Governance, org: str) -> Ask:
    asked = ask(of)
    intent = asked.intent._replace(principal=Principal(org, "search", "web", "", "k1"))
    return asked._replace(intent=intent, row=identity(intent, ""))


async def served(of: Governance) -> None:
    """A request that is settled."""
    result = await admitted(of)
    report = Report(30, 0, 10, 0)
    flow.settle(of, result, Outcome(Observed(sent=True, is_complete=True, report=report), "ok", 200))


async def refused(of: Governance, org: str) -> None:
    """One that fits no more, or whose org has no such model."""
    asked = ask_of(of, org)
    result = await flow.admit(of, asked)
    assert isinstance(result, Refusal)
    flow.refuse(of, asked, result)


async def test_rows_are_numbered_within_their_org_however_they_end(worker: OneWorker) -> None:
    of = await worker.open()
    await served(of)
    await refused(of, "globex")
    await admitted(of)
    await admitted(of)
    await refused(of, "acme")
    await worker.close()
    of = await worker.open()
    worker.now_us += (of.hold_ttl_s + 1) * US
    sweep.expire(of, Live(8), worker.now_us)
    await refused(of, "globex")
    numbered = [(row["org"], row["status"], row["org_seq"]) for row in worker.records("usage")]
    assert numbered == [
        ("acme", "ok", 1),
        ("globex", "refused", 1),
        ("acme", "refused", 2),
        ("acme", "expired", 3),
        ("acme", "expired", 4),
        ("globex", "refused", 2),
    ]
    report = verified_journal(assembly.writer_directory(worker.home))
    assert (report.org_seqs, report.unnumbered_rows) == ({"acme": 4, "globex": 2}, 0)


async def test_the_row_that_a_caller_is_shown_has_the_number_that_the_ledger_has(worker: OneWorker) -> None:
    of = await worker.open()
    await served(of)
    (row,) = worker.records("usage")
    shown = of.recent.get(row["event_id"])
    assert shown is not None
    assert shown["org_seq"] == row["org_seq"] == 1
