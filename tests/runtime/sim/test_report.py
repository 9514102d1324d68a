"""A run in numbers: exact where it can be, with intervals that hold."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pytest

from runtime.sim.config import EngineConfig
from runtime.sim.deployment import Deployment
from runtime.sim.estimates import Estimate, Resamples, weighted_spread
from runtime.sim.report import Slo, good_requests, over_seeds, report
from runtime.sim.simulation import simulate
from runtime.step_time import StepTime
from runtime.workload.port import Arrival
from tests.runtime.sim.scenarios import Listed

DEPLOYMENT = Deployment(
    EngineConfig(block_size=4, num_blocks=64, max_model_len=128, max_num_seqs=4, max_num_batched_tokens=64),
    StepTime(1_000, 0, 0, 0, 0, 0),
    accelerators=2,
)
SPACED = Listed([Arrival(at * 100_000, 10, 1 + at, tuple(range(2))) for at in range(5)])


def test_numbers_are_those_of_the_columns() -> None:
    """Five requests, each alone: 1 to 5 steps of a millisecond; all but the first find their first two blocks."""
    run = simulate(SPACED, DEPLOYMENT)
    told = report(run, Slo(e2e_us=3_000))
    assert (told.requests, told.finished, told.refused, told.steps) == (5, 5, 0, 15)
    assert (told.prompt_tokens, told.output_tokens, told.cached_tokens) == (50, 15, 4 * 8)
    assert told.duration_us == 405_000
    assert told.busy_gpu_us == 2 * 15_000
    assert told.busy_gpu_us + told.idle_gpu_us == 2 * told.duration_us
    latencies, rates = told.latencies, told.rates
    assert latencies.ttft_us is not None
    assert latencies.e2e_us is not None
    assert rates is not None
    assert rates.goodput_per_s is not None
    assert rates.good_share is not None
    assert latencies.ttft_us.p99.value == 1_000
    assert latencies.e2e_us.mean.value == 3_000
    assert rates.hit_rate is not None
    assert rates.hit_rate.value == pytest.approx(32 / 50)
    assert rates.gpu_us_per_token.value == pytest.approx(30_000 / 65)
    assert rates.good_share.value == pytest.approx(3 / 5)
    assert rates.goodput_per_s.value == pytest.approx(3 / 0.405)
    assert json.loads(json.dumps(asdict(told)))["latencies"]["e2e_us"]["mean"]["value"] == 3_000


def test_the_same_run_is_told_the_same_way() -> None:
    assert report(simulate(SPACED, DEPLOYMENT)) == report(simulate(SPACED, DEPLOYMENT))


def test_what_was_refused_is_offered_and_not_good() -> None:
    deployment = replace(DEPLOYMENT, engine=replace(DEPLOYMENT.engine, max_waiting=1))
    run = simulate(Listed([Arrival(0, 4, 2)] * 4), deployment)
    assert good_requests(run, Slo()).sum() == run.finished.sum() == 1
    told = report(run, Slo())
    assert told.refusals == {"queue_full": told.refused} == {"queue_full": 3}
    assert told.rates is not None
    assert told.rates.good_share is not None
    assert told.rates.good_share.value == 0.25


class Nobody:
    """A routing policy that sends requests nowhere."""

    def choose(self, loads: Sequence[int], blocks: Sequence[int]) -> int:
        return -1


def test_every_refusal_has_a_reason() -> None:
    """One request is longer than the context; and a policy may take none at all."""
    long = Listed([Arrival(0, 4, 2), Arrival(0, 120, 9)])
    assert report(simulate(long, DEPLOYMENT)).refusals == {"context_exceeded": 1}
    nowhere = report(simulate(long, replace(DEPLOYMENT, replicas=2, routing=Nobody)))
    assert (nowhere.refusals, nowhere.refused) == ({"not_routed": 2}, 2)
    both = over_seeds([report(simulate(long, DEPLOYMENT)), nowhere])
    assert both.refusals == {"context_exceeded": 1, "not_routed": 2}


def test_what_is_not_drawn_again_has_no_interval_and_what_nobody_knows_no_value() -> None:
    """When requests come is given; and without blocks nobody knows which prompts begin alike."""
    told = report(simulate(Listed([Arrival(0, 4, 2), Arrival(500, 4, 2)]), DEPLOYMENT)).rates
    assert told is not None
    assert (told.requests_per_s.low, told.requests_per_s.high, told.hit_rate) == (None, None, None)
    assert told.requests_per_s.value > 0
    assert told.output_tokens_per_s.low is not None


def test_each_bound_of_an_slo_counts() -> None:
    run = simulate(Listed([Arrival(0, 4, 5), Arrival(0, 4, 1)]), DEPLOYMENT)
    assert good_requests(run, Slo(ttft_us=999)).tolist() == [False, False]
    assert good_requests(run, Slo(tpot_us=999)).tolist() == [False, True]
    assert good_requests(run, Slo(tpot_us=1_000)).tolist() == [True, True]
    assert good_requests(run, Slo(e2e_us=4_999)).tolist() == [False, True]


def test_a_run_of_nothing_is_told_without_numbers() -> None:
    told = report(simulate(Listed([]), DEPLOYMENT), Slo(ttft_us=1))
    assert (told.requests, told.rates, told.usage, told.latencies.ttft_us) == (0, None, None, None)


def test_weighted_percentiles_are_those_of_the_values_written_out() -> None:
    random = np.random.default_rng(1)
    values, weights = random.integers(0, 5_000, 3_000), random.integers(1, 9, 3_000)
    spread = weighted_spread(values, weights, 50, 0)
    assert spread is not None
    written = np.sort(np.repeat(values, weights))
    assert spread.mean.value == pytest.approx(written.mean())
    for percent, estimate in ((50, spread.p50), (90, spread.p90), (95, spread.p95), (99, spread.p99)):
        assert estimate.value == written[int(np.ceil(percent / 100 * len(written))) - 1]
        assert estimate.low <= estimate.value <= estimate.high


def test_intervals_of_independent_rows_hold_their_mean_as_often_as_they_say() -> None:
    """Of 200 samples of 300 values each, about 95 in 100 intervals hold the mean that they were drawn with."""
    random = np.random.default_rng(7)
    held = 0
    for sample in range(200):
        spread = Resamples(300, 100, sample).spread(random.exponential(10.0, 300))
        assert spread is not None
        held += spread.mean.low <= 10.0 <= spread.mean.high
    assert 170 <= held <= 200


def test_rows_that_depend_on_their_neighbours_have_wider_intervals() -> None:
    random = np.random.default_rng(3)
    steps = random.normal(size=4_000)
    drifting = np.convolve(steps, np.ones(20), "valid")
    alone, together = (
        Resamples(len(values), 200, 0).spread(values) for values in (random.permutation(drifting), drifting)
    )
    assert alone is not None
    assert together is not None
    assert together.mean.high - together.mean.low > 2 * (alone.mean.high - alone.mean.low)


def test_runs_that_differ_in_their_seed_are_told_as_one() -> None:
    runs = [simulate(Listed([Arrival(0, 4, outputs)]), DEPLOYMENT) for outputs in (2, 3, 4)]
    told = over_seeds([report(run) for run in runs])
    assert told.output_tokens == 9
    assert told.latencies.e2e_us is not None
    mean = told.latencies.e2e_us.mean
    assert mean.value == 3_000
    # Student's 97.5th percentile with two degrees of freedom is 4.303.
    assert mean.high - mean.value == pytest.approx(4.303 * 1_000 / 3**0.5, rel=1e-3)
    with pytest.raises(ValueError, match="two runs"):
        Estimate.of_runs([1.0])
