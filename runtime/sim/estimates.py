"""Means and percentiles with how sure they are: resampling what came one after another, together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from runtime.sim.durations import IntArray

Floats: TypeAlias = NDArray[np.float64]

PERCENTILES: Final = (50, 90, 95, 99)
CONFIDENCE: Final = 0.95
_BLOCKS: Final = 100
_BINS: Final = 2_048


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number, and the interval that it would be found in 95 times of 100 if all were drawn again.

    There is no interval, None, where drawing again changes nothing.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, value: float, again: Floats) -> "Estimate":
        """A value, with the interval from what resamples gave."""
        low, high = np.quantile(again, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return cls(float(value), float(low), float(high))

    @classmethod
    def of_runs(cls, values: Sequence[float]) -> "Estimate":
        """The mean over runs that differ in their seed, with Student's interval; ValueError for less than two."""
        if len(values) < 2:
            raise ValueError("an interval over seeds needs two runs or more")
        mean = float(np.mean(values))
        half = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2) * np.std(values, ddof=1) / len(values) ** 0.5)
        return cls(mean, mean - half, mean + half)


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and percentiles of one quantity."""

    mean: Estimate
    p50: Estimate
    p90: Estimate
    p95: Estimate
    p99: Estimate


class Resamples:
    """Index sets that draw `size` rows with replacement, in runs of neighbours; always the same for one seed.

    Requests that come together wait together, so runs of the cube root of `size` neighbours are drawn, not single rows
    (the moving-block bootstrap): intervals of single rows would be too narrow.
    """

    def __init__(self, size: int, count: int, seed: int) -> None:
        self._size = size
        self._count = count
        self._seed = seed

    def __iter__(self) -> Iterator[NDArray[np.intp]]:
        """The same sets in the same order each time."""
        random = np.random.default_rng(self._seed)
        length = max(1, round(self._size ** (1 / 3)))
        offsets = np.arange(length)
        for _ in range(self._count):
            starts = random.integers(0, self._size, -(-self._size // length))
            yield ((starts[:, None] + offsets).ravel()[: self._size]) % self._size

    def spread(self, values: IntArray | Floats) -> Spread | None:
        """Of one value for each row; None without any."""
        if not len(values):
            return None
        again = np.array([_describe(values[chosen]) for chosen in self])
        return _spread(_describe(values), again)

    def estimate(self, statistic: Callable[[NDArray[np.intp]], float]) -> Estimate:
        """Of what some rows come to."""
        again = np.array([statistic(chosen) for chosen in self])
        return Estimate.of(statistic(np.arange(self._size)), again)


def weighted_spread(values: IntArray, weights: IntArray, count: int, seed: int) -> Spread | None:
    """Of values that each stand for `weights` equal ones, in the order of time; resamples draw stretches of time.

    The percentiles are exact; their intervals come from 2,048 bins of about equal numbers. None without any.
    """
    if not len(values):
        return None
    order = np.argsort(values, kind="stable")
    exact = _describe_weighted(values[order].astype(np.float64), np.cumsum(weights[order]))
    edges = np.unique(np.quantile(values, np.linspace(0, 1, _BINS + 1)))
    bins = np.minimum(np.searchsorted(edges, values, "right") - 1, len(edges) - 1)
    blocks = np.arange(len(values)) * min(_BLOCKS, len(values)) // len(values)
    counts = np.zeros((int(blocks[-1]) + 1, len(edges)))
    np.add.at(counts, (blocks, bins), weights)
    sums = np.bincount(blocks, weights=values * weights.astype(np.float64))
    random = np.random.default_rng(seed)
    again = []
    for _ in range(count):
        drawn = np.bincount(random.integers(0, len(counts), len(counts)), minlength=len(counts))
        cumulated = np.cumsum(drawn @ counts)
        described = _describe_weighted(edges, cumulated)
        described[0] = drawn @ sums / cumulated[-1]
        again.append(described)
    return _spread(exact, np.array(again))


def _describe(values: IntArray | Floats) -> Floats:
    return np.concatenate([[values.mean()], np.percentile(values, PERCENTILES)])


def _describe_weighted(values: Floats, cumulated: Floats | IntArray) -> Floats:
    """Mean and percentiles of sorted values: the least that so many percent of the weight do not exceed."""
    total = cumulated[-1]
    weights = np.diff(cumulated, prepend=0)
    at = np.searchsorted(cumulated, np.array(PERCENTILES) / 100 * total)
    return np.concatenate([[values @ weights / total], values[np.minimum(at, len(values) - 1)]])


def _spread(values: Floats, again: Floats) -> Spread:
    return Spread(*(Estimate.of(value, column) for value, column in zip(values, again.T, strict=True)))
