"""Random scenarios: every run checks its invariants, is the same twice, and the same step by step.

`BURSAR_SCENARIOS` says how many; each seed is its own scenario.
"""

import os
from collections import Counter
from random import Random

import numpy as np
import pytest

from runtime.sim.run import Run
from runtime.sim.simulation import simulate
from tests.runtime.sim.scenarios import deployment_of, workload_of

SCENARIOS = int(os.environ.get("BURSAR_SCENARIOS", "100"))
SEEDS_PER_TEST = 20


def run_of(seed: int, *, jumping: bool = True) -> Run:
    """A scenario, made anew and simulated: an invariant that does not hold raises."""
    random = Random(seed)
    return simulate(workload_of(random), deployment_of(random), jumping=jumping)


def gaps(run: Run) -> Counter[int]:
    """How many tokens came how long after the one before them."""
    counted: Counter[int] = Counter()
    for gap_us, tokens in zip(run.gaps["gap_us"].tolist(), run.gaps["tokens"].tolist(), strict=True):
        counted[gap_us] += tokens
    return counted


@pytest.mark.parametrize("first", range(0, SCENARIOS, SEEDS_PER_TEST))
def test_no_invariant_is_violated_and_nothing_depends_on_how_it_is_computed(first: int) -> None:
    for seed in range(first, min(first + SEEDS_PER_TEST, SCENARIOS)):
        run, stepped = run_of(seed), run_of(seed, jumping=False)
        assert run.digest() == run_of(seed).digest(), seed
        for name, column in run.requests.items():
            assert np.array_equal(column, stepped.requests[name]), (seed, name)
        assert gaps(run) == gaps(stepped), seed
        assert set(stepped.steps["steps"].tolist()) <= {1}
        for name in ("busy_us", "steps", "prefill_tokens", "decode_tokens"):
            assert run.steps[name].sum() == stepped.steps[name].sum(), (seed, name)
        finished = run.finished
        assert finished.sum() + run.refused.sum() == len(finished)
        spoken = np.maximum(run.requests["output_tokens"][finished] - 1, 0).sum()
        assert run.gaps["tokens"].sum() == spoken, seed


def test_the_scenarios_reach_what_they_are_for() -> None:
    """Among the first hundred are refusals, preemptions, hits, jumps, and replicas that share the work."""
    runs = [run_of(seed) for seed in range(100)]
    assert sum(bool(run.refused.any()) for run in runs) > 10
    assert sum(bool(run.requests["preemptions"].any()) for run in runs) > 10
    assert sum(bool(run.requests["cached_tokens"].any()) for run in runs) > 10
    assert sum(bool((run.steps["steps"] > 1).any()) for run in runs) > 50
    assert sum(len(set(run.steps["replica"].tolist())) > 1 for run in runs) > 10
