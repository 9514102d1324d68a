"""Idle time: an engine without requests is idle as time goes by, and never in what a step under way will claim."""

import pytest

from runtime.attribution.engine import REST_LAG_US, REST_LAG_US_MAX, Attribution
from runtime.attribution.shares import Totals, together
from runtime.attribution.weights import Weights
from runtime.step_time import StepTime
from runtime.telemetry.records import Join, Leave, Lost, Open, Step

BEGAN_US = 1_700_000_000_000_000
SECOND_US = 1_000_000


def begun(account_from_us: int = 0) -> Attribution:
    attribution = Attribution(Weights.of(StepTime()), account_from_us=account_from_us)
    attribution.take(Open("engine-0", "s", 0, BEGAN_US, "sim", "m", 1, 16, 100, 0))
    return attribution


def compute(attribution: Attribution, begin_us: int, duration_us: int) -> None:
    """One request, alone in a step that begins so long after the engine did; all is told when the step is done."""
    begin_us += BEGAN_US
    attribution.take(Join(0, "r", 8, 0, 0))
    attribution.take(Step(begin_us, begin_us + duration_us, 1, 1, 0, ((0, 8),)))
    attribution.take(Leave(0, "finished", 1))


@pytest.mark.parametrize(("before_us", "under_way_us"), [(0, REST_LAG_US), (5 * SECOND_US, 10 * SECOND_US)])
def test_what_a_step_under_way_will_claim_is_never_idle_before(before_us: int, under_way_us: int) -> None:
    """It may take as long as the lag, or twice as long as the longest that was told before."""
    attribution = begun()
    if before_us:
        compute(attribution, 0, before_us)
    begin_us = before_us + 60 * SECOND_US
    idle = []
    for since_us in range(0, under_way_us, SECOND_US // 4):
        attribution.rest(BEGAN_US + begin_us + since_us)
        idle.append(attribution.totals.idle_us)
    assert 50 * SECOND_US <= idle[0] < idle[-1] <= 60 * SECOND_US
    compute(attribution, begin_us, under_way_us)
    totals = attribution.totals
    assert (totals.idle_us, totals.busy_us) == (60 * SECOND_US, before_us + under_way_us)


def test_a_longer_step_than_any_before_takes_back_what_was_idle_and_the_sums_hold() -> None:
    attribution = begun()
    attribution.rest(BEGAN_US + 60 * SECOND_US)
    compute(attribution, 30 * SECOND_US, 29 * SECOND_US)
    totals = attribution.totals
    assert (totals.wall_us, totals.busy_us, totals.idle_us) == (59 * SECOND_US, 29 * SECOND_US, 30 * SECOND_US)


def test_one_step_of_a_minute_does_not_hold_up_idle_time_for_minutes() -> None:
    attribution = begun()
    compute(attribution, 0, 60 * SECOND_US)
    attribution.rest(BEGAN_US + 90 * SECOND_US)
    assert attribution.totals.idle_us == 30 * SECOND_US - REST_LAG_US_MAX


def test_what_is_missing_is_not_idle_until_a_step_says_how_long_that_was() -> None:
    attribution = begun()
    attribution.take(Lost("garbage"))
    attribution.rest(BEGAN_US + 60 * SECOND_US)
    assert attribution.totals.wall_us == 0


def test_up_to_when_time_is_in_an_account_is_never_before_where_that_of_before_ended() -> None:
    attribution = begun(account_from_us=BEGAN_US + 50 * SECOND_US)
    assert attribution.accounted_us == BEGAN_US + 50 * SECOND_US
    attribution.rest(BEGAN_US + 60 * SECOND_US)
    assert attribution.accounted_us == BEGAN_US + 60 * SECOND_US - REST_LAG_US
    assert attribution.totals.wall_us == 10 * SECOND_US - REST_LAG_US


def test_of_several_engines_capacity_is_wall_time_times_accelerators() -> None:
    engines = [
        (4, Totals(20, wall_us=100, capacity_us=400, busy_us=390)),
        (2, Totals(30, wall_us=97, capacity_us=194, busy_us=0)),
    ]
    both = together(engines)
    assert (both.until_us, both.wall_us, both.capacity_us, both.busy_us, both.idle_us) == (30, 99, 594, 390, 204)
    assert (together(engines[:1]), together([])) == (engines[0][1], Totals())
    assert together([(0, Totals(5, losses=1))]) == Totals(5, losses=1)
