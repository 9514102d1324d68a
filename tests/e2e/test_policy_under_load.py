"""Policies change and engines die while requests come: none fails that need not, and none passes without a decision."""

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest

from policy.opa_build import build
from tests import opa_server
from tests.gateway import fake_runtime, gateway_process
from tests.gateway.deployment import KEY_ENV, deploy, tables
from tests.gateway.fake_runtime import FakeRuntime
from tests.gateway.gateway_process import GatewayProcess, write_bundle

CLIENTS = 16
NEW_APPS = 400
RULES = 1_000
RELOADS = 4
LAST_KNOWN_GOOD_S = 120
BODY = {"model": "plain", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
_BULK = """package bursar.bulk

import rego.v1

# Revision {revision}.
"""
_RULE = """admitted contains {number} if {{
	input.principal.team == "team{number}"
	input.intent.model == "sim-small"
	input.intent.run.depth <= {number}
}}

"""


class Answer(NamedTuple):
    """What a client saw of one request."""

    status: int
    code: str
    revision: str
    decision: str
    degraded: str
    is_new: bool


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeRuntime]:
    os.environ[KEY_ENV] = "runtime-secret"
    with fake_runtime.running() as fake:
        yield fake
    del os.environ[KEY_ENV]


def bulk(root: Path, revision: int) -> None:
    """A thousand rules beside those that decide, in another revision each time."""
    folder = root / "bursar" / "bulk"
    folder.mkdir(parents=True, exist_ok=True)
    rules = "".join(_RULE.format(number=number) for number in range(RULES))
    (folder / "bulk.rego").write_text(_BULK.format(revision=revision) + rules)


async def load(
    gateway: GatewayProcess, meanwhile: Callable[[], Awaitable[None]], *, with_new_inputs: bool
) -> list[Answer]:
    """What clients saw that asked one request after another until something was done.

    Where inputs are to be new, every twentieth request is of an app that has not asked before, while there are any.
    """
    answers: list[Answer] = []
    known = {"authorization": f"Bearer {gateway.key('free')}"}
    apps = [f"app{number}" for number in range(NEW_APPS if with_new_inputs else 0)]
    unused = [{"authorization": f"Bearer {gateway.key('free', app=app)}"} for app in apps]
    is_done = asyncio.Event()

    async def client(number: int, session: aiohttp.ClientSession) -> None:
        sent = 0
        while not is_done.is_set():
            sent += 1
            is_new = bool(unused) and sent % 20 == number % 20
            headers = unused.pop() if is_new else known
            async with session.post(f"{gateway.url}/v1/chat/completions", json=BODY, headers=headers) as response:
                said = await response.json()
                got = response.headers
                answers.append(
                    Answer(
                        response.status,
                        said.get("error", {}).get("code", ""),
                        got.get("x-bursar-policy", ""),
                        got.get("x-bursar-decision", ""),
                        got.get("x-bursar-degraded", ""),
                        is_new,
                    )
                )

    async with aiohttp.ClientSession() as session:
        clients = [asyncio.create_task(client(number, session)) for number in range(CLIENTS)]
        try:
            await meanwhile()
        finally:
            is_done.set()
        await asyncio.gather(*clients)
    return answers


def reload(gateway: GatewayProcess) -> str:
    """The revision in force after a reload."""
    response = gateway.admin.post("/admin/reload")
    assert response.status_code == 200, response.text
    return str(response.json()["policy_revision"])


async def test_a_thousand_rules_are_reloaded_again_and_again_and_no_request_fails(
    fake: FakeRuntime, tmp_path: Path
) -> None:
    config = deploy(tmp_path, fake.url, approvals={"loosening": False})
    bulk(tmp_path / "rego", 0)
    revisions: list[str] = []

    async def reloads(gateway: GatewayProcess) -> None:
        for number in range(1, RELOADS + 1):
            bulk(tmp_path / "rego", number)
            revisions.append(await asyncio.to_thread(reload, gateway))
            await asyncio.sleep(0.2)

    with gateway_process.running(tmp_path / "home", config) as gateway:
        answers = await load(gateway, lambda: reloads(gateway), with_new_inputs=False)
    assert Counter(answer.status for answer in answers) == {200: len(answers)}
    assert len(answers) > 100
    assert len(set(revisions)) == RELOADS
    assert {answer.revision for answer in answers} >= set(revisions)


async def test_a_bundle_that_cannot_serve_changes_nothing_under_load(fake: FakeRuntime, tmp_path: Path) -> None:
    config = deploy(tmp_path, fake.url)
    broken = tmp_path / "rego" / "bursar" / "admission" / "broken.rego"

    async def break_it(gateway: GatewayProcess) -> None:
        for text in ("package bursar.admission\nrule := {\n", "package bursar.admission\n\nr := http.send({})\n"):
            broken.write_text(text)
            response = await asyncio.to_thread(gateway.admin.post, "/admin/reload")
            assert response.status_code == 422
            assert "bursar/admission/broken.rego:" in response.text

    with gateway_process.running(tmp_path / "home", config) as gateway:
        answers = await load(gateway, lambda: break_it(gateway), with_new_inputs=False)
    assert {(answer.status, answer.revision) for answer in answers} == {(200, answers[0].revision)}


@pytest.mark.parametrize("last_known_good_s", [0, LAST_KNOWN_GOOD_S])
async def test_opa_is_killed_and_restarted_and_no_request_passes_without_a_decision(
    fake: FakeRuntime, tmp_path: Path, last_known_good_s: int
) -> None:
    write_bundle(tmp_path / "bundle", tables())
    file = tmp_path / "bundle.tar.gz"
    revision = build(tmp_path / "bundle", file, str(opa_server.binary())).revision
    phases: list[int] = []
    answers: list[Answer] = []

    with opa_server.OpaServer(paths=[file], are_bundles=True) as opa:
        on_unavailable = f"last_known_good:{last_known_good_s}" if last_known_good_s else "deny"
        policy = {"url": opa.url, "poll_s": 0.2, "on_unavailable": on_unavailable, "timeout_ms": 2_000}
        config = deploy(tmp_path, fake.url, policy=policy)

        async def kill_and_restart() -> None:
            for _ in range(2):
                await asyncio.sleep(1)
                await asyncio.to_thread(opa.kill)
                phases.append(len(answers))
                await asyncio.sleep(1.5)
                await asyncio.to_thread(opa.start)
                await asyncio.sleep(1.5)

        with gateway_process.running(tmp_path / "home", config) as gateway:
            answers += await load(gateway, kill_and_restart, with_new_inputs=True)
            gateway.stop()
            usage = gateway.records("usage")
            decisions = {row["decision_id"]: row for row in gateway.records("decision_inputs")}
    passed = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status != 200]
    bridged = [answer for answer in passed if "policy" in answer.degraded.split(",")]
    assert {(answer.status, answer.code) for answer in refused} == {(503, "policy_unavailable")}
    assert {(answer.revision, answer.decision in decisions) for answer in passed} == {(revision, True)}
    assert len(passed) > 100
    if last_known_good_s:
        assert bridged
        assert not any(answer.is_new for answer in bridged), "nothing was ever decided about a new input"
        assert refused
        assert all(answer.is_new for answer in refused), "what was decided before goes on"
    else:
        assert not bridged
        assert any(not answer.is_new for answer in refused), "nothing is decided while OPA is away"
    served = [row for row in usage if row["status"] == "ok"]
    assert len(served) == len(passed)
    assert all(row["decision_id"] in decisions and row["policy_revision"] == revision for row in served)
    assert sum("policy" in row.get("degraded", "").split(",") for row in served) == len(bridged)
