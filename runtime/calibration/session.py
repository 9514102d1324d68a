"""A calibration from beginning to end: warm up, drive the training loads, fit, and measure the fit on other loads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from domain.amounts import MILLION
from domain.prices import GpuRate
from runtime.calibration.engine import CalibratedEngine, Shape
from runtime.calibration.fit import fit_step_time, step_error
from runtime.calibration.loads import (
    TRAINING_SHARES,
    Load,
    closed,
    held_out_mixes,
    opened,
    single_loads,
    training_mix,
    warming,
)
from runtime.calibration.observe import Step
from runtime.calibration.overhead import fit_overhead
from runtime.calibration.ranges import Ranges
from runtime.calibration.stored import Calibration, Device
from runtime.calibration.trials import Trial, Trials, steps_of
from runtime.step_time import StepTime

OPEN_S: Final = 10.0
_TURNS: Final = 6


@dataclass(frozen=True, slots=True)
class Plan:
    """How long each open load lasts in seconds, how many requests each user of a closed one sends, and the seed."""

    open_s: float = OPEN_S
    turns: int = _TURNS
    seed: int = 0


async def calibrate(
    trials: Trials, engine: CalibratedEngine, device: Device, created_unix_s: int, plan: Plan | None = None
) -> Calibration:
    """Drive the engine and fit it; raises CalibrationError, and then there is nothing to keep."""
    plan = plan or Plan()
    shape = Shape.of(engine)
    await trials.run(warming(shape))
    training = await _trained(trials, shape, plan)
    held_out = [await trials.run(load) for load in _checks(shape, plan)]
    return calibration_of(training, held_out, engine, device, created_unix_s)


def calibration_of(
    training: Sequence[Trial],
    held_out: Sequence[Trial],
    engine: CalibratedEngine,
    device: Device,
    created_unix_s: int,
) -> Calibration:
    """What some trials make; the errors are those over `held_out`, which nothing is fitted to."""
    steps = steps_of(training)
    fitted = fit_step_time(steps)
    errors: dict[str, Any] = {
        "training_steps": fitted.steps,
        "outlier_steps": fitted.outliers,
        "outlier_time_share": round(fitted.outlier_time_share, 4),
        "training": {trial.load.name: step_error(fitted.step_time, trial.steps).view() for trial in training},
        "held_out": {trial.load.name: step_error(fitted.step_time, trial.steps).view() for trial in held_out},
    }
    return Calibration(
        engine=engine,
        device=device,
        step_time=fitted.step_time,
        overhead=fit_overhead(training),
        rate=rate_of(fitted.step_time, [step for trial in training if not trial.load.single for step in trial.steps]),
        ranges=Ranges.of_trials(training),
        created_unix_s=created_unix_s,
        errors=errors,
    )


def rate_of(model: StepTime, steps: Sequence[Step]) -> GpuRate:
    """What a token took of the accelerator on average: busy time shared between prefill and decode by their work.

    So attribution shares it, which is what a hold estimates. Zero for what was not seen.
    """
    prices = model.variable_ps()
    input_us = output_us = 0.0
    computed = decoded = 0
    for step in steps:
        prefill_ps = sum(count * price for count, price in zip(step.work[:3], prices[:3], strict=True))
        decode_ps = sum(count * price for count, price in zip(step.work[3:], prices[3:], strict=True))
        share = prefill_ps / (prefill_ps + decode_ps) if prefill_ps + decode_ps else 0.0
        busy_us = step.end_us - step.begin_us
        input_us += busy_us * share
        output_us += busy_us * (1 - share)
        computed += step.work.prefill_tokens
        decoded += step.work.decode_requests
    return GpuRate(0, round(input_us * MILLION / max(1, computed)), round(output_us * MILLION / max(1, decoded)))


async def _trained(trials: Trials, shape: Shape, plan: Plan) -> list[Trial]:
    """The training loads; how many requests a second the engine can do is seen in the fullest closed one."""
    mix, seats = training_mix(shape), shape.max_num_seqs
    users = sorted({1, max(1, seats // 4), max(1, seats // 2), seats})
    done = [await trials.run(load) for load in single_loads(shape)]
    done += [await trials.run(closed(shape, mix, each, plan.turns, plan.seed)) for each in users]
    full = await trials.run(closed(shape, mix, seats + max(1, seats // 2), plan.turns, plan.seed))
    rates = [opened(shape, mix, full.ended_per_s, share, plan.open_s, plan.seed) for share in TRAINING_SHARES]
    return [*done, full, *[await trials.run(load) for load in rates]]


def _checks(shape: Shape, plan: Plan) -> list[Load]:
    """Two loads of other lengths, one of shared prefixes, that nothing is fitted to."""
    users = max(1, shape.max_num_seqs // 3)
    return [closed(shape, mix, users, plan.turns, plan.seed + 1) for mix in held_out_mixes(shape)]
