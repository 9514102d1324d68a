"""Assembly: a worker's book, journal and clients, opened from a home and opened again after a kill."""

import errno
import os
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from gateway import assembly, flow
from gateway.errors import RATE_LIMIT_EXCEEDED, Refusal
from gateway.flow import Outcome
from gateway.metering import Observed
from ledger import segments
from ledger.disk import SYSTEM
from ledger.journal import JournalFailed, JournalLocked
from ledger.records import CorruptJournal, Record
from ledger.segments import segment_paths
from runtime.openai.usage import Report
from tests.gateway.one_worker import ENVIRON, NOON_US, US, OneWorker, admitted, ask, budget

BUDGETS = [budget("day", 10_000), budget("minute", 250, "minute"), budget("slots", 3, "total", "concurrency")]


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[OneWorker]:
    worker = OneWorker(tmp_path, sections={"budgets": BUDGETS})
    yield worker
    await worker.close()


def spent_and_held(worker: OneWorker) -> dict[str, tuple[int, int]]:
    assert worker.opened is not None
    counters = worker.opened.book.counters(worker.now_us // US)
    return {counter.budget.id: (counter.spent, counter.held) for counter in counters}


async def test_a_new_home_gets_a_journal_of_its_own_and_keeps_it(worker: OneWorker) -> None:
    first = worker.open_book()
    assert first.ownerless == 0
    assert first.journal.writer.startswith("gateway-")
    await worker.close()
    assert worker.open_book().journal.writer == first.journal.writer


async def test_two_workers_never_write_one_journal(worker: OneWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "LOCK_WAIT_S", 0.1)
    worker.open_book()
    other = OneWorker(worker.folder, sections=worker.sections)
    with pytest.raises(JournalLocked):
        other.open_book()


async def test_a_journal_that_a_command_holds_for_a_moment_is_waited_for(worker: OneWorker) -> None:
    directory = worker.open_book().journal.directory
    await worker.close()
    held = SYSTEM.lock(directory)
    threading.Timer(0.2, SYSTEM.close, [held]).start()
    assert worker.open_book().journal.directory == directory


async def test_a_killed_worker_comes_back_with_what_it_spent_and_what_it_held(worker: OneWorker) -> None:
    of = await worker.open()
    settled, voided = await admitted(of), await admitted(of)
    flow.void(of, voided)
    report = Report(30, 0, 10, 0)
    flow.settle(of, settled, Outcome(Observed(sent=True, is_complete=True, report=report), "ok", 200))
    await admitted(of)
    before = spent_and_held(worker)
    assert before == {"day": (40, 100), "minute": (40, 100), "slots": (0, 1)}
    await worker.close()
    reborn = worker.open_book()
    assert reborn.ownerless == 1
    assert spent_and_held(worker) == before
    (hold,) = reborn.book.holds.values()
    assert hold.row["model"] == "plain"
    assert hold.row["held_tokens"] == 100


async def test_a_restart_does_not_make_room_that_was_taken(worker: OneWorker) -> None:
    of = await worker.open()
    await admitted(of)
    await admitted(of)
    await worker.close()
    reborn = await worker.open()
    refusal = await flow.admit(reborn, ask(reborn))
    assert isinstance(refusal, Refusal)
    assert refusal.kind is RATE_LIMIT_EXCEEDED
    worker.now_us += 60 * US
    await admitted(reborn)


async def test_a_damaged_journal_is_not_opened_as_if_it_were_empty(worker: OneWorker) -> None:
    of = await worker.open()
    for _ in range(2):
        await admitted(of)
    await worker.close()
    (path,) = segment_paths(assembly.writer_directory(worker.home))
    content = bytearray(path.read_bytes())
    content[content.index(b'"held_tokens":100') + 14] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptJournal):
        worker.open_book()


async def test_a_disk_that_does_not_give_the_journal_back_is_said_and_leaves_it_free(
    worker: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = await worker.open()
    await admitted(of)
    await worker.close()

    def unreadable(directory: Path) -> Iterator[Record]:
        yield next(segments.replay_from_snapshot(directory))
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(assembly, "replay_from_snapshot", unreadable)
        with pytest.raises(JournalFailed, match=r"gateway-.*: Input/output error; mend the disk, then start again"):
            worker.open_book()
    assert worker.open_book().ownerless == 1


async def test_every_distinct_decision_is_recorded_once_with_its_input(worker: OneWorker) -> None:
    of = await worker.open()
    one, other = await admitted(of), await admitted(of)
    assert one.decision.decision_id == other.decision.decision_id
    (record,) = worker.records("decision_inputs")
    assert record["decision_id"] == one.decision.decision_id
    assert record["input_digest"] == one.decision.input_digest
    assert record["allow"] is True
    assert '"team":"search"' in record["input"]


async def test_clients_whose_settings_did_not_change_go_on_over_a_reload(worker: OneWorker) -> None:
    await worker.open()
    loaded = worker.loaded
    runtimes = tuple(
        runtime.model_copy(update={"retries_max": 7}) if runtime.id == "brief" else runtime
        for runtime in loaded.config.runtimes
    )
    changed = replace(loaded, config=loaded.config.model_copy(update={"runtimes": runtimes}))
    clients = await assembly.open_clients(changed, {}, ENVIRON, worker.clients)
    kept = {name for name, client in clients.items() if client is worker.clients[name]}
    assert kept == worker.clients.keys() - {"brief"}
    assert clients["brief"].spec.retries_max == 7
    await clients["brief"].close()


async def test_the_metrics_show_open_holds_and_what_budgets_have_left(worker: OneWorker) -> None:
    of = await worker.open()
    of.metrics.allow(models=["plain"], teams=["search"], runtimes=["fake"], budgets=["day", "minute", "slots"])
    await admitted(of)
    shown = generate_latest(of.metrics.registry).decode()
    assert "bursar_holds_open 1.0" in shown
    assert 'bursar_budget_remaining{budget="day"} 9900.0' in shown


async def test_without_journal_and_ledger_a_book_begins_at_zero_under_a_new_name(worker: OneWorker) -> None:
    of = await worker.open()
    await admitted(of)
    await worker.close()
    old = assembly.writer_directory(worker.home)
    shutil.rmtree(old)
    opened = worker.open_book()
    assert opened.journal.writer != old.name
    assert opened.book.counters(NOON_US // US) == []
