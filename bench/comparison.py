"""How two servers are compared: rounds that take turns, CPU time accounted around each, medians over all."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Final

from bench.client import Report
from bench.cpu import cpu_ns, rss_bytes
from bench.errors import MeasurementError
from bench.load import Load, drive
from bench.server import Server
from bench.workload import CHUNKS
from ledger.shipper import BATCH_AGE_S

# What a server leaves for later (journals, shipping, spans) belongs to its requests, so a round waits for it.
# The last rows of a load are shipped by then, so their cost is counted.
DRAIN_MIN_S: Final = BATCH_AGE_S + 0.5
DRAIN_MAX_S: Final = 8.0
QUIET_WINDOW_S: Final = 0.25
QUIET_SHARE: Final = 0.02

# Chunks merged on their way are cheaper to pass on, so a round in which a busy machine merged many is measured again.
READS_PER_STREAM_MIN: Final = 0.8 * CHUNKS


class MergedChunksError(MeasurementError):
    """Chunks of streams were not passed on one by one, for want of CPU time or because the proxy collects them."""


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time per request in µs: of the process that carries requests, and of all the server's processes."""

    worker_us: float
    all_us: float


@dataclass(frozen=True, slots=True)
class Running:
    """A server that serves."""

    server: Server
    base_url: str

    def drive(self, load: Load) -> Report:
        """Put a load on it. Raises MeasurementError unless every answer was right."""
        return drive(self.base_url, self.server.headers, load)

    def cost(self, load: Load) -> Cost:
        """Put a load on it, wait until it has done all that the load caused, and account the CPU time.

        Raises MergedChunksError when the median stream did not come chunk by chunk.
        """
        pids = self.server.pids()
        worker_before_ns, all_before_ns = cpu_ns([pids["worker"]]), cpu_ns(pids["all"])
        report = self.drive(load)
        drain(pids["all"])
        worker_ns, all_ns = cpu_ns([pids["worker"]]), cpu_ns(pids["all"])
        if load.stream and median(report.reads) < READS_PER_STREAM_MIN:
            raise MergedChunksError(f"{self.server.name}: {CHUNKS} chunks came in {median(report.reads):.0f} reads")
        return Cost(
            worker_us=(worker_ns - worker_before_ns) / 1000 / load.requests,
            all_us=(all_ns - all_before_ns) / 1000 / load.requests,
        )

    def worker_rss_mb(self) -> float:
        """Resident memory of the process that carries requests, in MB."""
        return rss_bytes(self.server.pids()["worker"]) / 1e6


@dataclass(frozen=True, slots=True)
class Side:
    """A server and the load that one round puts on it."""

    running: Running
    load: Load


def drain(pids: list[int]) -> None:
    """Wait until the processes have been quiet for a moment, within bounds."""
    started_s = time.monotonic()
    time.sleep(DRAIN_MIN_S)
    while time.monotonic() - started_s < DRAIN_MAX_S:
        before_ns, before_s = cpu_ns(pids), time.monotonic()
        time.sleep(QUIET_WINDOW_S)
        if cpu_ns(pids) - before_ns < QUIET_SHARE * (time.monotonic() - before_s) * 1e9:
            return


def compare(ours: Side, reference: Side, rounds: int, warm_up: int) -> tuple[Cost, Cost]:
    """The median costs of ours and of the reference, after `warm_up` requests to each."""
    for side in (ours, reference):
        side.running.drive(side.load.of(warm_up))
    return take_turns(
        lambda: ours.running.cost(ours.load),
        lambda: reference.running.cost(reference.load),
        rounds,
    )


def take_turns(ours: Callable[[], Cost], reference: Callable[[], Cost], rounds: int) -> tuple[Cost, Cost]:
    """Measure both in each round, first one then the other in turn, so that both meet the same noise.

    A round with merged chunks counts for neither side and is done again. Raises MergedChunksError when more rounds were
    merged than are wanted.
    """
    pairs: list[tuple[Cost, Cost]] = []
    merged = 0
    while len(pairs) < rounds:
        try:
            pairs.append(_pair(ours, reference, ours_first=(len(pairs) + merged) % 2 == 0))
        except MergedChunksError:
            merged += 1
            if merged > rounds:
                raise
    return _median_cost([pair[0] for pair in pairs]), _median_cost([pair[1] for pair in pairs])


def _pair(ours: Callable[[], Cost], reference: Callable[[], Cost], *, ours_first: bool) -> tuple[Cost, Cost]:
    if ours_first:
        our_cost = ours()
        return our_cost, reference()
    reference_cost = reference()
    return ours(), reference_cost


def _median_cost(costs: list[Cost]) -> Cost:
    return Cost(
        worker_us=median(cost.worker_us for cost in costs),
        all_us=median(cost.all_us for cost in costs),
    )
