"""Where governance cannot be done, nothing is served: a policy that does not answer, a journal that is full."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from gateway.keys import KeyStore
from gateway.live import Live
from gateway.pseudonyms import Pseudonyms
from gateway.public import public_app
from tests.gateway import gateway_process
from tests.gateway.deployment import deploy, tables
from tests.gateway.fake_runtime import FakeRuntime, usage, whole
from tests.gateway.gateway_process import GatewayProcess, error_of, until, write_bundle
from tests.gateway.one_worker import OneWorker

MIB = 1 << 20


@pytest.fixture(scope="module")
def cramped(fake: FakeRuntime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with a journal of two small segments that no ledger process ships, and patience with busy clients."""
    folder = tmp_path_factory.mktemp("cramped")
    small = {"segment_bytes": MIB, "journal_bytes_max": 2 * MIB}
    limits = {"body_timeout_s": 30}
    config = deploy(folder, fake.url, ledger=small, limits=limits, approvals={"loosening": False})
    with gateway_process.running(folder / "home", config) as cramped:
        yield cramped


def test_a_decision_that_is_not_one_denies_and_does_not_replace_one_that_is(fake: FakeRuntime, tmp_path: Path) -> None:
    """A start takes the bundle that there is; a reload of one that decides nothing leaves the last good one."""
    config = deploy(tmp_path, fake.url, approvals={"loosening": False})
    broken = tables()
    broken["offers"]["plain"]["terms"]["ok"]["surprise"] = 1
    write_bundle(tmp_path / "rego", broken)
    with gateway_process.running(tmp_path / "home", config) as gateway:
        calls = len(fake.received)
        answer = gateway.chat()
        error = error_of(answer, 503, "policy_unavailable")
        assert "surprise" in error["message"]
        assert int(answer.headers["retry-after"]) >= 1
        row = gateway.ended(answer)
        assert (row["status"], row["http_status"], row["charges"]) == ("refused", 503, ())
        assert len(fake.received) == calls
        error_of(gateway.client.get("/v1/models", headers=gateway.headers("free")), 503, "policy_unavailable")
        write_bundle(tmp_path / "rego", tables())
        assert gateway.admin.post("/admin/reload").json()["applied"] is True
        assert gateway.chat().status_code == 200
        write_bundle(tmp_path / "rego", broken)
        said = gateway.admin.post("/admin/reload").json()
        [problem] = said["problems"]
        assert (said["applied"], "admission.rego:" in problem, "surprise" in problem) == (False, True, True)
        assert gateway.chat().status_code == 200


def test_a_full_journal_admits_nothing_more_and_loses_nothing(cramped: GatewayProcess, fake: FakeRuntime) -> None:
    """Refusals too stop being written then, so that they leave the room that settlements of open holds need."""
    headers = cramped.headers("free")
    before = len(fake.received)
    slow = {"steps": [6, whole(usage(1))]}
    with ThreadPoolExecutor(9) as pool:
        held = pool.submit(cramped.chat, headers=headers, script=slow)
        answers: list[httpx.Response] = []
        while sum(answer.status_code == 503 for answer in answers) < 2000:
            assert len(answers) < 8000
            answers += list(pool.map(lambda _: cramped.chat(headers=headers), range(200)))
        served = [held.result(), *(answer for answer in answers if answer.status_code == 200)]
    for answer in answers:
        if answer.status_code != 200:
            error_of(answer, 503, "governance_unavailable")
            assert int(answer.headers["retry-after"]) >= 1
            assert str(cramped.home) not in answer.text
    assert held.result().status_code == 200
    assert len(fake.received) - before == len(served)
    assert cramped.open_holds() == 0
    settled = [row["request_id"] for row in cramped.records("usage") if row["status"] == "ok"]
    assert {answer.headers["x-request-id"] for answer in served} <= set(settled)
    assert len(settled) == len(set(settled))
    until(lambda: cramped.chat(headers=headers).status_code == 503, "the last room to be taken")
    said = cramped.client.get("/readyz")
    assert (said.status_code, said.json()["journal_has_room"]) == (503, False)
    assert said.json()["journal_failed"] is False
    assert cramped.process.poll() is None


async def test_a_journal_that_failed_is_said_without_its_path(tmp_path: Path) -> None:
    worker = OneWorker(tmp_path)
    of = await worker.open()
    app = public_app(of, KeyStore(worker.home.keys), Live(1), Pseudonyms(bytes(32)), lambda: None)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
        before = await client.get("/readyz")
        assert (before.status_code, before.json()["journal_failed"]) == (200, False)
        of.journal.failure = f"{worker.home.journal}: No space left on device"
        failed = await client.get("/readyz")
        of.journal.failure = None
    assert (failed.status_code, failed.json()["journal_failed"]) == (503, True)
    assert str(worker.home.path) not in failed.text
    await worker.close()
