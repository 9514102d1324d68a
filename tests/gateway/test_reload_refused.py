"""A reload that cannot be applied leaves what serves, and nothing that was opened for it."""

import errno
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from domain.ids import uuid7
from gateway.engines import Deciding
from gateway.governance import Governance
from gateway.worker import Worker
from ledger.journal import JournalFull
from policy.child import Child
from policy.port import BundleError
from tests.gateway.deployment import MIB, deploy
from tests.gateway.one_worker import ENVIRON, OneWorker


class Second:
    """Has no objection, and a disk that takes nothing."""

    def __init__(self, fault: Exception) -> None:
        self.fault = fault

    async def held(self, *_: Any) -> None:
        """Nothing is held."""

    async def applied(self, *_: Any) -> None:
        raise self.fault


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[OneWorker]:
    worker = OneWorker(tmp_path)
    yield worker
    await worker.close()


async def reloading(one: OneWorker, monkeypatch: pytest.MonkeyPatch) -> tuple[Worker, Governance, list[Deciding]]:
    """A worker whose bundle on the disk is another one now, and the engines that it opens."""
    of = await one.open()
    worker = Worker(one.home, one.loaded, {}, ENVIRON)
    worker.clients, worker.engines = one.clients, one.engines
    opened: list[Deciding] = []
    before = worker.engines.open

    async def noted(*given: Any) -> Deciding:
        opened.append(await before(*given))
        return opened[-1]

    monkeypatch.setattr(worker.engines, "open", noted)
    deploy(one.folder, "http://127.0.0.1:9")
    edited = next(one.folder.rglob("admission.rego"))
    edited.write_text(edited.read_text() + "\nanother_revision := 1\n")
    return worker, of, opened


async def test_a_disk_that_is_full_says_so_and_the_new_engine_is_ended(
    one: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, of, opened = await reloading(one, monkeypatch)
    serving = of.decider.engine
    second: Any = Second(OSError(errno.ENOSPC, "No space left on device"))
    said = await worker.reload(of, None, second, None)  # type: ignore[arg-type]
    assert said == {"applied": False, "problems": ["[Errno 28] No space left on device"]}
    assert of.decider.engine is serving
    [(engine, _)] = opened
    assert engine is not serving
    assert engine._child.process.returncode is not None  # type: ignore[attr-defined]


async def test_a_journal_that_is_full_is_raised_and_the_new_engine_is_ended(
    one: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, of, opened = await reloading(one, monkeypatch)
    second: Any = Second(JournalFull("no room"))
    with pytest.raises(JournalFull, match="no room"):
        await worker.reload(of, None, second, None)  # type: ignore[arg-type]
    [(engine, _)] = opened
    assert engine._child.process.returncode is not None  # type: ignore[attr-defined]


async def test_without_room_to_record_it_nothing_of_a_reload_is_applied(
    one: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.sections["ledger"] = {"segment_bytes": MIB, "journal_bytes_max": 2 * MIB}
    worker, of, opened = await reloading(one, monkeypatch)
    while of.has_room():
        of.journal.append("signal", {"event_id": uuid7(), "ts_us": one.now_us, "detail": "x" * 10_000})
    serving, records = of.decider.engine, len(one.records("control"))
    with pytest.raises(JournalFull, match="no room to record a reload"):
        await worker.reload(of, None, Second(AssertionError()), None)  # type: ignore[arg-type]
    assert (of.decider.engine, worker.loaded, len(one.records("control"))) == (serving, one.loaded, records)
    [(engine, _)] = opened
    assert engine._child.process.returncode is not None  # type: ignore[attr-defined]


async def test_where_no_process_can_be_had_the_bundle_that_serves_stays(
    one: OneWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, of, opened = await reloading(one, monkeypatch)
    serving = of.decider.engine

    def none_left(*_: Any, **__: Any) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr("policy.child.subprocess.Popen", none_left)
    said = await worker.reload(of, None, Second(AssertionError()), None)  # type: ignore[arg-type]
    assert "no process can be started" in said["problems"][0]
    assert (of.decider.engine, opened) == (serving, [])
    with pytest.raises(BundleError, match="no process can be started"):
        Child.start({}, "nowhere")
