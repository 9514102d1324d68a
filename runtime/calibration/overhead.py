"""What takes time around the steps: between two of them, on a request's way to the engine, on a token's way back."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Final, NamedTuple

import numpy as np

from runtime.calibration.errors import Unfit
from runtime.calibration.fit import Floats, near, solve
from runtime.calibration.observe import Step
from runtime.calibration.trials import Trial, steps_of
from runtime.sim.deployment import Overhead

_SEEN_MIN: Final = 10
_ROUNDS: Final = 5
_NS: Final = 1_000
_CROWD_US: Final = 20_000
"""Requests that come closer to each other than this may wait for each other in the front end."""


class _Delivery(NamedTuple):
    """The tokens of one step on their way to clients: how many, and how long that was on average and for the last.

    `firsts_us` are those of the first tokens of their requests.
    """

    end_us: int
    tokens: int
    mean_us: int
    last_us: int
    firsts_us: tuple[int, ...]


def fit_overhead(trials: Sequence[Trial]) -> Overhead:
    """Fit all of it; Unfit where an engine was never idle when a request came, or never worked without a rest."""
    gap = _line(list(_gaps(trials)), "two steps in a row")
    arrival = _line([each for trial in trials for each in _arrivals(trial)], "requests that found the engine idle")
    deliveries = [each for trial in trials for each in _prompt_deliveries(trial)]
    output = _line([(each.tokens, each.mean_us) for each in deliveries], "steps whose tokens all arrived")
    later = [us - output[0] - output[1] for each in deliveries for us in each.firsts_us if each.tokens == 1]
    first_us = max(0.0, float(np.median(later))) if later else 0.0
    return Overhead(
        # What a first token needs longer than others on its way back is not told apart from its request's way here.
        arrival_us=round(arrival[0] + first_us),
        arrival_token_ns=round(arrival[1] * _NS),
        gap_us=round(gap[0]),
        gap_token_ns=round(gap[1] * _NS),
        output_us=round(output[0]),
        output_token_ns=round(output[1] * _NS),
    )


def _gaps(trials: Sequence[Trial]) -> Iterator[tuple[int, int]]:
    before: Step | None = None
    for step in steps_of(trials):
        if before is not None and step.gap_us >= 0:
            yield before.emitted, step.gap_us
        before = step


def _arrivals(trial: Trial) -> Iterator[tuple[int, int]]:
    """Prompt tokens, and the time from the client to the engine, of requests that came alone to an idle engine.

    An engine that computes takes requests in between its steps: those would have the rest of a step in their time.
    """
    idle = {step.begin_us for step in trial.steps if step.gap_us < 0}
    sent = sorted(sample.sent_us for sample in trial.run.samples)
    crowded = {us for pair in pairwise(sent) if pair[1] - pair[0] < _CROWD_US for us in pair}
    for sample in trial.run.samples:
        life = trial.lives[sample.number]
        if life.begin_us in idle and sample.sent_us not in crowded:
            yield sample.prompt_tokens, max(0, life.arrived_us - trial.run.begin_unix_us - sample.sent_us)


def _prompt_deliveries(trial: Trial) -> Iterator[_Delivery]:
    """Those deliveries that did not begin before the one of the step before was over."""
    before_us = -1
    for each in _deliveries(trial):
        if each.end_us > before_us and each.last_us >= 0:
            yield each
        before_us = max(before_us, each.end_us + each.last_us)


def _deliveries(trial: Trial) -> Iterator[_Delivery]:
    arrivals: defaultdict[int, list[tuple[int, bool]]] = defaultdict(list)
    begin_us = trial.run.begin_unix_us
    for sample in trial.run.samples:
        emitted = trial.lives[sample.number].emitted_us
        for at_us, count in sample.tokens:
            # Of tokens that came together only the newest tells how long its way was.
            if count <= len(emitted):
                arrivals[emitted[count - 1]].append((at_us + begin_us - emitted[count - 1], count == 1))
    for step in trial.steps:
        delays = arrivals.get(step.end_us, [])
        if delays and len(delays) == step.emitted:
            times_us = [us for us, _ in delays]
            mean_us, last_us = round(fmean(times_us)), max(times_us)
            yield _Delivery(step.end_us, len(delays), mean_us, last_us, tuple(us for us, first in delays if first))


def _line(points: Sequence[tuple[int, int]], what: str) -> tuple[float, float]:
    """The constant and the price of one unit, neither below zero, those left out that lie far off."""
    if len(points) < _SEEN_MIN:
        raise Unfit(f"{len(points)} {what} were seen and {_SEEN_MIN} are needed: calibrate with the designed loads")
    seen = np.array(points, dtype=np.float64)
    features: Floats = np.column_stack([np.ones(len(seen)), seen[:, 0]])
    kept = np.ones(len(seen), dtype=bool)
    found = np.zeros(2)
    for _ in range(_ROUNDS):
        found = solve(features[kept], seen[kept, 1])
        kept = near(seen[:, 1] / np.maximum(features @ found, 1.0))
    return float(found[0]), float(found[1])
