"""The benchmark of the simulator measures whole runs, and says of which workload."""

from statistics import fmean

from bench.simulator_rows import REQUESTS_PER_S_MIN, LikeAzure, requests_per_s_of
from bench.suite import SUITE


def test_requests_are_counted_and_the_workload_is_named() -> None:
    [row] = requests_per_s_of(LikeAzure(requests=200))
    assert [(row.name,)] == [one.names for one in SUITE if row.name in one.names]
    assert row.target == REQUESTS_PER_S_MIN
    assert row.ours > 0
    assert row.reference_name == "generated, of the Azure conversation trace's shape"


def test_the_generated_workload_has_the_shape_of_the_trace() -> None:
    """Its means are within a tenth of those of the trace: 1,155 prompt and 211 output tokens, an hour less 96 s."""
    arrivals = list(LikeAzure())
    assert len(arrivals) == 19_366
    assert abs(fmean(arrival.prompt_tokens for arrival in arrivals) / 1_155 - 1) < 0.1
    assert abs(fmean(arrival.output_tokens for arrival in arrivals) / 211 - 1) < 0.1
    assert abs(arrivals[-1].at_us / 3.504e9 - 1) < 0.1
