"""What a calibration saw is remembered by feature, and a run beyond it is told by how much."""

from __future__ import annotations

from runtime.calibration.drive import Run as DrivenRun
from runtime.calibration.drive import Sample
from runtime.calibration.loads import Load
from runtime.calibration.observe import Step
from runtime.calibration.ranges import BATCH, CONTEXT, PREFILL_TOKENS, Ranges
from runtime.calibration.trials import Trial
from runtime.sim.config import EngineConfig
from runtime.sim.deployment import Deployment
from runtime.sim.simulation import simulate
from runtime.step_time import StepWork
from runtime.workload.port import Arrival

SEEN = Ranges.of([(PREFILL_TOKENS, 100), (PREFILL_TOKENS, 400), (PREFILL_TOKENS, 0), (BATCH, 8), (CONTEXT, 1_000)])


def test_a_feature_has_the_range_in_which_it_was_seen() -> None:
    """Nothing of a feature is not a value of it."""
    assert SEEN.spans == {PREFILL_TOKENS: (100, 400), BATCH: (8, 8), CONTEXT: (1_000, 1_000)}


def test_a_trial_tells_its_steps_and_its_requests() -> None:
    steps = tuple(Step(0, 10, work, 1, 1, 0, -1, 1) for work in (StepWork(2, 300, 9, 3, 90), StepWork(0, 0, 0, 5, 80)))
    run = DrivenRun("a", "k", 0, (Sample(0, 0, 0, 50, 0, ((5, 1), (9, 7))),), 0)
    seen = Ranges.of_trials([Trial(Load("a", 16, (Arrival(0, 50, 7),)), run, steps, {})])
    assert seen.spans == {PREFILL_TOKENS: (300, 300), BATCH: (5, 5), CONTEXT: (57, 57)}


def test_a_simulation_tells_what_it_did() -> None:
    """Two requests at once, the longer of 90 and 30 tokens, whose prompts one step computes."""
    engine = EngineConfig(max_model_len=256, max_num_batched_tokens=512, num_blocks=64)
    load = Load("a", 16, (Arrival(0, 90, 30), Arrival(0, 50, 10)))
    done = Ranges.of_run(simulate(load, Deployment(engine)))
    assert done.spans[CONTEXT] == (60, 120)
    assert done.spans[PREFILL_TOKENS] == (140, 140)
    assert done.spans[BATCH][1] == 2


def test_what_lies_within_is_not_told() -> None:
    """Less than was seen is between that and a step without it."""
    assert SEEN.excesses(Ranges.of([(PREFILL_TOKENS, 50), (BATCH, 8)])) == []


def test_what_lies_beyond_is_told_the_farthest_first() -> None:
    told = SEEN.excesses(Ranges.of([(PREFILL_TOKENS, 500), (BATCH, 16)]))
    assert [(each.feature, each.value, each.percent) for each in told] == [(BATCH, 16, 100), (PREFILL_TOKENS, 500, 25)]
    assert str(told[1]) == "prefill tokens in a step 500 (25 % beyond 100 to 400)"


def test_what_was_never_seen_is_beyond() -> None:
    """A calibration of decodes says nothing of prefills."""
    told = Ranges.of([(BATCH, 8)]).excesses(Ranges.of([(PREFILL_TOKENS, 10)]))
    assert [(each.feature, each.low, each.high) for each in told] == [(PREFILL_TOKENS, 0, 0)]
