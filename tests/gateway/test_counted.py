"""What goes wrong without a request failing is counted where an operator sees it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from gateway import flow
from gateway.engines import Deciding
from gateway.errors import POLICY_UNAVAILABLE, Refusal
from gateway.flow import Outcome
from gateway.governance import Governance
from gateway.metering import Observed
from gateway.tool_calls import ROWS_MAX
from gateway.webhooks import QUEUE_MAX
from observability import names
from observability.probes import WATCHED
from policy.checks.port import CheckFailed
from policy.checks.process import CheckProcess, CheckProcesses
from policy.embedded import EmbeddedEngine
from policy.opa import OpaEngine
from policy.risk import Tracker
from runtime.openai.usage import Report
from tests.fake_opa import FakeOpa, answers
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.one_worker import OneWorker, admitted, ask
from tests.gateway.test_full_journal import full
from tests.policy.scorings import scoring

ROW = {"request_id": "r1", "org": "acme", "team": "search", "app": "web", "served_model": "plain"}
BY_SCHEMA = {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}}
ANSWER = {"choices": [{"index": 0, "message": {"content": "{}"}, "finish_reason": "stop"}]}
NO_DECISION = 'package bursar.admission\n\nimport rego.v1\n\ndecision := {"allow": "perhaps"}\n'
OF_A_SHARED_BOOK = {
    *(names.BOOK_AWAY, names.BOOK_EXCHANGES, names.BOOK_FETCHES, names.BOOK_WAITING),
    names.RISK_SCORES_UNTOLD,
}

Begin = Callable[..., Any]


@pytest.fixture
async def begin(tmp_path: Path) -> AsyncIterator[Begin]:
    """Opens a worker with changed sections of the configuration, its engines watched as a gateway's are."""
    workers: list[OneWorker] = []

    async def begin(**sections: Any) -> tuple[OneWorker, Governance]:
        worker = OneWorker(tmp_path, sections=sections)
        workers.append(worker)
        of = await worker.open()
        worker.engines.watch(of.metrics)
        return worker, of

    yield begin
    for worker in workers:
        await worker.close()


def shown(of: Governance, name: str) -> float:
    """The one sample of a counter, as it is scraped."""
    (line,) = [
        line for line in generate_latest(of.metrics.registry).decode().splitlines() if line.startswith(f"{name} ")
    ]
    return float(line.rpartition(" ")[2])


def pid_of(of: Governance) -> int:
    assert isinstance(of.decider.engine, EmbeddedEngine)
    return of.decider.engine._child.process.pid


async def test_a_new_process_of_the_engine_is_counted_and_a_reload_forgets_none(begin: Begin) -> None:
    worker, of = await begin()
    os.kill(pid_of(of), signal.SIGKILL)
    await admitted(of)
    assert shown(of, names.POLICY_ENGINE_RESTARTS) == 1
    (worker.folder / "rego/bursar/changed.rego").write_text("package bursar.changed\n\nimport rego.v1\n\nx := 1\n")
    before = Deciding(of.decider.engine, None)
    opened = await worker.engines.open(worker.loaded, before)
    assert opened.engine is not before.engine
    worker.engines.serve(of.decider, opened)
    assert shown(of, names.POLICY_ENGINE_RESTARTS) == 1
    os.kill(pid_of(of), signal.SIGKILL)
    await admitted(of)
    assert shown(of, names.POLICY_ENGINE_RESTARTS) == 2
    assert shown(of, names.POLICY_INPUTS_REFUSED) == 0


async def test_each_evaluation_that_is_refused_for_its_input_is_counted(begin: Begin) -> None:
    _, of = await begin(policy={"timeout_ms": 200})
    os.kill(pid_of(of), signal.SIGSTOP)
    for asked in (1, 2, 3):
        refusal = await flow.admit(of, ask(of))
        assert isinstance(refusal, Refusal)
        assert refusal.kind is POLICY_UNAVAILABLE
        assert shown(of, names.POLICY_INPUTS_REFUSED) == asked
    await admitted(of, stream=True)
    assert shown(of, names.POLICY_INPUTS_REFUSED) == 3
    assert shown(of, names.POLICY_ENGINE_RESTARTS) == 1


async def test_an_earlier_decision_that_serves_while_opa_is_away_is_counted(begin: Begin) -> None:
    async with FakeOpa() as fake:
        policy = {"url": fake.url, "on_unavailable": "last_known_good:60", "timeout_ms": 10_000}
        _, of = await begin(policy=policy)
        assert not (await admitted(of)).decision.is_last_known_good
        fake.reply = answers({}, 503)
        assert isinstance(of.decider.engine, OpaEngine)
        assert shown(of, names.POLICY_AWAY) == 0
        await of.decider.engine.poll()
        assert (shown(of, names.POLICY_AWAY), shown(of, names.POLICY_BRIDGED)) == (1, 0)
        assert (await admitted(of)).decision.is_last_known_good
        assert shown(of, names.POLICY_BRIDGED) == 1
        assert isinstance(await flow.admit(of, ask(of, stream=True)), Refusal), "that was never decided"
        assert shown(of, names.POLICY_BRIDGED) == 1


