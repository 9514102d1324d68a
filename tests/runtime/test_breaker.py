"""The breaker opens after failures in a row, lets one trial through at a time, and closes on a success."""

import pytest

from runtime.breaker import Breaker


@pytest.fixture
def breaker() -> Breaker:
    return Breaker(failures_max=3, reset_s=10.0)


def fail(breaker: Breaker, now_s: float, times: int = 1) -> None:
    for _ in range(times):
        breaker.call(now_s)
        breaker.failed(now_s)


def test_it_stays_closed_until_the_last_failure_allowed(breaker: Breaker) -> None:
    fail(breaker, 0.0, times=2)
    assert breaker.can_call(0.0)
    assert not breaker.is_open
    fail(breaker, 1.0)
    assert breaker.is_open
    assert not breaker.can_call(1.0)


def test_failures_that_are_not_in_a_row_do_not_open_it(breaker: Breaker) -> None:
    for _ in range(5):
        fail(breaker, 0.0, times=2)
        breaker.succeeded()
    assert not breaker.is_open


def test_after_its_rest_one_trial_decides(breaker: Breaker) -> None:
    fail(breaker, 0.0, times=3)
    assert not breaker.can_call(9.9)
    assert breaker.can_call(10.0)
    breaker.call(10.0)
    assert not breaker.can_call(10.1)
    breaker.succeeded()
    assert breaker.can_call(10.2)
    assert not breaker.is_open


def test_a_trial_that_fails_opens_it_anew(breaker: Breaker) -> None:
    fail(breaker, 0.0, times=3)
    fail(breaker, 10.0)
    assert not breaker.can_call(19.9)
    assert breaker.can_call(20.0)


def test_a_trial_that_never_reports_lapses(breaker: Breaker) -> None:
    fail(breaker, 0.0, times=3)
    breaker.call(10.0)
    assert not breaker.can_call(19.9)
    assert breaker.can_call(20.0)
