"""The ledger's benchmarks measure what they say, here over few rows."""

from bench.ledger_rows import ingest_of, query_of
from bench.suite import SUITE

ROWS = 30_000


def test_taking_in_is_measured_beside_a_plain_insert() -> None:
    [row] = ingest_of(ROWS)
    assert (row.name, row.target, row.reference_name) == ("ledger_ingest_rows_per_s", 30_000, "plain chDB insert")
    assert row.reference is not None
    assert row.ratio is not None
    assert row.reference > row.ours > 0
    assert abs(row.ratio - row.ours / row.reference) < 0.001


def test_questions_are_measured_through_the_ledger_process() -> None:
    rows = {row.name: row for row in query_of(ROWS)}
    assert [tuple(rows)] == [one.names for one in SUITE if "ledger_query_10m_s" in one.names]
    assert 0 < rows["ledger_query_10m_s"].ours < 60
    assert rows["ledger_rss_10m_mb"].ours > 50
    assert {row.target for row in rows.values()} == {1, 50, 1_000}
