"""The discrete-event simulation: what its clients see, who follows whom, what is refused, what is found out."""

from collections.abc import Hashable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.eviction.lru import LruEviction
from runtime.sim.config import EngineConfig
from runtime.sim.content import BlockMap, known_tokens
from runtime.sim.deployment import Deployment, Overhead
from runtime.sim.engine import Engine
from runtime.sim.front_end import FrontEnd
from runtime.sim.invariants import BlocksLost, HitUncomputed, TimeReversed
from runtime.sim.job import Job
from runtime.sim.recorder import REFUSED
from runtime.sim.request import SimRequest
from runtime.sim.simulation import simulate
from runtime.sim.step import Joined, Step
from runtime.sim.witness import Witness
from runtime.step_time import StepTime
from runtime.workload.port import Arrival, WorkloadError
from tests.runtime.sim.scenarios import LeastLoad, Listed

SMALL = EngineConfig(block_size=4, num_blocks=64, max_model_len=128, max_num_seqs=4, max_num_batched_tokens=64)
TICK = StepTime(1_000, 0, 0, 0, 0, 0)
PLAIN = Deployment(SMALL, TICK)


def test_one_request_takes_its_steps_and_what_lies_around_them() -> None:
    """Ten prompt tokens and three output tokens: three steps of 1 ms, two gaps, the way in and the way out."""
    overhead = Overhead(arrival_us=300, arrival_token_ns=10_000, gap_us=50, output_us=20, output_token_ns=5_000)
    run = simulate(Listed([Arrival(7, 10, 3)]), replace(PLAIN, overhead=overhead))
    seen = {name: int(column[0]) for name, column in run.requests.items()}
    assert seen["arrival_us"] == 7
    assert seen["queued_us"] == seen["scheduled_us"] == 7 + 300 + 100
    assert seen["engine_first_us"] == 1_407
    assert seen["first_us"] == 1_407 + 25
    assert seen["engine_end_us"] == 1_407 + 2 * 1_050
    assert seen["end_us"] == 1_407 + 2 * 1_050 + 25
    assert run.gaps["gap_us"].tolist() == [1_050, 1_050]
    assert run.steps["busy_us"].sum() == 3_000


def test_a_front_end_that_is_slower_than_the_steps_falls_behind() -> None:
    run = simulate(Listed([Arrival(0, 4, 11)]), replace(PLAIN, overhead=Overhead(output_us=1_500)))
    assert run.requests["engine_end_us"][0] == 11_000
    assert run.requests["end_us"][0] == 1_000 + 11 * 1_500
    assert set(run.gaps["gap_us"].tolist()) == {1_500}


@given(
    gaps=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    output_us=st.integers(0, 40),
    token_ns=st.integers(0, 3_000),
    busy_us=st.integers(0, 200),
)
def test_many_outputs_pass_the_front_end_as_one_by_one(
    gaps: list[int], output_us: int, token_ns: int, busy_us: int
) -> None:
    ends_us = np.cumsum(gaps)
    one, many = (FrontEnd(Overhead(output_us=output_us, output_token_ns=token_ns)) for _ in range(2))
    assert one.pass_one(busy_us, 1) == many.pass_one(busy_us, 1)
    assert [one.pass_one(int(end_us), 5) for end_us in ends_us] == many.pass_many(ends_us, 5).tolist()
    assert one.pass_one(500, 2) == many.pass_one(500, 2)


def test_a_request_that_follows_another_comes_after_its_end() -> None:
    arrivals = [Arrival(0, 4, 5), Arrival(250, 8, 2, after=0), Arrival(0, 8, 2, after=1), Arrival(60_000, 4, 1)]
    run = simulate(Listed(arrivals), replace(PLAIN, overhead=Overhead(output_us=10)))
    columns = run.requests
    assert columns["arrival_us"].tolist() == [0, columns["end_us"][0] + 250, columns["end_us"][1], 60_000]


def test_a_turn_finds_what_the_turns_before_it_computed_answers_included() -> None:
    """The second prompt is the first, its answer of 9 tokens and 7 more; an answer's last token is not computed."""
    ids = tuple(range(100, 120))
    arrivals = [Arrival(0, 11, 9, ids[:5]), Arrival(0, 27, 2, ids[:7], after=0)]
    run = simulate(Listed(arrivals), PLAIN)
    assert run.requests["cached_tokens"].tolist() == [0, 16]


def test_followers_of_a_refused_request_come_all_the_same() -> None:
    arrivals = [Arrival(0, 128, 5), Arrival(10, 4, 1, after=0)]
    run = simulate(Listed(arrivals), PLAIN)
    assert run.requests["status"].tolist() == [REFUSED, 1]
    assert run.requests["arrival_us"].tolist() == [0, 10]


def test_a_full_queue_refuses() -> None:
    deployment = replace(PLAIN, engine=replace(SMALL, max_num_seqs=1, max_waiting=2))
    run = simulate(Listed([Arrival(0, 4, 4)] * 5), deployment)
    assert run.refused.tolist() == [False, False, True, True, True]


def test_replicas_share_the_load_that_the_router_sees() -> None:
    deployment = Deployment(SMALL, TICK, routing=LeastLoad, replicas=3)
    run = simulate(Listed([Arrival(0, 4, 4)] * 6), deployment)
    assert run.requests["replica"].tolist() == [0, 1, 2, 0, 1, 2]
    assert len(set(run.requests["end_us"].tolist())) == 1


