"""`python -m bench.accuracy`: calibrate a real vLLM, drive it through loads that nothing was fitted to, simulate them.

Writes what was found into `build/accuracy.json`, a shape beside another, and the table of `docs/accuracy.md` from it.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
import uvloop
from rich.console import Console

from bench.accuracy_tables import write_docs
from bench.errors import MeasurementError
from bench.vllm_engine import SHAPES, ModelShape, engine
from runtime.calibration.accuracy import Accuracy, Compared, Figures, served_by, served_of
from runtime.calibration.drive import Bounds
from runtime.calibration.engine import CalibratedEngine, Shape, Telemetry
from runtime.calibration.errors import CalibrationError
from runtime.calibration.loads import HELD_OUT_SHARES, Load, closed, conversations, held_out_mixes, opened
from runtime.calibration.session import Plan, calibrate
from runtime.calibration.simulated import deployment_of
from runtime.calibration.stored import Calibration, Device
from runtime.calibration.trials import Trial, Trials
from runtime.sim.simulation import simulate

RESULTS: Final = Path("build") / "accuracy.json"
CALIBRATION: Final = Path("build") / "accuracy-calibration.json"
"""That of the first shape, for `python -m bench.ranking`."""
RUNS: Final = 3
HELD_OUT_SEED: Final = 1


@dataclass(frozen=True, slots=True)
class Asked:
    """How much is measured: runs of each load, and the plan of calibration, which held-out loads follow too."""

    runs: int = RUNS
    plan: Plan = field(default_factory=Plan)
    bounds: Bounds = field(default_factory=Bounds)


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured and simulated on one shape."""

    shape: ModelShape
    calibration: Calibration
    compared: tuple[Compared, ...]
    trimmed_lag_us: int

    def of(self, *, saturated: bool) -> Accuracy:
        """The errors over the loads that ask for more than the engine can do at once, or over the others."""
        return Accuracy.of([each for each in self.compared if each.saturated == saturated])

    def view(self) -> dict[str, Any]:
        """As `build/accuracy.json` keeps it."""
        return {
            "shape": asdict(self.shape),
            "measured_unix_s": int(time.time()),
            "cores": len(os.sched_getaffinity(0)),
            "lag_us": self.trimmed_lag_us,
            "calibration": {**self.calibration.view(), "digest": self.calibration.digest},
            "loads": [_load_view(each) for each in self.compared],
        }


def measure(shape: ModelShape, asked: Asked, say: Console) -> Found:
    """Everything on one shape; MeasurementError where the engine cannot be had or cannot be measured."""
    with engine(shape, bounds=asked.bounds) as (trials, telemetry):
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_measured(shape, asked, trials, telemetry, say))
        except CalibrationError as error:
            raise MeasurementError(str(error)) from error
        finally:
            telemetry.close()


async def _measured(shape: ModelShape, asked: Asked, trials: Trials, telemetry: Telemetry, say: Console) -> Found:
    facts = telemetry.facts()
    device = Device(facts.device, len(os.sched_getaffinity(0)))
    calibration = await calibrate(trials, facts, device, int(time.time()), asked.plan)
    say.print(f"{shape.name}: calibrated", markup=False)
    loads = await held_out_loads(trials, facts, asked.plan)
    runs: dict[str, list[Trial]] = {load.name: [] for load in loads}
    for turn in range(asked.runs):
        # In turn, so that what changes on the machine over time is in the spread of each load.
        for load in loads:
            runs[load.name].append(await trials.run(load))
        say.print(f"{shape.name}: run {turn + 1} of {asked.runs}", markup=False)
    compared = tuple(compare(load, runs[load.name], calibration) for load in loads)
    lag_us = max(trial.run.lag_us for each in runs.values() for trial in each)
    return Found(shape, calibration, compared, lag_us)


async def held_out_loads(trials: Trials, facts: CalibratedEngine, plan: Plan) -> list[Load]:
    """Loads of other lengths, rates and prefixes than those fitted to; a first run of some tells the rates."""
    shape, seed = Shape.of(facts), plan.seed + HELD_OUT_SEED
    seats, loads = shape.max_num_seqs, []
    for mix in held_out_mixes(shape):
        full = closed(shape, mix, seats + max(1, seats // 2), plan.turns, seed)
        per_s = (await trials.run(full)).ended_per_s
        loads += [closed(shape, mix, max(1, seats // 3), plan.turns, seed), full]
        loads += [opened(shape, mix, per_s, share, plan.open_s, seed) for share in HELD_OUT_SHARES]
    return [*loads, conversations(shape, max(1, seats // 3), plan.turns, seed)]


def compare(load: Load, trials: Sequence[Trial], calibration: Calibration) -> Compared:
    """The runs of a load beside its simulation."""
    simulated = Figures.of(served_by(simulate(load, deployment_of(calibration))))
    runs = tuple(Figures.of(served_of(trial.run)) for trial in trials)
    return Compared(load.name, load.saturated, runs, simulated)


def keep(path: Path, name: str, part: str, value: dict[str, Any]) -> dict[str, Any]:
    """Put one part of a shape's results into the file in place of what was there, and return all of it."""
    kept: dict[str, Any] = orjson.loads(path.read_bytes()) if path.exists() else {}
    kept.setdefault(name, {})[part] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(kept, option=orjson.OPT_INDENT_2) + b"\n")
    return kept


def _load_view(compared: Compared) -> dict[str, Any]:
    return {
        "load": compared.load,
        "saturated": compared.saturated,
        "runs": [asdict(each) for each in compared.runs],
        "simulated": asdict(compared.simulated),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.accuracy", description="Compare the simulator with vLLM.")
    parser.add_argument("--shape", choices=[each.name for each in SHAPES], default=SHAPES[0].name)
    parser.add_argument("--runs", type=int, default=RUNS, help="of each held-out load; their spread is vLLM's own")
    parser.add_argument("--seconds", type=float, default=Plan().open_s, help="how long each open load lasts")
    parser.add_argument("--turns", type=int, default=Plan().turns, help="requests of each user in closed loads")
    lag_ms = Bounds().lag_us_max / 1_000
    parser.add_argument("--lag-ms", type=float, default=lag_ms, help="more where others use the machine, for a try")
    parser.add_argument("--docs-only", action="store_true", help="write the tables again from what is kept")
    options = parser.parse_args(arguments)
    say = Console(stderr=True)
    if not options.docs_only:
        shape = next(each for each in SHAPES if each.name == options.shape)
        try:
            bounds = Bounds(lag_us_max=round(options.lag_ms * 1_000))
            found = measure(shape, Asked(options.runs, Plan(options.seconds, options.turns), bounds), say)
        except MeasurementError as error:
            say.print(f"{shape.name}: FAILED: {error}", markup=False)
            return 1
        keep(RESULTS, shape.name, "accuracy", found.view())
        if shape == SHAPES[0]:
            found.calibration.save(CALIBRATION)
    if not RESULTS.exists():
        parser.error(f"there is no {RESULTS} yet")
    write_docs(orjson.loads(RESULTS.read_bytes()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
