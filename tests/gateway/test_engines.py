"""Engines are looked after as long as they serve, whatever goes wrong meanwhile."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gateway import engines
from gateway.engines import SAID_AGAIN_S, SAID_MAX, Deciding, Engines, Failures
from policy.decider import Decider, Failure
from policy.opa import OpaEngine, OpaServer
from policy.port import ADMISSION, Answer, EngineAway, EvaluationError, PolicyInput, PolicyUnavailable
from tests.gateway.one_worker import OneWorker


class Faulty(OpaEngine):
    """Fails twice in a way that nobody has thought of, then goes on."""

    def __init__(self) -> None:
        super().__init__(OpaServer("http://127.0.0.1:1"))
        self.runs = 0
        self.goes_on = asyncio.Event()

    async def run(self, changed: Any = None) -> None:
        self.runs += 1
        if self.runs < 3:
            raise AttributeError("nobody thought of this")
        self.goes_on.set()
        await asyncio.Event().wait()


async def test_an_opa_is_looked_after_again_after_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "FOLLOW_AGAIN_S", 0.01)
    of, engine = Engines({}), Faulty()
    of.follow(engine)
    async with asyncio.timeout(30):
        await engine.goes_on.wait()
    assert engine.runs == 3
    another = Faulty()
    of.follow(another)
    async with asyncio.timeout(30):
        await another.goes_on.wait()
    assert engine.runs == 3
    assert of._following is not None
    of._following.cancel()


async def test_an_opa_that_nobody_waits_for_any_more_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    polled: list[OpaEngine] = []

    async def never(self: OpaEngine) -> None:
        polled.append(self)
        await asyncio.Event().wait()

    monkeypatch.setattr(OpaEngine, "poll", never)
    loaded = OneWorker(tmp_path, sections={"policy": {"url": "http://127.0.0.1:1"}}).load()
    opening = asyncio.create_task(Engines({}).open(loaded))
    async with asyncio.timeout(30):
        while not polled:  # noqa: ASYNC110 it tells nobody
            await asyncio.sleep(0.001)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    assert opening.cancelled()
    with pytest.raises(EngineAway, match="closed"):
        await polled[0].evaluate(ADMISSION, b"{}")


class Failing:
    """Decides nothing."""

    revision, away_since_s = "sha256:failing", None

    async def evaluate(self, entry: str, input_json: bytes) -> Answer:
        raise EvaluationError("the rules conflict")

    async def close(self) -> None:
        """Nothing to end."""


async def test_why_nothing_is_decided_is_in_the_log_with_the_input() -> None:
    engine = Failing()
    decider = Decider(engine)
    Engines({}).serve(decider, Deciding(engine, None))
    with capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(PolicyUnavailable):
                await decider.decide(PolicyInput("acme", "search", "web", (), "internal", "chat", "sim-small"))
    [said] = logs
    assert (said["reason"], said["entry"]) == ("EvaluationError: the rules conflict", ADMISSION)
    assert '"app":"web"' in said["input"]
    assert len(said["input_digest"]) == 64


def test_each_reason_is_logged_once_a_minute_and_a_flood_of_them_is_bounded() -> None:
    now_s = 0.0
    failures = Failures(lambda: now_s)

    def logged(*reasons: str, is_shadow: bool = False) -> int:
        with capture_logs() as logs:
            for reason in reasons:
                failures.say(Failure(reason, ADMISSION, b"{}", is_shadow))
        return len(logs)

    assert logged("one", "one", "two") == 2
    assert logged("one", "one", is_shadow=True) == 1
    now_s = SAID_AGAIN_S - 1
    assert logged("one", *map(str, range(1000))) == SAID_MAX - 3
    now_s = SAID_AGAIN_S
    assert logged("one", "one", "two") == 2
