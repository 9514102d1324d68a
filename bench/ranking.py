"""`python -m bench.ranking`: whether the simulator ranks configurations as a real vLLM does.

Each configuration is started, measured and stopped, about a minute each. The simulation knows only a calibration of the
default one, from `python -m bench.accuracy`. What was found goes into `build/accuracy.json` and `docs/accuracy.md`.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import Any, Final

import orjson
import uvloop
from rich.console import Console

from bench.accuracy import CALIBRATION, RESULTS, keep
from bench.accuracy_tables import write_docs
from bench.errors import MeasurementError
from bench.vllm_engine import SHAPES, ModelShape, engine
from runtime.calibration.accuracy import Figures, ranking, served_by, served_of
from runtime.calibration.engine import Shape
from runtime.calibration.errors import CalibrationError
from runtime.calibration.loads import Load, closed, held_out_mixes, opened, warming
from runtime.calibration.simulated import deployment_of
from runtime.calibration.stored import Calibration
from runtime.calibration.trials import Trials
from runtime.sim.simulation import simulate
from runtime.vllm.catalogue import KnobValue

TAU_MIN: Final = 0.8
RUNS: Final = 3
SHARE: Final = 70
"""The load's rate, in hundredths of what the default configuration can do: smaller ones are overrun."""
SEED: Final = 2
SEATS: Final = (2, 4, 8, 16)
BATCHED_TOKENS: Final = (256, 512, 2_048)
CACHE_BLOCKS: Final = (None, 193)
Knobs = Mapping[str, KnobValue]


def configurations() -> list[dict[str, KnobValue]]:
    """Twenty-four of them: seats, tokens of a step, and a cache that is ample or too small."""
    return [
        {"max_num_seqs": seats, "max_num_batched_tokens": tokens, "num_gpu_blocks_override": blocks}
        for seats, tokens, blocks in product(SEATS, BATCHED_TOKENS, CACHE_BLOCKS)
    ]


def measure(shape: ModelShape, knobs: Knobs, load: Load, runs: int) -> list[float]:
    """The mean time of whole answers in each run of a load on one configuration, in microseconds."""
    with engine(shape, dict(knobs)) as (trials, telemetry):
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                return runner.run(_runs(trials, load, Shape.of(telemetry.facts()), runs))
        except CalibrationError as error:
            raise MeasurementError(f"{knobs}: {error}") from error
        finally:
            telemetry.close()


async def _runs(trials: Trials, load: Load, shape: Shape, runs: int) -> list[float]:
    await trials.run(warming(shape))
    return [Figures.of(served_of((await trials.run(load)).run)).e2e for _ in range(runs)]


def ranked(found: Sequence[tuple[Knobs, Sequence[float], float]], runs: int) -> dict[str, Any]:
    """Configurations with their measured runs and simulated means, as `build/accuracy.json` keeps them.

    The noise of a configuration is half of what its runs are apart, but no less than the median one of all: three runs
    that happen to agree are no proof of none.
    """
    parts = sorted((max(values) - min(values)) / 2 / fmean(values) for _, values, _ in found)
    usual = parts[len(parts) // 2]
    rows: list[dict[str, Any]] = [
        {
            "knobs": {name: value for name, value in knobs.items() if value is not None},
            "measured_us": fmean(values),
            "noise_us": max((max(values) - min(values)) / 2, usual * fmean(values)),
            "simulated_us": simulated,
        }
        for knobs, values, simulated in found
    ]
    tau, pairs = ranking(*([row[name] for row in rows] for name in ("measured_us", "noise_us", "simulated_us")))
    return {
        "measured_unix_s": int(time.time()),
        "runs": runs,
        "tau": round(tau, 4),
        "tau_min": TAU_MIN,
        "pairs": pairs,
        "configurations": rows,
    }


def the_load(calibration: Calibration, seconds: float) -> Load:
    """Prompts that share prefixes, at a rate that the default configuration keeps up with, as far as simulated."""
    shape = Shape.of(calibration.engine)
    mix, seats = held_out_mixes(shape)[1], shape.max_num_seqs
    full = simulate(closed(shape, mix, 2 * seats, 8, SEED), deployment_of(calibration)).requests
    per_s = len(full["end_us"]) * 1e6 / int(full["end_us"].max() - full["arrival_us"].min())
    return opened(shape, mix, per_s, SHARE, seconds, SEED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.ranking", description="Rank configurations with vLLM.")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--seconds", type=float, default=8.0, help="how long the load lasts")
    parser.add_argument("--first", type=int, default=len(configurations()), help="measure only so many configurations")
    options = parser.parse_args(arguments)
    say, shape = Console(stderr=True), SHAPES[0]
    if not CALIBRATION.exists():
        parser.error(f"there is no {CALIBRATION}: run `python -m bench.accuracy` first")
    calibration = Calibration.load(CALIBRATION)
    load = the_load(calibration, options.seconds)
    found: list[tuple[Knobs, Sequence[float], float]] = []
    for number, knobs in enumerate(configurations()[: options.first], start=1):
        try:
            values = measure(shape, knobs, load, options.runs)
        except MeasurementError as error:
            say.print(f"FAILED: {error}", markup=False)
            return 1
        changed = {name: value for name, value in knobs.items() if value is not None}
        simulated = Figures.of(served_by(simulate(load, deployment_of(calibration, changed)))).e2e
        found.append((knobs, values, simulated))
        say.print(
            f"{number}: {changed}: vLLM {fmean(values) / 1e3:.0f} ms, simulated {simulated / 1e3:.0f} ms", markup=False
        )
    keep(RESULTS, shape.name, "ranking", ranked(found, options.runs))
    write_docs(orjson.loads(RESULTS.read_bytes()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
