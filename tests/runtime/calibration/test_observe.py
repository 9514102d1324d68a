"""What each step computed, and when each request got its tokens, worked out from an engine's telemetry."""

from __future__ import annotations

import pytest

from runtime.calibration.errors import EngineLost
from runtime.calibration.observe import Observation
from runtime.step_time import StepWork
from runtime.telemetry.records import Join, Leave, Lost, Open, Record, State, Step


def opened(session: str = "s", lost: int = 0) -> Open:
    return Open("engine-0", session, 0, 0, "vllm 0.32", "m", 1, 16, 64, lost)


def observed(*records: Record) -> Observation:
    found = Observation()
    found.take([opened(), State(()), *records])
    return found


def test_a_prompt_in_two_chunks_gives_its_token_with_the_second() -> None:
    seen = observed(
        Join(0, "a", 10, 4, 30),
        Step(1_000, 1_100, 1, 1, 0, ((0, 4),)),
        Step(1_200, 1_300, 1, 1, 0, ((0, 2),)),
        Step(1_400, 1_500, 1, 1, 0, ()),
    )
    assert [step.work for step in seen.steps] == [
        StepWork(1, 4, 4 * 4 + 8, 0, 0),
        StepWork(1, 2, 2 * 8 + 2, 0, 0),
        StepWork(0, 0, 0, 1, 10),
    ]
    life = seen.lives["a"]
    assert (life.prompt_tokens, life.cached_tokens) == (10, 4)
    assert (life.arrived_us, life.begin_us) == (970, 1_000)
    assert life.emitted_us == [1_300, 1_500]
    assert [step.emitted for step in seen.steps] == [0, 1, 1]


def test_those_that_decode_are_the_ones_that_no_step_lists() -> None:
    """One decodes beside a prefill; one that was not scheduled computes nothing, and its context stands still."""
    seen = observed(
        Join(0, "a", 5, 0, 0),
        Step(0, 10, 1, 1, 0, ((0, 5),)),
        Join(1, "b", 7, 0, 0),
        Step(20, 30, 2, 2, 0, ((1, 7),)),
        Step(40, 50, 2, 2, 0, ((1, 0),)),
        Step(60, 70, 2, 2, 0, ()),
    )
    assert [step.work for step in seen.steps[1:]] == [
        StepWork(1, 7, 24, 1, 5),
        StepWork(0, 0, 0, 1, 6),
        StepWork(0, 0, 0, 2, 7 + 7),
    ]
    assert seen.lives["a"].emitted_us == [10, 30, 50, 70]
    assert seen.lives["b"].emitted_us == [30, 70]


def test_a_preempted_request_computes_its_answer_again_and_goes_on() -> None:
    """Prompt 4 and three tokens of answer are computed anew before the fourth comes."""
    seen = observed(
        Join(0, "a", 4, 0, 5),
        Step(0, 10, 1, 1, 0, ((0, 4),)),
        Step(10, 20, 1, 1, 0, ()),
        Step(20, 30, 1, 1, 0, ()),
        Leave(0, "preempted", 3),
        Join(0, "a", 4, 0, 5),
        Step(40, 50, 1, 1, 0, ((0, 4),)),
        Step(50, 60, 1, 1, 0, ((0, 3),)),
        Step(60, 70, 1, 1, 0, ()),
    )
    life = seen.lives["a"]
    assert life.preemptions == 1
    assert life.emitted_us == [10, 20, 30, 60, 70]
    assert life.begin_us == 0


def test_a_gap_is_counted_only_while_the_engine_had_work() -> None:
    seen = observed(
        Join(0, "a", 4, 0, 0),
        Step(0, 10, 1, 1, 0, ((0, 4),)),
        Step(13, 20, 1, 1, 0, ()),
        Leave(0, "finished", 2),
        Join(0, "b", 4, 0, 0),
        Step(500, 510, 1, 1, 0, ((0, 4),)),
    )
    assert [step.gap_us for step in seen.steps] == [-1, 3, -1]


def test_a_new_observation_forgets_the_steps_and_keeps_the_batch() -> None:
    seen = observed(Join(0, "a", 4, 0, 0), Step(0, 10, 1, 1, 0, ((0, 4),)))
    seen.begin()
    seen.take([Step(20, 30, 1, 1, 0, ())])
    assert [step.work for step in seen.steps] == [StepWork(0, 0, 0, 1, 4)]
    assert seen.lives == {}


def test_a_segments_state_stands_for_what_was_not_seen() -> None:
    """Who follows from the middle knows the contexts; who followed all along is told nothing new."""
    late = Observation()
    late.take([opened(), State(((3, "a", 40),)), Step(0, 10, 1, 1, 0, ())])
    assert late.steps[0].work == StepWork(0, 0, 0, 1, 40)
    late.take([opened(), State(((3, "a", 41),)), Step(10, 20, 1, 1, 0, ())])
    assert late.steps[1].work == StepWork(0, 0, 0, 1, 41)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (opened(session="another"), "started again in the middle"),
        (opened(lost=3), "could not write some of its telemetry"),
        (Lost("segments", 2), "is missing \\(segments\\)"),
    ],
)
def test_what_is_missing_is_not_passed_over(record: Record, said: str) -> None:
    with pytest.raises(EngineLost, match=said):
        observed(record)


@pytest.mark.parametrize("record", [Step(0, 1, 1, 1, 0, ((9, 1),)), Leave(9, "finished", 1)])
def test_telemetry_that_contradicts_itself_is_refused(record: Record) -> None:
    """A handle that nobody has."""
    with pytest.raises(EngineLost, match="contradicts itself"):
        observed(record)
