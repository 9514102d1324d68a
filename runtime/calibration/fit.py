"""Fits the step-time model to observed steps, and says how well it holds.

Non-negative least squares of the relative error: each step is weighed by one over the time that the fit before gave it,
so that a short step's microsecond counts as much as a long one's tenth of a millisecond, and the mean ratio of observed
to fitted comes out at one. What lies far off (a page fault, another process on the core) is left out, and counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from runtime.calibration.errors import Unfit
from runtime.calibration.observe import Step
from runtime.step_time import StepTime, StepWork

Floats = NDArray[np.float64]

STEPS_MIN: Final = 50
_ROUNDS_MAX: Final = 20
_SPREADS_MAX: Final = 6.0
"""How many spreads (1.4826 x the median deviation, which is a normal distribution's sigma) may lie between."""
_SIGMA: Final = 1.4826
_SPREAD_MIN: Final = 0.005
_OUTLIERS_MAX: Final = 0.1
_QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
# Picoseconds in a microsecond, for the fields of StepWork in their order; and the unit of each coefficient in them.
_PS: Final = 1_000_000
_UNITS_PS: Final = (1_000, 1_000, 1, 1_000, 1)


@dataclass(frozen=True, slots=True)
class Fitted:
    """The fitted model, and how many of the steps, with what part of their time, were left out as outliers."""

    step_time: StepTime
    steps: int
    outliers: int
    outlier_time_share: float


@dataclass(frozen=True, slots=True)
class StepError:
    """How a model's step times compare with observed ones: relative errors, observed over fitted less one.

    `total` is that of the sum of all; `mean_absolute` the mean of the single ones; `quantiles` are theirs at 5, 25, 50,
    75 and 95 %; `r_squared` is the part of the variance of the durations that the model explains.
    """

    steps: int
    total: float
    mean_absolute: float
    r_squared: float
    quantiles: tuple[float, ...]

    def view(self) -> dict[str, Any]:
        """As JSON shows it."""
        return {
            "steps": self.steps,
            "total": round(self.total, 4),
            "mean_absolute": round(self.mean_absolute, 4),
            "r_squared": round(self.r_squared, 4),
            "quantiles": [round(each, 4) for each in self.quantiles],
        }


def fit_step_time(steps: Sequence[Step]) -> Fitted:
    """Fit the model to steps; Unfit for too few, and where the steps do not follow any such model."""
    if len(steps) < STEPS_MIN:
        raise Unfit(
            f"the engine told of {len(steps)} steps and {STEPS_MIN} are needed: does it run with Bursar's plugin?"
        )
    features = _features([step.work for step in steps])
    times = np.array([max(1, step.end_us - step.begin_us) for step in steps], dtype=np.float64)
    kept = np.ones(len(times), dtype=bool)
    fitted = np.full(len(times), float(np.median(times)))
    coefficients = np.zeros(features.shape[1])
    for _ in range(_ROUNDS_MAX):
        before = coefficients
        coefficients = solve(features[kept] / fitted[kept, None], times[kept] / fitted[kept])
        fitted = np.maximum(features @ coefficients, 1.0)
        kept = near(times / fitted)
        if np.allclose(coefficients, before, rtol=1e-4, atol=0):
            break
    outliers = int(np.count_nonzero(~kept))
    if outliers > _OUTLIERS_MAX * len(times):
        raise Unfit(
            f"{outliers} of {len(times)} steps lie far from any linear model: was the machine shared while it was "
            "measured? Calibrate again when it is quiet"
        )
    return Fitted(_whole(coefficients), len(times), outliers, float(times[~kept].sum() / times.sum()))


def step_error(model: StepTime, steps: Sequence[Step]) -> StepError:
    """How a model does on steps, outliers among them."""
    if not steps:
        raise Unfit("there are no steps to compare with")
    times = np.array([max(1, step.end_us - step.begin_us) for step in steps], dtype=np.float64)
    fitted = np.array([model.duration_us(step.work) for step in steps], dtype=np.float64)
    ratios = times / fitted - 1
    variance = float(((times - times.mean()) ** 2).sum())
    residual = float(((times - fitted) ** 2).sum())
    return StepError(
        steps=len(steps),
        total=float(times.sum() / fitted.sum() - 1),
        mean_absolute=float(np.abs(ratios).mean()),
        r_squared=1 - residual / variance if variance else 0.0,
        quantiles=tuple(float(each) for each in np.quantile(ratios, _QUANTILES)),
    )


def _features(works: Sequence[StepWork]) -> Floats:
    """A column of ones, then the fields of StepWork."""
    return np.column_stack([np.ones(len(works)), np.array(works, dtype=np.float64)])


def solve(rows: Floats, values: Floats) -> Floats:
    """Non-negative least squares, each column scaled to about one: token pairs are a million to a request."""
    scale: Floats = np.sqrt((rows**2).mean(axis=0))
    scale[scale == 0] = 1.0  # never seen: the column is zero, and so will be its coefficient
    try:
        solved, _ = nnls(rows / scale, values)
    except RuntimeError as error:
        raise Unfit(f"what was measured cannot be fitted ({error}): calibrate again") from error
    found: Floats = np.asarray(solved, dtype=np.float64) / scale
    return found


def near(ratios: Floats) -> NDArray[np.bool_]:
    """Which ratios lie within some spreads of the median one."""
    deviations = np.abs(ratios - np.median(ratios))
    spread = max(_SIGMA * float(np.median(deviations)), _SPREAD_MIN)
    return np.asarray(deviations <= _SPREADS_MAX * spread)


def _whole(coefficients: Floats) -> StepTime:
    """The coefficients, which are microseconds a unit, in the whole units of StepTime."""
    base_us, *prices = (float(each) for each in coefficients)
    whole = [round(price * _PS / unit) for price, unit in zip(prices, _UNITS_PS, strict=True)]
    return StepTime(max(1, round(base_us)), *whole)
