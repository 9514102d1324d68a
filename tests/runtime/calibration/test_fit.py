"""The fit finds the coefficients that made the steps, whatever the noise, and says how well they hold."""

from __future__ import annotations

import pytest

from runtime.calibration.errors import Unfit
from runtime.calibration.fit import STEPS_MIN, fit_step_time, step_error
from runtime.calibration.observe import Step
from runtime.step_time import StepTime, StepWork
from tests.runtime.calibration.engine_telemetry import TRUE, observed


def fields(model: StepTime) -> tuple[int, ...]:
    return (model.base_us * 1_000_000, *model.variable_ps())


def test_without_noise_the_coefficients_come_back() -> None:
    found = fit_step_time(observed(1, 400)).step_time
    assert fields(found) == pytest.approx(fields(TRUE), rel=2e-3)


@pytest.mark.parametrize("seed", range(5))
def test_with_noise_they_come_back_within_it(seed: int) -> None:
    """Five percent of noise on 1,500 steps leaves each coefficient within fifteen."""
    found = fit_step_time(observed(seed, 1_500, noise=0.05)).step_time
    assert fields(found) == pytest.approx(fields(TRUE), rel=0.15)


def test_stalls_do_not_move_the_fit() -> None:
    """Two steps in a hundred that took ten times as long are left out, and how much time that was is said."""
    fitted = fit_step_time(observed(3, 2_000, noise=0.03, stalls=0.02))
    assert fields(fitted.step_time) == pytest.approx(fields(TRUE), rel=0.06)
    assert 20 <= fitted.outliers <= 80
    assert 0.1 < fitted.outlier_time_share < 0.3


def test_a_coefficient_is_never_negative() -> None:
    """Where context makes no difference but noise, its price is zero rather than below."""
    flat = [Step(0, 5_000 - each.work.decode_context // 1_000, *each[2:]) for each in observed(4, 300)]
    assert min(fit_step_time(flat).step_time.variable_ps()) >= 0


def test_the_mean_ratio_of_observed_to_fitted_is_one() -> None:
    """Right-skewed noise does not make a simulation too fast: the fit is of the mean, not of the median."""
    steps = observed(5, 3_000, noise=0.15)
    error = step_error(fit_step_time(steps).step_time, steps)
    assert abs(error.total) < 0.01


def test_too_few_steps_are_refused() -> None:
    with pytest.raises(Unfit, match=f"{STEPS_MIN} are needed"):
        fit_step_time(observed(6, STEPS_MIN - 1))


def test_steps_that_follow_no_model_are_refused() -> None:
    """Two kinds of steps of the same work, and neither an exception."""
    steps = [Step(0, 1_000 if at % 3 else 50_000, StepWork(0, 0, 0, 1, 10), 1, 1, 0, 0, 1) for at in range(300)]
    with pytest.raises(Unfit, match="lie far from any linear model"):
        fit_step_time(steps)


def test_held_out_errors_show_a_model_that_is_off_by_a_tenth() -> None:
    steps = observed(7, 500)
    slower = StepTime(*(value * 11 // 10 for value in (TRUE.base_us, 1_500_000, 20_000, 9_000, 200_000, 300_000)))
    error = step_error(slower, steps)
    assert error.total == pytest.approx(1 / 1.1 - 1, abs=0.002)
    assert error.mean_absolute == pytest.approx(1 - 1 / 1.1, abs=0.002)
    assert error.quantiles[2] == pytest.approx(1 / 1.1 - 1, abs=0.002)
    assert 0.9 < error.r_squared < 1


def test_what_is_never_seen_gets_no_price() -> None:
    """Decodes alone say nothing of prefills."""
    decodes = [each for each in observed(8, 800) if each.work.prefill_requests == 0]
    found = fit_step_time(decodes).step_time
    assert (found.prefill_request_ns, found.prefill_token_ns, found.prefill_context_ps) == (0, 0, 0)
    assert found.decode_request_ns == pytest.approx(TRUE.decode_request_ns, rel=0.01)
