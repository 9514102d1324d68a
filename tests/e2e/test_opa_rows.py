"""The benchmark of an OPA's decisions asks a real one, here a few times."""

from bench.opa_rows import TARGET_MS, misses_of


def test_decisions_of_inputs_not_seen_before_are_timed() -> None:
    [row] = misses_of(10, 200, 1)
    assert (row.name, row.target) == ("policy_opa_miss_p99_ms", TARGET_MS)
    assert 0 < row.ours < 1_000
