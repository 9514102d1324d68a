"""A calibration from beginning to end: warm up, drive the training loads, fit, and measure the fit on other loads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from domain.amounts import MILLION
from domain.prices import GpuRate
from runtime.calibration.engine import CalibratedEngine, Shape
from runtime.calibration.errors import CalibrationError
from runtime.calibration.fit import fit_step_time, step_error
from runtime.calibration.loads import (
    TRAINING_SHARES,
    USERS_MAX,
    Load,
    held_out_mixes,
    open_lasts_s,
    opened,
    single_loads,
    training_mix,
    users_of,
    warming,
)
from runtime.calibration.observe import Step
from runtime.calibration.overhead import fit_overhead
from runtime.calibration.pace import Pace
from runtime.calibration.ranges import Ranges
from runtime.calibration.stored import Calibration, Device
from runtime.calibration.trials import Trial, Trials, steps_of
from runtime.step_time import StepTime, StepWork, prefill_pairs

OPEN_S: Final = 10.0
_TURNS: Final = 6
_CLOSED_PER_OPEN: Final = 2
"""So many times as long as an open load a closed one may last, unless two turns take longer."""
_OPEN_WITH_ENDS: Final = 2
"""So many times as long as requests come an open load lasts about, until the last of them has ended."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long requests of an open load come in seconds, how many each user of a closed one sends at most, the seed.

    A closed load has fewer turns where it would last longer than twice `open_s`, and two at least.
    """

    open_s: float = OPEN_S
    turns: int = _TURNS
    seed: int = 0


async def calibrate(
    trials: Trials,
    engine: CalibratedEngine,
    device: Device,
    created_unix_s: int,
    plan: Plan | None = None,
    say: Callable[[str], None] | None = None,
) -> Calibration:
    """Drive the engine and fit it; raises CalibrationError, and then there is nothing to keep.

    `say` is told how long it will take, once the first loads have shown how fast the engine is.
    """
    plan = plan or Plan()
    check_clock(engine)
    shape = Shape.of(engine)
    await trials.run(warming(shape))
    training = [await trials.run(load) for load in single_loads(shape)]
    pace = Pace.of(shape, steps_of(training))
    closed = _closed(pace, plan)
    checks = _checks(pace, plan)
    if say is not None:
        say(_announced(pace, plan, closed, checks))
    training += [await trials.run(load) for load in closed]
    # How many requests a second the engine can do is seen in the fullest closed load, the last of them.
    per_s = training[-1].ended_per_s
    rates = [opened(shape, training_mix(shape), per_s, share, plan.open_s, plan.seed) for share in TRAINING_SHARES]
    training += [await trials.run(load) for load in rates]
    held_out = [await trials.run(load) for load in checks]
    return calibration_of(training, held_out, engine, device, created_unix_s)


def check_clock(engine: CalibratedEngine) -> None:
    """Raise CalibrationError for a simulator whose clock runs at another speed than that of its clients."""
    scale = engine.knobs.get("time_scale", 1)
    if scale != 1:
        raise CalibrationError(
            f"the simulator's clock runs {scale:g} times as fast as that of its clients, so what they measure is not "
            "its time: start it with a time scale of 1 to calibrate it"
        )


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


def lone_rate(model: StepTime, engine: CalibratedEngine) -> GpuRate:
    """What a token takes of the accelerator where its request is alone, by the same model.

    The prompt is as long as the median one of the mixed loads; a token of a shorter one bears more of the step's base.
    """
    tokens = training_mix(Shape.of(engine)).prompt_median
    prefill_us = model.duration_us(StepWork(1, tokens, prefill_pairs(tokens, 0)))
    return GpuRate(0, round(prefill_us * MILLION / tokens), model.decode_duration_us(1, tokens) * MILLION)


def _closed(pace: Pace, plan: Plan) -> list[Load]:
    """The closed training loads, the fullest last."""
    mix, lasts_s = training_mix(pace.shape), plan.open_s * _CLOSED_PER_OPEN
    return [pace.closed(mix, users, plan.turns, lasts_s, plan.seed) for users in users_of(pace.shape)]


def _checks(pace: Pace, plan: Plan) -> list[Load]:
    """Two loads of other lengths, one of shared prefixes, that nothing is fitted to."""
    users, lasts_s = min(USERS_MAX, max(1, pace.shape.max_num_seqs // 3)), plan.open_s * _CLOSED_PER_OPEN
    return [pace.closed(mix, users, plan.turns, lasts_s, plan.seed + 1) for mix in held_out_mixes(pace.shape)]


def _announced(pace: Pace, plan: Plan, closed: Sequence[Load], checks: Sequence[Load]) -> str:
    users = users_of(pace.shape)[-1]
    said = f"{pace.shape.max_num_seqs} seats, so up to {users} users at once"
    if pace.step_time is None:
        return said
    closed_s, full = sum(map(pace.lasts_s, (*closed, *checks))), closed[-1]
    per_s = len(full.arrivals) / pace.lasts_s(full)
    open_s = sum(_OPEN_WITH_ENDS * open_lasts_s(per_s, share, plan.open_s) for share in TRAINING_SHARES)
    return f"{said}: about {closed_s + open_s:.0f} s more"
