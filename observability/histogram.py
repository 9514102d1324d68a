"""Histograms in plain integers: exact sums, and no lock on the hot path."""

from bisect import bisect_left

# The boundaries that the GenAI conventions advise, from 10 ms to 82 s and from 1 to 67 M tokens.
DURATION_BOUNDS_US = tuple(10_000 << power for power in range(14))
TOKEN_BOUNDS = tuple(1 << power for power in range(0, 28, 2))
OVERHEAD_BOUNDS_US = (50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000, 1_000_000)

MICROSECONDS = 1_000_000


class Histogram:
    """Counts per bucket and the exact sum of what was observed, in the unit of its bounds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0

    def observe(self, value: int) -> None:
        """Count one value in the first bucket whose bound is not below it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self, divisor: int = 1) -> list[tuple[str, float]]:
        """Cumulative buckets as Prometheus lists them, the bounds divided into the unit shown."""
        cumulated = 0
        rows: list[tuple[str, float]] = []
        for bound, count in zip(self.bounds, self.counts, strict=False):
            cumulated += count
            rows.append((str(bound / divisor), cumulated))
        rows.append(("+Inf", cumulated + self.counts[-1]))
        return rows

    def shown_sum(self, divisor: int = 1) -> float:
        """The sum in the unit shown: an integer where the divisor is 1."""
        return self.total if divisor == 1 else self.total / divisor
