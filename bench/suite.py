"""Every benchmark there is, in the order in which they run."""

from typing import Final

from bench import accuracy_rows, gateway_rows, lease_rows, ledger_rows, opa_rows, reload_rows, room_rows, simulator_rows
from bench.harness import Benchmark

SUITE: Final = (
    Benchmark(("policy_hit_us", "policy_miss_us"), room_rows.policy),
    Benchmark(("policy_opa_miss_p99_ms",), opa_rows.misses),
    Benchmark(("policy_reload_stall_ms", "policy_no_reload_stall_ms"), reload_rows.stall),
    Benchmark(("hold_settle_memory_us",), room_rows.hold_settle),
    Benchmark(("hold_settle_lease_us",), room_rows.hold_settle_lease),
    Benchmark(("lease_requests_per_round_trip",), lease_rows.round_trips),
    Benchmark(("ledger_ingest_rows_per_s",), ledger_rows.ingest),
    Benchmark(
        ("ledger_query_10m_s", "ledger_report_10m_s", "ledger_request_10m_ms", "ledger_rss_10m_mb"), ledger_rows.query
    ),
    Benchmark(("simulator_requests_per_s",), simulator_rows.requests_per_s),
    Benchmark(("unary_vs_bare", "unary_all_vs_bare"), gateway_rows.unary_vs_bare),
    Benchmark(("stream_vs_bare",), gateway_rows.stream_vs_bare),
    Benchmark(("unary_added_latency_p50_ms", "unary_added_latency_p99_ms"), gateway_rows.added_latency),
    Benchmark(("gateway_rss_100k_mb",), gateway_rows.gateway_memory),
    Benchmark(("unary_vs_litellm",), gateway_rows.unary_vs_litellm),
    Benchmark(("stream_vs_litellm",), gateway_rows.stream_vs_litellm),
    Benchmark(("simulator_error_e2e", "simulator_error_itl", "simulator_error_ttft"), accuracy_rows.errors),
)
