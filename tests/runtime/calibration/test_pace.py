"""Closed loads are as long as the engine is fast, and the largest engines are calibrated in minutes."""

from __future__ import annotations

import pytest

from runtime.calibration.engine import CalibratedEngine, Shape
from runtime.calibration.errors import CalibrationError
from runtime.calibration.loads import (
    USERS_MAX,
    Load,
    Mix,
    closed,
    held_out_mixes,
    open_lasts_s,
    opened,
    training_mix,
    users_of,
)
from runtime.calibration.pace import Pace
from runtime.calibration.session import check_clock
from runtime.sim.config import EngineConfig
from runtime.sim.deployment import Deployment
from runtime.sim.simulation import simulate
from runtime.step_time import StepTime
from tests.runtime.calibration.engine_telemetry import observed

EMBEDDED = EngineConfig()
DEMO = Shape(EMBEDDED.max_model_len, EMBEDDED.max_num_seqs, EMBEDDED.block_size, EMBEDDED.num_blocks)
TINY = Shape(max_model_len=4096, max_num_seqs=16, block_size=32, num_blocks=4096)
PACE = Pace(DEMO, StepTime())


def lasts_s(load: Load, engine: EngineConfig = EMBEDDED) -> float:
    """How long the simulator takes over a load."""
    return int(simulate(load, Deployment(engine)).requests["end_us"].max()) / 1e6


def demo_loads(turns: int, budget_s: float) -> list[Load]:
    mixes = [(training_mix(DEMO), users) for users in users_of(DEMO)]
    mixes += [(mix, DEMO.max_num_seqs // 3) for mix in held_out_mixes(DEMO)]
    return [PACE.closed(mix, users, turns, budget_s, 0) for mix, users in mixes]


def test_the_demos_engine_is_through_its_closed_loads_in_three_minutes() -> None:
    """With 256 seats, six turns and twenty seconds at most, as the command has them; each seat is taken."""
    loads = demo_loads(6, 20.0)
    assert sum(map(lasts_s, loads)) < 180
    assert max(map(lasts_s, loads)) < 60
    run = simulate(loads[4], Deployment(EMBEDDED))
    assert loads[4].name == "even-closed-384"
    assert run.steps["running"].max() == 256


def test_how_long_a_load_lasts_is_known_about() -> None:
    """What the last few that decode add is not."""
    for load in demo_loads(4, 1e9)[1:]:
        assert PACE.lasts_s(load) == pytest.approx(lasts_s(load), rel=0.5)


def test_a_load_is_cut_to_its_time_and_never_below_two_turns() -> None:
    mix = training_mix(DEMO)
    long, short, least = (PACE.closed(mix, 64, 50, budget_s, 0) for budget_s in (1e9, 20.0, 0.001))
    assert len(long.arrivals) == 64 * 50
    assert 64 * 2 < len(short.arrivals) < 64 * 50
    assert PACE.lasts_s(short) <= 22
    assert len(least.arrivals) == 64 * 2


def test_how_long_an_open_load_lasts_is_said_of_slow_engines_too() -> None:
    for per_s in (0.5, 3.0, 40.0):
        load = opened(TINY, training_mix(TINY), per_s, 35, 10.0, 0)
        assert load.arrivals[-1].at_us / 1e6 == pytest.approx(open_lasts_s(per_s, 35, 10.0), rel=0.4)


def test_an_engine_of_which_nothing_could_be_fitted_gets_all_turns() -> None:
    unknown = Pace.of(DEMO, observed(1, 5))
    assert unknown.step_time is None
    load = unknown.closed(training_mix(DEMO), 3, 6, 0.001, 0)
    assert (len(load.arrivals), unknown.lasts_s(load)) == (18, 0.0)
    assert Pace.of(DEMO, observed(1, 500)).step_time is not None


def test_requests_are_so_long_that_a_full_batch_fits_the_cache() -> None:
    """Of the demo's 262,144 tokens a quarter stays free; an engine with more room than seats is asked as it was."""
    mean = [(each.prompt_tokens + each.output_tokens) for each in closed(DEMO, training_mix(DEMO), 400, 5, 0).arrivals]
    assert sum(mean) / len(mean) * DEMO.max_num_seqs == pytest.approx(DEMO.tokens * 3 / 4, rel=0.1)
    assert training_mix(TINY) == Mix("even", 4096 // 24, 4096 // 96, 0.8)
    long, shared = held_out_mixes(TINY)
    assert (long.prompt_median, long.output_median) == (4096 // 9, 4096 // 128)
    assert (shared.prompt_median, shared.output_median) == (4096 // 40, 4096 // 80)


def test_there_are_no_more_users_than_a_client_can_be() -> None:
    assert users_of(DEMO) == [1, 64, 128, 256, 384]
    assert users_of(Shape(4096, 1, 16, 1000)) == [1, 2]
    assert users_of(Shape(4096, 4096, 16, 1_000_000)) == [1, USERS_MAX]


@pytest.mark.parametrize(("knobs", "is_right"), [({}, True), ({"time_scale": 1.0}, True), ({"time_scale": 2.5}, False)])
def test_a_clock_of_another_speed_is_refused(knobs: dict[str, float], is_right: bool) -> None:
    engine = CalibratedEngine("sim 1", "m", 16, 100, 1, knobs)
    if is_right:
        check_clock(engine)
        return
    with pytest.raises(CalibrationError, match=r"runs 2\.5 times as fast"):
        check_clock(engine)
