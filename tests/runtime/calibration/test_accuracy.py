"""Errors, spreads and rankings are what their names say."""

from __future__ import annotations

import pytest

from runtime.calibration.accuracy import Accuracy, Compared, Figures, Served, ranking, served_by, served_of
from runtime.calibration.drive import Run, Sample
from runtime.calibration.loads import Load
from runtime.sim.config import EngineConfig
from runtime.sim.deployment import Deployment
from runtime.sim.simulation import simulate
from runtime.step_time import StepTime
from runtime.workload.port import Arrival

UNSATURATED = False


def figures(e2e: float, itl: float = 10.0, ttft: float = 100.0, hit_rate: float = 0.5) -> Figures:
    return Figures(e2e, itl, ttft, hit_rate)


def test_figures_are_means_over_the_requests() -> None:
    """Who gets one token has no time between tokens."""
    found = Figures.of([Served(100, 500, 50, 10, 5), Served(300, 300, 150, 90, 1)])
    assert found == Figures(e2e=400, itl=100, ttft=200, hit_rate=0.5)


def test_a_runs_times_count_from_the_sending() -> None:
    run = Run("a", "k", 0, (Sample(0, 900, 1_000, 50, 8, ((1_300, 1), (1_700, 3))),), 0)
    assert served_of(run) == [Served(300, 700, 50, 8, 3)]


def test_a_simulated_run_counts_from_the_arrival_too() -> None:
    """One request of 20 tokens and 3 answered, with nothing around the steps: 1 ms each."""
    deployment = Deployment(EngineConfig(max_model_len=64, num_blocks=8), StepTime(1_000, 0, 0, 0, 0, 0))
    run = simulate(Load("a", 16, (Arrival(500, 20, 3),)), deployment)
    assert served_by(run) == [Served(1_000, 3_000, 20, 0, 3)]


def test_the_error_is_that_of_the_means_and_the_spread_that_of_the_runs() -> None:
    compared = Compared("a", UNSATURATED, (figures(100), figures(110), figures(90)), figures(105))
    assert compared.error("e2e") == pytest.approx(0.05)
    assert compared.spread("e2e") == pytest.approx((10 + 10 + 20) / 3 / 100)
    assert compared.error("itl") == 0
    assert compared.hit_rate_error == 0


def test_one_run_has_no_spread() -> None:
    assert Compared("a", UNSATURATED, (figures(100),), figures(105)).spread("e2e") == 0


def test_an_accuracy_is_the_mean_over_loads() -> None:
    loads = [
        Compared(name, UNSATURATED, (figures(100),), figures(sim, hit_rate=0.48))
        for name, sim in (("a", 90), ("b", 96))
    ]
    found = Accuracy.of(loads)
    assert found.loads == 2
    assert found.errors["e2e"] == pytest.approx(0.07)
    assert found.hit_rate == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("simulated", "tau"),
    [((1, 2, 3, 4), 1.0), ((4, 3, 2, 1), -1.0), ((1, 2, 4, 3), 4 / 6), ((1, 1, 1, 1), 0.0)],
)
def test_tau_says_how_many_pairs_are_in_order(simulated: tuple[float, ...], tau: float) -> None:
    assert ranking((10, 20, 30, 40), (0, 0, 0, 0), simulated) == (pytest.approx(tau), 6)


def test_pairs_within_the_noise_do_not_count() -> None:
    assert ranking((10, 11, 40), (1, 1, 1), (2, 1, 3)) == (1.0, 2)
    assert ranking((10, 11), (1, 1), (2, 1)) == (0.0, 0)
