"""Rounds that take turns."""

from collections.abc import Callable

import pytest

from bench.comparison import Cost, MergedChunksError, take_turns


def side(log: list[str], name: str, costs: list[float | None]) -> Callable[[], Cost]:
    """A server whose rounds cost what is listed, `None` being one with merged chunks."""
    left = iter(costs)

    def measure() -> Cost:
        log.append(name)
        cost_us = next(left)
        if cost_us is None:
            raise MergedChunksError(name)
        return Cost(worker_us=cost_us, all_us=2 * cost_us)

    return measure


def test_the_median_round_is_the_result_so_that_one_noisy_round_changes_nothing() -> None:
    log: list[str] = []
    ours, reference = take_turns(side(log, "o", [10, 11, 900]), side(log, "r", [5, 400, 6]), rounds=3)
    assert (ours, reference) == (Cost(11, 22), Cost(6, 12))


def test_each_goes_first_in_every_other_round() -> None:
    log: list[str] = []
    take_turns(side(log, "o", [1, 1, 1]), side(log, "r", [1, 1, 1]), rounds=3)
    assert "".join(log) == "orroor"


def test_a_round_with_merged_chunks_counts_for_neither_side() -> None:
    log: list[str] = []
    ours, reference = take_turns(side(log, "o", [10, 99, 12, 14]), side(log, "r", [5, None, 6, 7]), rounds=3)
    assert ours.worker_us in (12, 14)
    assert reference.worker_us == 6
    assert len(log) > 6


def test_chunks_merged_all_the_time_are_no_measurement() -> None:
    log: list[str] = []
    with pytest.raises(MergedChunksError):
        take_turns(side(log, "o", [None] * 9), side(log, "r", [1.0] * 9), rounds=3)
    assert log.count("o") == 4, "the attempts are bounded"
