"""Excerpt: a part of a workload, or one that comes faster or slower."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from runtime.workload.port import Arrival, Workload, WorkloadError

_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Excerpt:
    """At most `requests_max` requests that arrive from `from_s` on and before `until_s`, `rate` times as often.

    Seconds are those of the workload as it is; the excerpt's own time begins at `from_s`. Where requests wait for
    others, when they come is not known here, so these can be counted only. WorkloadError.
    """

    workload: Workload
    requests_max: int | None = None
    from_s: float = 0.0
    until_s: float | None = None
    rate: float = 1.0

    def __post_init__(self) -> None:
        if self.requests_max is not None and self.requests_max < 1:
            raise WorkloadError(f"requests_max is {self.requests_max}: ask for at least 1")
        if not (math.isfinite(self.from_s) and self.from_s >= 0):
            raise WorkloadError(f"from_s is {self.from_s}: it counts from the workload's begin, which is 0")
        if self.until_s is not None and not (math.isfinite(self.until_s) and self.until_s > self.from_s):
            raise WorkloadError(f"until_s is {self.until_s}: it must be later than from_s, {self.from_s}")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise WorkloadError(f"rate is {self.rate}: it must be above 0; 2 is twice as many requests a second")

    @property
    def name(self) -> str:
        """That of the whole."""
        return self.workload.name

    @property
    def block_tokens(self) -> int:
        """That of the whole."""
        return self.workload.block_tokens

    def __iter__(self) -> Iterator[Arrival]:
        """The requests in order; WorkloadError where there is none."""
        is_counted_only = self.from_s == 0 and self.until_s is None and self.rate == 1
        count = 0
        for arrival in self.workload if is_counted_only else self._moved():
            yield arrival
            count += 1
            if count == self.requests_max:
                return
        if not count:
            end = "its end" if self.until_s is None else f"{self.until_s} s"
            raise WorkloadError(f"no request of {self.name} arrives from {self.from_s} s until {end}")

    def _moved(self) -> Iterator[Arrival]:
        from_us = round(self.from_s * _US)
        until_us = None if self.until_s is None else round(self.until_s * _US)
        for arrival in self.workload:
            if arrival.after != -1:
                raise WorkloadError(
                    f"{self.name} has requests that wait for others: it has no part of its time, and no other rate"
                )
            if until_us is not None and arrival.at_us >= until_us:
                return
            if arrival.at_us >= from_us:
                yield arrival._replace(at_us=int((arrival.at_us - from_us) / self.rate))
