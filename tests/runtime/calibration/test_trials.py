"""A trial brings together what clients got and what the engine told, and nothing that is not whole."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from runtime.calibration.drive import Bounds, Target
from runtime.calibration.engine import CalibratedEngine, Telemetry
from runtime.calibration.errors import BadCalibration, ClientLate, NothingSeen
from runtime.calibration.loads import Load
from runtime.calibration.trials import Trials
from runtime.telemetry.writer import TelemetryWriter
from runtime.workload.port import Arrival
from tests.runtime.calibration.fake_engine import FakeEngine

FACTS = {
    "engine": "vllm 0.32.0",
    "model": "m",
    "block_size": 16,
    "num_blocks": 64,
    "accelerators": 1,
    "knobs": {"max_model_len": 512, "max_num_seqs": 4},
    "device": "cpu",
}
LOAD = Load("a load", 16, (Arrival(0, 20, 3), Arrival(0, 9, 2, after=0)))


class Metered(FakeEngine):
    """The fake engine, which computes one request at a time and tells of it when it is done."""

    writer: TelemetryWriter | None = None
    now_us = 1_000_000

    async def _stream(self, request, body):  # type: ignore[no-untyped-def]
        response = await super()._stream(request, body)
        if self.writer is not None:
            self.writer.join(0, f"cmpl-{request.headers['X-Request-Id']}-0", len(body["prompt"]), 0, 40)
            for at in range(body["max_tokens"]):
                self.now_us += 5_000
                takes = [(0, len(body["prompt"]))] if at == 0 else []
                self.writer.step(self.now_us, self.now_us + 4_000, 1, 1, 0, takes)
            self.writer.leave(0, "finished", body["max_tokens"])
        return response


def trials(url: str, folder: Path, bounds: Bounds | None = None) -> Trials:
    numbers = count()
    return Trials(Target(url, "m"), Telemetry(folder), lambda: f"cal-{next(numbers)}", bounds, settle_s=0.2)


async def test_a_trial_has_the_steps_and_the_requests_of_its_load(tmp_path: Path) -> None:
    """Those of a load before it are not among them."""
    engine = Metered()
    engine.writer = TelemetryWriter(tmp_path, "engine-0", FACTS)
    async with engine.serving() as url:
        runs = trials(url, tmp_path)
        first, second = await runs.run(LOAD), await runs.run(LOAD)
    assert first.run.key != second.run.key
    for trial in (first, second):
        assert len(trial.steps) == 5
        assert [trial.lives[at].prompt_tokens for at in (0, 1)] == [20, 9]
        assert [len(trial.lives[at].emitted_us) for at in (0, 1)] == [3, 2]
    assert first.hit_rate == 0
    assert first.ended_per_s > 0


async def test_what_another_start_of_the_engine_told_is_passed_over(tmp_path: Path) -> None:
    """The folder still holds the last segment of the session before."""
    before = TelemetryWriter(tmp_path, "engine-0", FACTS)
    before.join(3, "someone", 10, 0, 0)
    before.step(1, 2, 1, 1, 0, [(3, 10)])
    engine = Metered()
    engine.writer = TelemetryWriter(tmp_path, "engine-0", FACTS)
    async with engine.serving() as url:
        trial = await trials(url, tmp_path).run(LOAD)
    assert len(trial.steps) == 5


async def test_an_engine_whose_telemetry_lacks_requests_is_refused(tmp_path: Path) -> None:
    """It is that of another engine."""
    TelemetryWriter(tmp_path, "engine-0", FACTS)
    engine = Metered()
    async with engine.serving() as url:
        with pytest.raises(NothingSeen, match="lacks 2 of 2 requests"):
            await trials(url, tmp_path).run(LOAD)


async def test_a_load_is_sent_again_when_the_client_was_late_and_then_given_up(tmp_path: Path) -> None:
    """Here no lateness is allowed at all."""
    engine = Metered()
    engine.writer = TelemetryWriter(tmp_path, "engine-0", FACTS)
    async with engine.serving() as url:
        with pytest.raises(ClientLate):
            await trials(url, tmp_path, Bounds(lag_us_max=-1)).run(LOAD)
    assert len(engine.order) == 3 * len(LOAD.arrivals)


def test_an_engine_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(NothingSeen, match="no engine has told of its steps"):
        Telemetry(tmp_path).facts()
    TelemetryWriter(tmp_path, "engine-0", FACTS)
    found = Telemetry(tmp_path).facts()
    assert found == CalibratedEngine("vllm 0.32.0", "m", 16, 64, 1, FACTS["knobs"], "cpu")
    TelemetryWriter(tmp_path, "engine-0", {"engine": "vllm 0.33", "off": "this plugin knows vLLM 0.32"})
    with pytest.raises(NothingSeen, match=r"is not metered: this plugin knows vLLM 0\.32"):
        Telemetry(tmp_path).facts()


@pytest.mark.parametrize("change", [{"block_size": 0}, {"num_blocks": "64"}, {"knobs": []}, {"model": None}])
def test_facts_that_are_none_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadCalibration, match="facts"):
        CalibratedEngine.of({**FACTS, **change})


@pytest.mark.parametrize("line", ["", "{}", '["open",2,"engine-0","s",0,0,{}]', '["state",[]]'])
def test_a_segment_that_begins_otherwise_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "engine-0.0.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(NothingSeen):
        Telemetry(tmp_path).facts()
