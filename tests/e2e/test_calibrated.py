"""A real vLLM is calibrated, and the simulation of what it was then asked agrees with it where no clock matters.

How far times are apart is measured by `python -m bench.accuracy` on a quiet machine; here the machine may be anything.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvloop

from bench.vllm_engine import SHAPES, engine
from runtime.calibration.accuracy import Figures, served_by, served_of
from runtime.calibration.drive import Bounds
from runtime.calibration.engine import Shape, Telemetry
from runtime.calibration.loads import closed, conversations, held_out_mixes
from runtime.calibration.session import Plan, calibrate
from runtime.calibration.simulated import deployment_of
from runtime.calibration.stored import Calibration, Device
from runtime.calibration.trials import Trial, Trials
from runtime.sim.simulation import simulate
from runtime.step_time import StepWork
from tests.e2e.vllm_environment import MODEL, PYTHON, ROOT

QUICK = Plan(open_s=2.0, turns=3)
# Others may use the machine: a client that was late is no reason to fail where times are not compared.
PATIENT = Bounds(lag_us_max=5_000_000)


@dataclass(frozen=True, slots=True)
class Measured:
    """A calibration, and trials of loads that share prefixes and hold conversations."""

    calibration: Calibration
    trials: list[Trial]


@pytest.fixture(scope="module")
def measured() -> Measured:
    """One vLLM, calibrated in short loads and then asked other ones."""
    with engine(SHAPES[0], bounds=PATIENT) as (trials, telemetry):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            found = runner.run(measure(trials, telemetry))
        telemetry.close()
    return found


async def measure(trials: Trials, telemetry: Telemetry) -> Measured:
    facts = telemetry.facts()
    calibration = await calibrate(trials, facts, Device(facts.device, 1), 1_700_000_000, QUICK)
    shape = Shape.of(facts)
    loads = [closed(shape, held_out_mixes(shape)[1], 6, 5, 3), conversations(shape, 4, 4, 3)]
    return Measured(calibration, [await trials.run(load) for load in loads])


def test_each_kind_of_work_has_its_price(measured: Measured) -> None:
    """More of anything takes longer, and the whole range of the engine was seen."""
    model = measured.calibration.step_time
    one = model.duration_us(StepWork(0, 0, 0, 1, 100))
    assert model.duration_us(StepWork(0, 0, 0, 16, 1_600)) > one
    assert model.duration_us(StepWork(1, 2_000, 2_000_000, 0, 0)) > 2 * model.duration_us(StepWork(1, 50, 1_250, 0, 0))
    spans = measured.calibration.ranges.spans
    assert spans["tokens of a request"][1] == 4_096
    assert spans["prefill tokens in a step"][1] == 2_048
    assert spans["requests in a step"][1] == 16
    assert measured.calibration.rate.input_us_per_mtok > 0
    assert measured.calibration.rate.output_us_per_mtok > measured.calibration.rate.input_us_per_mtok


def test_the_telemetry_tells_every_token_that_clients_got(measured: Measured) -> None:
    """Work of all steps: what was not found in the cache is computed once, and each token but the first decoded."""
    for trial in measured.trials:
        samples, works = trial.run.samples, [step.work for step in trial.steps]
        assert sum(work.prefill_tokens for work in works) == sum(s.prompt_tokens - s.cached_tokens for s in samples)
        assert sum(work.decode_requests for work in works) == sum(s.output_tokens - 1 for s in samples)
        for sample in samples:
            life = trial.lives[sample.number]
            assert (life.prompt_tokens, life.cached_tokens) == (sample.prompt_tokens, sample.cached_tokens)
            assert len(life.emitted_us) == sample.output_tokens


def test_the_simulation_finds_what_vllm_found_in_its_cache(measured: Measured) -> None:
    """Hit rates within one point, over loads that hit for the most part."""
    for trial in measured.trials:
        real = Figures.of(served_of(trial.run))
        simulated = Figures.of(served_by(simulate(trial.load, deployment_of(measured.calibration))))
        assert real.hit_rate > 0.4
        assert abs(simulated.hit_rate - real.hit_rate) <= 0.01


def test_the_calibration_is_kept_and_used_by_commands(measured: Measured, tmp_path: Path) -> None:
    """What was measured comes back from its file, and answers what another number of seats would do."""
    path = tmp_path / "calibrations" / "tiny.json"
    measured.calibration.save(path)
    assert Calibration.load(path) == measured.calibration
    trace = tmp_path / "trace.csv"
    rows = (f"2023-11-16 18:15:{second:02d}.0000000,{200 + second},40\n" for second in range(60))
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(rows), encoding="utf-8")
    arguments = ("--trace", str(trace), "--calibration", str(path), "--set", "max_num_seqs=8", "--json")
    found = json.loads(bursar("runtime", "simulate", *arguments).stdout)
    assert found["engine"]["max_num_seqs"] == 8
    assert found["requests"] == 60
    assert found["finished"] + found["refused"] == found["requests"]


def test_one_command_starts_vllm_and_calibrates_it(tmp_path: Path) -> None:
    """`bursar runtime calibrate --launch`, with a knob of our own; a bad one is refused before anything starts."""
    out = tmp_path / "made.json"
    launch = ("runtime", "calibrate", "--launch", str(MODEL), "--python", str(PYTHON), "--home", str(tmp_path / "home"))
    refused = bursar(*launch, "--set", "block_size=7", code=2)
    assert "block_size" in refused.stderr
    bursar(*launch, "--set", "max_num_seqs=4", "--seconds", "2", "--turns", "2", "--out", str(out))
    made = Calibration.load(out)
    assert made.engine.engine.startswith("vllm 0.32")
    assert made.engine.knobs["max_num_seqs"] == 4
    assert made.ranges.spans["requests in a step"][1] == 4


def bursar(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("bursar")), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
    )
    assert done.returncode == code, done
    return done
