"""A bundle that an OPA begins to serve by itself is on record as a reloaded one is: once, with the one before."""

from pathlib import Path
from typing import Any

from gateway.controls import Controls
from gateway.governance import Governance
from gateway.keys import KeyStore
from gateway.loadings import POLL, Loadings
from ledger.journal import JournalFull
from policy.opa import OpaEngine
from tests.fake_opa import FakeOpa, answers, said
from tests.gateway.one_worker import OneWorker

A, B = "sha256:a", "sha256:b"


def serves(fake: FakeOpa, revision: str) -> None:
    fake.reply = answers(said(provenance={"bundles": {"bursar": {"revision": revision}}}))


class Poller:
    """A worker that an OPA decides for; `noticed` is what it writes on record when it has polled."""

    def __init__(self, fake: FakeOpa, worker: OneWorker, of: Governance, controls: Controls) -> None:
        self.fake = fake
        self.worker = worker
        self.engine = of.decider.engine
        self.loadings = Loadings(of, controls)

    async def noticed(self, revision: str) -> list[tuple[str, str, str]]:
        serves(self.fake, revision)
        assert isinstance(self.engine, OpaEngine)
        await self.engine.poll()
        self.loadings.polled()
        return self.rows()

    def rows(self) -> list[tuple[str, str, str]]:
        loaded = [row for row in self.worker.records("control") if row["action"] == "policy_loaded"]
        assert all(row["digest"] == row["subject"] for row in loaded)
        return [(row["actor"], row["subject"], row["detail"]) for row in loaded]


async def opened(fake: FakeOpa, worker: OneWorker, kind: type[Controls] = Controls) -> Poller:
    of = await worker.open()
    return Poller(fake, worker, of, kind(of.book, of.journal, KeyStore(worker.home.keys), of.now_us))


def worker_of(folder: Path, fake: FakeOpa) -> OneWorker:
    return OneWorker(folder, sections={"policy": {"url": fake.url, "timeout_ms": 5_000}})


async def test_each_bundle_that_a_poll_finds_is_one_row_that_names_the_one_before(tmp_path: Path) -> None:
    async with FakeOpa() as fake:
        serves(fake, A)
        worker = worker_of(tmp_path, fake)
        poller = await opened(fake, worker)
        try:
            assert await poller.noticed(A) == []  # what it began with
            assert await poller.noticed(B) == [(POLL, B, A)]
            assert await poller.noticed(B) == [(POLL, B, A)]
            assert await poller.noticed(A) == [(POLL, B, A), (POLL, A, B)]
            poller.loadings.record("somebody")  # a reload of the same
            assert len(poller.rows()) == 2
        finally:
            await worker.close()


async def test_a_server_that_was_away_at_the_start_is_on_record_with_its_first_bundle(tmp_path: Path) -> None:
    async with FakeOpa(answers({}, 502)) as fake:
        worker = worker_of(tmp_path, fake)
        poller = await opened(fake, worker)
        try:
            poller.loadings.polled()
            assert poller.rows() == []
            assert await poller.noticed(A) == [(POLL, A, "")]
        finally:
            await worker.close()


async def test_a_row_that_the_journal_did_not_take_is_written_when_it_does(tmp_path: Path) -> None:
    class FullOnce(Controls):
        is_full = True

        def record(self, *args: Any, **more: Any) -> None:
            if self.is_full:
                self.is_full = False
                raise JournalFull("no room")
            super().record(*args, **more)

    async with FakeOpa() as fake:
        serves(fake, A)
        worker = worker_of(tmp_path, fake)
        poller = await opened(fake, worker, FullOnce)
        try:
            assert await poller.noticed(B) == []
            assert await poller.noticed(B) == [(POLL, B, A)]
        finally:
            await worker.close()
