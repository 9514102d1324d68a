"""How far a simulation is from what was measured, beside how far measurements of the same load are from each other."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Final, NamedTuple

from runtime.calibration.drive import Run
from runtime.sim.run import Run as SimulatedRun

METRICS: Final = ("e2e", "itl", "ttft")


class Served(NamedTuple):
    """One request as its client saw it, in microseconds from its sending."""

    ttft_us: int
    e2e_us: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Figures:
    """The means over a load: of times in microseconds (`itl` of requests with two tokens or more), and the hit rate."""

    e2e: float
    itl: float
    ttft: float
    hit_rate: float

    @classmethod
    def of(cls, served: Iterable[Served]) -> "Figures":
        """The figures of a load of at least one request."""
        every = list(served)
        between = [(each.e2e_us - each.ttft_us) / (each.output_tokens - 1) for each in every if each.output_tokens > 1]
        return cls(
            e2e=fmean(each.e2e_us for each in every),
            itl=fmean(between) if between else 0.0,
            ttft=fmean(each.ttft_us for each in every),
            hit_rate=sum(each.cached_tokens for each in every) / max(1, sum(each.prompt_tokens for each in every)),
        )

    def value(self, metric: str) -> float:
        """The mean of one of `METRICS`."""
        return {"e2e": self.e2e, "itl": self.itl, "ttft": self.ttft}[metric]


@dataclass(frozen=True, slots=True)
class Compared:
    """One load: the figures of several measured runs of it, and those of its simulation."""

    load: str
    saturated: bool
    runs: tuple[Figures, ...]
    simulated: Figures

    def error(self, metric: str) -> float:
        """How far the simulated mean is from that of the measured ones, as a part of it."""
        measured = fmean(run.value(metric) for run in self.runs)
        return abs(self.simulated.value(metric) - measured) / measured if measured else 0.0

    def spread(self, metric: str) -> float:
        """How far two measured runs are from each other on average, as a part of their mean; 0 for a single run."""
        values = [run.value(metric) for run in self.runs]
        if len(values) < 2 or not fmean(values):
            return 0.0
        return fmean(abs(first - second) for first, second in combinations(values, 2)) / fmean(values)

    @property
    def hit_rate_error(self) -> float:
        """How far the hit rates are apart, as a number from 0 to 1."""
        return abs(self.simulated.hit_rate - fmean(run.hit_rate for run in self.runs))


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The means over some loads: errors and spreads by metric, and the error of the hit rate."""

    loads: int
    errors: Mapping[str, float]
    spreads: Mapping[str, float]
    hit_rate: float

    @classmethod
    def of(cls, compared: Sequence[Compared]) -> "Accuracy":
        """The means over at least one load."""
        return cls(
            loads=len(compared),
            errors={metric: fmean(each.error(metric) for each in compared) for metric in METRICS},
            spreads={metric: fmean(each.spread(metric) for each in compared) for metric in METRICS},
            hit_rate=fmean(each.hit_rate_error for each in compared),
        )


def served_of(run: Run) -> list[Served]:
    """The requests of a measured run."""
    return [
        Served(
            each.first_us - each.sent_us,
            each.last_us - each.sent_us,
            each.prompt_tokens,
            each.cached_tokens,
            each.output_tokens,
        )
        for each in run.samples
    ]


def served_by(run: SimulatedRun) -> list[Served]:
    """The finished requests of a simulated run, as their clients see them."""
    columns = {name: column[run.finished] for name, column in run.requests.items()}
    ttft_us, e2e_us = columns["first_us"] - columns["arrival_us"], columns["end_us"] - columns["arrival_us"]
    told = (ttft_us, e2e_us, *(columns[name] for name in ("prompt_tokens", "cached_tokens", "output_tokens")))
    return [Served(*row) for row in zip(*(column.tolist() for column in told), strict=True)]


class Ranking(NamedTuple):
    """Kendall's tau over the pairs whose measured difference exceeds the noise: +1 all in order, -1 all reversed."""

    tau: float
    pairs: int


def ranking(measured: Sequence[float], noise: Sequence[float], simulated: Sequence[float]) -> Ranking:
    """How well a simulation ranks configurations; a pair counts where it differs by more than both noises together.

    A pair that the simulation does not tell apart counts as neither right nor wrong. Without any pair tau is 0.
    """
    score = pairs = 0
    for first, second in combinations(range(len(measured)), 2):
        difference = measured[first] - measured[second]
        if abs(difference) <= noise[first] + noise[second]:
            continue
        pairs += 1
        told = (simulated[first] - simulated[second]) * difference
        score += (told > 0) - (told < 0)
    return Ranking(score / pairs if pairs else 0.0, pairs)
