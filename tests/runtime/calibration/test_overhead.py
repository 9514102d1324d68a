"""What passes around the steps is found again in what clients and telemetry say."""

from __future__ import annotations

from random import Random

import pytest

from runtime.calibration.drive import Run, Sample
from runtime.calibration.errors import Unfit
from runtime.calibration.loads import Load
from runtime.calibration.observe import Life, Step
from runtime.calibration.overhead import fit_overhead
from runtime.calibration.trials import Trial
from runtime.step_time import StepWork
from runtime.workload.port import Arrival

BEGIN_UNIX_US = 1_700_000_000_000_000
STEP_US = 4_000


class Truth:
    """An engine that serves batches one after another, each of requests that came together and leave together."""

    arrival_us, arrival_token_ns = 2_000, 500
    first_us = 800
    gap_us, gap_token_ns = 60, 10_000
    output_us, output_token_ns = 400, 120_000


def trial(seed: int, noise: float = 0.0) -> Trial:
    """A batch each second of 1, 1, 1, 2 or 8 requests, who get twenty tokens each."""
    random = Random(seed)
    samples: list[Sample] = []
    lives: dict[int, Life] = {}
    steps: list[Step] = []
    for second in range(60):
        size = (1, 1, 1, 2, 8)[second % 5]
        prompts = [random.randrange(10, 2_000) for _ in range(size)]
        sent_us = second * 1_000_000
        arrived = [
            sent_us + round((Truth.arrival_us + each * Truth.arrival_token_ns / 1_000) * shaken(random, noise))
            for each in prompts
        ]
        ends, now_us = [], max(arrived)
        for at in range(20):
            ends.append(now_us + STEP_US)
            gap_us = round((Truth.gap_us + size * Truth.gap_token_ns / 1_000) * shaken(random, noise))
            work = StepWork(size, sum(prompts), 0, 0, 0) if at == 0 else StepWork(0, 0, 0, size, 0)
            before_us = -1 if at == 0 else now_us - ends[-2]
            begin, end = BEGIN_UNIX_US + now_us, BEGIN_UNIX_US + ends[-1]
            steps.append(Step(begin, end, work, 1, size, 0, before_us, size))
            now_us = ends[-1] + gap_us
        for each, came_us in zip(prompts, arrived, strict=True):
            index = len(samples)
            emitted = [BEGIN_UNIX_US + end for end in ends]
            lives[index] = Life(each, BEGIN_UNIX_US + came_us, BEGIN_UNIX_US + max(arrived), 0, emitted)
            tokens = []
            for at, end in enumerate(ends):
                way_us = Truth.output_us + size * Truth.output_token_ns / 1_000 + (Truth.first_us if at == 0 else 0)
                tokens.append((end + round(way_us * shaken(random, noise)), at + 1))
            samples.append(Sample(index, sent_us, sent_us, each, 0, tuple(tokens)))
    run = Run("a", "k", BEGIN_UNIX_US, tuple(samples), 0)
    return Trial(Load("a", 16, (Arrival(0, 1, 1),)), run, tuple(steps), lives)


def shaken(random: Random, noise: float) -> float:
    return max(0.2, random.gauss(1, noise))


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_each_part_comes_back(noise: float) -> None:
    """What a first token needs longer is in the way to the engine, from where it delays that token the same."""
    found = fit_overhead([trial(1, noise)])
    near = 0.01 + noise
    assert found.arrival_us == pytest.approx(Truth.arrival_us + Truth.first_us, rel=near)
    assert found.arrival_token_ns == pytest.approx(Truth.arrival_token_ns, rel=near)
    assert found.gap_us == pytest.approx(Truth.gap_us, rel=near)
    assert found.gap_token_ns == pytest.approx(Truth.gap_token_ns, rel=near)
    assert found.output_us == pytest.approx(Truth.output_us, rel=near)
    assert found.output_token_ns == pytest.approx(Truth.output_token_ns, rel=near)


def test_an_engine_that_was_never_idle_cannot_be_fitted() -> None:
    """Nobody came to it while it did nothing, so nothing tells the way to it from the rest of a step."""
    busy = trial(2)
    steps = tuple(step._replace(gap_us=max(0, step.gap_us)) for step in busy.steps)
    with pytest.raises(Unfit, match="0 requests that found the engine idle"):
        fit_overhead([Trial(busy.load, busy.run, steps, busy.lives)])
