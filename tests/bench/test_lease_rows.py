"""The benchmark of round trips counts what replicas really send to a real Redis, here for a moment."""

from bench.lease_rows import REQUESTS_MIN, round_trips_at
from bench.suite import SUITE


def test_requests_are_counted_against_the_round_trips_they_share() -> None:
    [row] = round_trips_at(100, 1.0, 2.0)
    assert [(row.name,)] == [one.names for one in SUITE if row.name in one.names]
    assert row.target == REQUESTS_MIN
    assert 1 < row.ours < 200