async def test_a_shadow_that_decides_nothing_is_counted(begin: Begin) -> None:
    worker, of = await begin()
    rules = worker.folder / "shadow/bursar/admission/admission.rego"
    rules.parent.mkdir(parents=True)
    rules.write_text(NO_DECISION)
    worker.sections = {"policy": {"shadow": "embedded:shadow"}}
    opened = await worker.engines.open(worker.load(), Deciding(of.decider.engine, None))
    worker.engines.serve(of.decider, opened)
    assert shown(of, names.POLICY_SHADOW_FAILURES) == 0
    await admitted(of)
    async with asyncio.timeout(30):
        while shown(of, names.POLICY_SHADOW_FAILURES) == 0:  # noqa: ASYNC110 it counts and tells nobody
            await asyncio.sleep(0.01)
    assert shown(of, names.POLICY_SHADOW_FAILURES) == 1


async def test_rows_of_tool_calls_for_which_the_journal_has_no_room_are_counted(tmp_path: Path) -> None:
    worker, of, held = await full(tmp_path)
    asked = held[-1].ask
    tools = tuple(f"tool-{number}-{'x' * 40}" for number in range(ROWS_MAX))
    with_tools = held[-1]._replace(ask=asked._replace(intent=asked.intent._replace(tools=tools)))
    whole = Observed(sent=True, is_complete=True, report=Report(40, 0, 7, 0))
    flow.settle(of, with_tools, Outcome(whole, "ok", 200))
    written = len(worker.records("tool_call"))
    assert written < ROWS_MAX
    assert shown(of, names.TOOL_CALLS_DROPPED) == ROWS_MAX - written
    await worker.close()


async def test_sampled_answers_that_find_no_room_among_those_that_are_checked_are_counted(begin: Begin) -> None:
    _, of = await begin(quality={"sample": 1})
    sampler = of.noticing.sampler
    for number in range(20):
        collector = sampler.collector(f"r{number}", BY_SCHEMA, generates=True, offers_tools=False)
        assert collector is not None
        collector.whole(ANSWER)
        sampler.score(ROW, collector)
    await asyncio.sleep(0)
    assert shown(of, names.QUALITY_SKIPPED) == 4
    await of.noticing.close()


async def test_events_that_no_webhook_got_are_counted(begin: Begin) -> None:
    hooks = [{"id": hook, "url": f"http://127.0.0.1:9/{hook}", "events": ["overage"]} for hook in ("one", "two")]
    _, of = await begin(webhooks=hooks)
    for _ in range(QUEUE_MAX + 3):
        of.webhooks.publish({"name": "overage"})
    assert shown(of, names.WEBHOOK_EVENTS_DROPPED) == 2 * 3
    assert shown(of, names.WEBHOOK_EVENTS_FAILED) == 0
    of.webhooks.tallies["two"].failed = 5
    assert shown(of, names.WEBHOOK_EVENTS_FAILED) == 5


async def test_scopes_for_whose_risk_there_is_no_room_are_counted(begin: Begin) -> None:
    _, of = await begin()
    assert shown(of, names.RISK_SCOPES_DROPPED) == 0
    of.risks.tracker = Tracker(scoring(), (1, 1, 1))
    for team in ("one", "two", "three"):
        of.risks.tracker.observe("upstream_error", "acme", team, "web", "", of.now_us() // 1_000_000)
    assert shown(of, names.RISK_SCOPES_DROPPED) == 2 * 2


async def test_processes_of_checks_that_are_ended_or_found_dead_are_counted() -> None:
    texts, schemas = CheckProcess(10.0, ()), CheckProcess(0.3, ())
    processes = CheckProcesses(texts, schemas)
    await processes.find("secrets", {"texts": [["here", 1, "hello"]]})
    assert texts.pid is not None
    os.kill(texts.pid, signal.SIGKILL)
    with pytest.raises(CheckFailed, match="did not end within"):
        await processes.find("json_schema", {"texts": [["here", f'"{"a" * 40}!"']], "schema": {"pattern": "^(a+)+$"}})
    assert processes.ended == 1
    await processes.find("secrets", {"texts": [["here", 1, "hello"]]})
    assert processes.ended == 2
    await processes.close()


def test_a_gateway_shows_each_of_them_from_its_start(gateway: GatewayProcess) -> None:
    samples = {line.split(" ")[0] for line in gateway.client.get("/metrics").text.splitlines()}
    assert WATCHED.keys() - OF_A_SHARED_BOOK - samples == set()
