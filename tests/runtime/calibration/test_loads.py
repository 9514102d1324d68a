"""The designed loads fit every engine, follow from the seed, and ask for what they are named for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.calibration.engine import CalibratedEngine, Shape
from runtime.calibration.errors import CalibrationError
from runtime.calibration.loads import (
    Load,
    closed,
    conversations,
    held_out_mixes,
    opened,
    single_loads,
    training_mix,
    warming,
)

TINY = Shape(max_model_len=4096, max_num_seqs=16, block_size=32, num_blocks=4096)


def every_load(shape: Shape, seed: int = 0) -> list[Load]:
    loads = [warming(shape), *single_loads(shape), conversations(shape, 5, 4, seed)]
    for mix in (training_mix(shape), *held_out_mixes(shape)):
        loads += [closed(shape, mix, 3, 4, seed), opened(shape, mix, 20.0, 85, 5.0, seed)]
    return loads


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(256, 40_000),
    seats=st.integers(1, 300),
    size=st.sampled_from((8, 16, 32, 128)),
    spare=st.integers(0, 5_000),
)
def test_every_request_fits_every_engine(length: int, seats: int, size: int, spare: int) -> None:
    """Prompt and answer within the context, and blocks no more than the prompt and the answer need."""
    shape = Shape(length, seats, size, -(-length // size) + spare)
    for load in every_load(shape):
        assert load.arrivals
        for index, each in enumerate(load.arrivals):
            assert each.prompt_tokens >= 1
            assert each.output_tokens >= 1
            assert each.prompt_tokens + each.output_tokens <= length
            assert each.at_us >= 0
            assert -1 <= each.after < index
            assert len(each.blocks) <= -(-(each.prompt_tokens + each.output_tokens) // size)


def test_the_seed_makes_the_loads() -> None:
    assert every_load(TINY, 1) == every_load(TINY, 1)
    assert every_load(TINY, 1) != every_load(TINY, 2)


def test_no_load_of_one_kind_has_the_name_of_another() -> None:
    names = [load.name for load in every_load(TINY)]
    assert len(set(names)) == len(names)


def test_prefills_come_one_at_a_time_up_to_the_longest() -> None:
    load = single_loads(TINY)[0]
    assert [each.after for each in load.arrivals] == [*range(-1, len(load.arrivals) - 1)]
    lengths = {each.prompt_tokens for each in load.arrivals}
    assert (min(lengths), max(lengths)) == (8, 4096 - 2)
    assert len(lengths) > 10


def test_decodes_come_in_batches_of_every_size() -> None:
    """Batches of 1, 2, 4, 8 and 16, each after the one before, over short and over long contexts."""
    short, long = single_loads(TINY)[1:3]
    for load in (short, long):
        sizes = [len([each for each in load.arrivals if each.after == at]) for at in (-1, 0, 2, 6, 14)]
        assert sizes == [1, 2, 4, 8, 16]
    assert max(each.prompt_tokens for each in short.arrivals) == 16
    assert max(each.prompt_tokens for each in long.arrivals) == 2048


def test_long_decodes_leave_a_quarter_of_the_cache_free() -> None:
    """A small cache is not overrun, for preemptions would be measured instead of decodes."""
    small = Shape(4096, 16, 32, 130)
    long = single_loads(small)[2]
    last = [each for each in long.arrivals if each.after == 14]
    assert sum(each.prompt_tokens + each.output_tokens for each in last) <= small.tokens * 3 // 4


def test_hits_share_more_of_the_prefix_or_less() -> None:
    load = single_loads(TINY)[3]
    longest = load.arrivals[0].blocks
    assert len({len(each.blocks) for each in load.arrivals}) >= 5
    assert all(each.blocks == longest[: len(each.blocks)] for each in load.arrivals)


def test_a_closed_load_has_as_many_users_as_it_says() -> None:
    load = closed(TINY, training_mix(TINY), 5, 4, 0)
    assert [each.after for each in load.arrivals[:7]] == [-1] * 5 + [0, 1]
    assert not load.saturated
    assert closed(TINY, training_mix(TINY), 17, 2, 0).saturated


def test_an_open_load_has_its_share_of_the_rate() -> None:
    load = opened(TINY, training_mix(TINY), 100.0, 60, 20.0, 0)
    assert len(load.arrivals) == 1_200
    assert load.arrivals[-1].at_us == pytest.approx(20e6, rel=0.1)
    assert not load.saturated
    assert opened(TINY, training_mix(TINY), 100.0, 115, 1.0, 0).saturated


def test_a_conversation_goes_on_from_what_was_said() -> None:
    """Each turn's blocks begin with those of the turn before, whose answer they go over; all share the beginning."""
    load = conversations(TINY, 3, 4, 0)
    for each in load.arrivals:
        if each.after >= 0:
            before = load.arrivals[each.after]
            assert each.blocks[: len(before.blocks)] == before.blocks
            assert each.prompt_tokens > before.prompt_tokens + before.output_tokens
    assert len({each.blocks[0] for each in load.arrivals}) == 1
    assert len({each.blocks[-1] for each in load.arrivals[:3]}) == 3


@pytest.mark.parametrize("facts", [{}, {"max_model_len": 4096}, {"max_model_len": True, "max_num_seqs": 16}])
def test_an_engine_that_does_not_say_its_knobs_cannot_be_sized(facts: dict[str, int]) -> None:
    with pytest.raises(CalibrationError, match="does not say the knob"):
        Shape.of(CalibratedEngine("vllm 0.32.0", "m", 16, 100, 1, facts))


def test_an_engine_of_no_context_is_refused() -> None:
    with pytest.raises(CalibrationError, match="at least 256 tokens"):
        Shape(128, 16, 16, 100)