def test_scheduling_ahead_delays_an_arrival_by_a_step_and_a_seat_by_another() -> None:
    """Both requests run at 1,000 us a step; the second comes while the first step runs."""
    arrivals = Listed([Arrival(0, 4, 10), Arrival(500, 4, 2)])
    plain = simulate(arrivals, PLAIN).requests["scheduled_us"].tolist()
    ahead = simulate(arrivals, replace(PLAIN, engine=replace(SMALL, async_scheduling=True))).requests
    assert plain == [0, 1_000]
    assert ahead["scheduled_us"].tolist() == [0, 2_000]
    assert ahead["end_us"].tolist() == [10_000, 4_000]
    alone = replace(SMALL, max_num_seqs=1)
    seats = Listed([Arrival(0, 4, 2), Arrival(0, 4, 2)])
    assert simulate(seats, replace(PLAIN, engine=alone)).requests["scheduled_us"].tolist() == [0, 2_000]
    alone = replace(alone, async_scheduling=True)
    assert simulate(seats, replace(PLAIN, engine=alone)).requests["scheduled_us"].tolist() == [0, 2_000]


def test_steps_of_one_replica_never_overlap_and_prompts_of_any_length_are_computed_once() -> None:
    arrivals = Listed([Arrival(at * 700, 1 + at * 7 % 90, at % 9) for at in range(60)])
    run = simulate(arrivals, PLAIN)
    begins, ends = run.steps["begin_us"].tolist(), run.steps["end_us"].tolist()
    assert all(later >= end for end, later in zip(ends, begins[1:], strict=False))
    assert run.steps["prefill_tokens"].sum() == run.requests["prompt_tokens"].sum()


@pytest.mark.parametrize(
    ("arrivals", "complaint"),
    [
        ([Arrival(10, 4, 1), Arrival(9, 4, 1)], "comes before"),
        ([Arrival(0, 4, 1, after=0)], "request 0 cannot be"),
        ([Arrival(0, 0, 1)], "request 0 cannot be"),
        ([Arrival(0, 4, -1)], "request 0 cannot be"),
    ],
)
def test_a_workload_that_cannot_be_is_refused(arrivals: list[Arrival], complaint: str) -> None:
    with pytest.raises(WorkloadError, match=complaint):
        simulate(Listed(arrivals), PLAIN)


def test_an_empty_workload_is_an_empty_run() -> None:
    run = simulate(Listed([]), PLAIN)
    assert len(run.finished) == 0
    assert len(run.digest()) == 64


@pytest.mark.parametrize(
    ("block_tokens", "block_size", "expected"),
    [(8, 4, [20, 21, 22, 23, 24]), (4, 4, [10, 11, 12]), (2, 4, [11]), (1, 2, [11])],
)
def test_blocks_of_a_workload_become_those_of_the_engine(
    block_tokens: int, block_size: int, expected: list[int]
) -> None:
    """Three ids of a prompt of 22 tokens: of blocks of eight the third is cut short, and fills one of four."""
    arrival = Arrival(0, 22, 5, (10, 11, 12))
    assert list(BlockMap(block_tokens, block_size).hashes(arrival)) == expected


def test_a_prompt_that_ends_within_its_last_block_says_nothing_of_the_output() -> None:
    assert known_tokens(Arrival(0, 10, 20, (1, 2, 3)), 4) == 10
    assert known_tokens(Arrival(0, 10, 20, (1, 2, 3, 4)), 4) == 16
    assert known_tokens(Arrival(0, 10, 3, (1, 2, 3, 4, 5)), 4) == 13


def test_blocks_that_do_not_divide_each_other_are_refused() -> None:
    with pytest.raises(WorkloadError, match="set a block_size that divides"):
        BlockMap(512, 48)


def test_several_replicas_need_a_router() -> None:
    with pytest.raises(ValueError, match="routing"):
        Deployment(replicas=2)
    with pytest.raises(ValueError, match="gap_us"):
        Overhead(gap_us=-1)


def test_a_hit_that_nobody_computed_is_found_out() -> None:
    """A request is said to have found twelve tokens, of which others have computed only eight."""
    witness, engine = Witness(4), Engine(SMALL, TICK)
    for request_id in (0, 1):
        witness.expect(request_id, Arrival(0, 16, 1, (1, 2, 3, 4)))
    first, second = (Job(SimRequest(request_id, 16, 1), (0, request_id), (), 0) for request_id in (0, 1))
    step = Step()
    step.joined, step.chunks = [Joined(first, 0, 0), Joined(second, 4, 0)], [(first, 4), (second, 4)]
    witness.observe(step, engine)
    third = Job(SimRequest(2, 16, 1), (0, 2), (), 0)
    witness.expect(2, Arrival(0, 16, 1, (1, 2, 3, 4)))
    step.joined, step.chunks = [Joined(third, 12, 0)], [(third, 4)]
    with pytest.raises(HitUncomputed, match="request 2 found 12 tokens"):
        witness.observe(step, engine)


def test_a_run_whose_times_are_out_of_order_is_found_out() -> None:
    run = simulate(Listed([Arrival(0, 4, 2)]), PLAIN)
    columns = {name: column.copy() for name, column in run.requests.items()}
    columns["engine_first_us"][0] = 5_000
    with pytest.raises(TimeReversed, match="request 0 has its engine_end_us before its engine_first_us"):
        replace(run, requests=columns).check_order()


class Forgetful(LruEviction):
    """Forgets what was released, so that its blocks are lost."""

    def release(self, key: Hashable, now: int) -> None:
        pass


def test_blocks_that_a_policy_loses_are_found_out() -> None:
    deployment = replace(PLAIN, eviction=lambda blocks: Forgetful())
    with pytest.raises(BlocksLost, match="blocks are held when nothing is left"):
        simulate(Listed([Arrival(0, 16, 4, (1, 2, 3, 4))]), deployment)
