"""How many requests of a real trace one core simulates in a second, reading the trace and every check included."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from statistics import median
from typing import Final

from bench.errors import MeasurementError
from bench.harness import Harness
from bench.row import Row
from runtime.sim.deployment import Deployment
from runtime.sim.simulation import simulate
from runtime.workload.opening import open_workload, traces_folder
from runtime.workload.port import Arrival, Workload

REQUESTS_PER_S_MIN: Final = 2_000
ROUNDS: Final = 3
TRACE: Final = "azure_llm_2023_conv.csv"
_US: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class LikeAzure:
    """As many requests as the Azure conversation trace has, at its mean rate and with lengths of its shape.

    Lengths are lognormal with the mean and deviation of the logarithms of that trace's, and cut at its longest.
    """

    requests: int = 19_366
    name: str = "generated, of the Azure conversation trace's shape"
    block_tokens: int = 16

    def __iter__(self) -> Iterator[Arrival]:
        random = Random(0)
        at_us = 0.0
        for _ in range(self.requests):
            at_us += random.expovariate(5.53) * _US
            prompt = min(max(2, round(random.lognormvariate(6.633, 0.985))), 14_050)
            output = min(max(7, round(random.lognormvariate(5.019, 0.859))), 1_000)
            yield Arrival(round(at_us), prompt, output)


def requests_per_s(harness: Harness) -> list[Row]:
    """Of CPU, on the recorded trace where there is one."""
    path = traces_folder() / TRACE
    return requests_per_s_of(open_workload(path) if path.exists() else LikeAzure())


def requests_per_s_of(workload: Workload) -> list[Row]:
    """The same of one workload: the median of three rounds, which must all come to the same run."""
    rates: list[float] = []
    digests: set[str] = set()
    for _ in range(ROUNDS):
        began_ns = time.process_time_ns()
        run = simulate(workload, Deployment())
        rates.append(len(run.finished) * 1e9 / (time.process_time_ns() - began_ns))
        digests.add(run.digest())
    if len(digests) != 1:
        raise MeasurementError("simulator_requests_per_s: the same simulation gave different runs")
    row = Row.at_least("simulator_requests_per_s", "requests/s CPU", median(rates), REQUESTS_PER_S_MIN)
    return [replace(row, reference_name=workload.name)]
