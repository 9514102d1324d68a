"""What a request through the gateway costs: CPU against the bare proxy and LiteLLM, latency added, memory kept."""

from statistics import median
from typing import Final

from bench.comparison import Side, compare
from bench.harness import Harness
from bench.load import Load, drive
from bench.row import Row

# Long enough that batches are those of a busy gateway: the ledger ships each second or two, at a price per batch.
UNARY: Final = Load(requests=10_000, concurrency=16)
UNARY_ROUNDS: Final = 7
UNARY_WARM_UP: Final = 500
STREAMED: Final = Load(requests=200, concurrency=50, stream=True)
STREAMED_ROUNDS: Final = 7
STREAMED_WARM_UP: Final = 50

# LiteLLM keeps pace with no more than this, and both sides are compared at the same concurrency. It costs so much more
# per request that it needs fewer of them for an account as exact.
PEER_UNARY: Final = Load(requests=200, concurrency=4)
PEER_STREAMED: Final = Load(requests=24, concurrency=4, stream=True)
PEER_ROUNDS: Final = 5
PEER_WARM_UP: Final = 24
OURS_PER_PEER_UNARY: Final = 20
OURS_PER_PEER_STREAMED: Final = 10

LATENCY: Final = Load(requests=1000, concurrency=1)
LATENCY_ROUNDS: Final = 5

MEMORY_FIRST_REQUESTS: Final = 10_000
MEMORY_REQUESTS: Final = 100_000
MEMORY_CONCURRENCY: Final = 32
MEMORY_DEADLINE_S: Final = 300.0
MEMORY_GROWTH_MAX: Final = 1.2


def unary_vs_bare(harness: Harness) -> list[Row]:
    """CPU per unary request: the worker's alone, and that of all of ours, against the bare proxy."""
    ours, bare = compare(
        Side(harness.gateway(), UNARY), Side(harness.bare(), UNARY), rounds=UNARY_ROUNDS, warm_up=UNARY_WARM_UP
    )
    return [
        Row.against("unary_vs_bare", "µs CPU/request", ours.worker_us, bare.all_us, "bare proxy", 1.5),
        Row.against("unary_all_vs_bare", "µs CPU/request", ours.all_us, bare.all_us, "bare proxy", 1.8),
    ]


def stream_vs_bare(harness: Harness) -> list[Row]:
    """CPU of the worker per stream of 64 chunks against the bare proxy."""
    ours, bare = compare(
        Side(harness.gateway(), STREAMED),
        Side(harness.bare(), STREAMED),
        rounds=STREAMED_ROUNDS,
        warm_up=STREAMED_WARM_UP,
    )
    return [Row.against("stream_vs_bare", "µs CPU/stream", ours.worker_us, bare.all_us, "bare proxy", 1.25)]


def added_latency(harness: Harness) -> list[Row]:
    """Latency that the gateway adds to a unary request, beside what the bare proxy adds, one request at a time."""
    gateway, bare = harness.gateway(), harness.bare()
    added_ms: dict[tuple[str, int], list[float]] = {}
    for running in (gateway, bare):
        running.drive(LATENCY)
    for _ in range(LATENCY_ROUNDS):
        direct = drive(harness.upstream_url, {}, LATENCY)
        for role, running in (("gateway", gateway), ("bare", bare)):
            report = running.drive(LATENCY)
            for percent in (50, 99):
                extra_ms = report.latency_ms(percent) - direct.latency_ms(percent)
                added_ms.setdefault((role, percent), []).append(extra_ms)
    return [
        Row.against(
            f"unary_added_latency_p{percent}_ms",
            "ms",
            median(added_ms["gateway", percent]),
            median(added_ms["bare", percent]),
            "bare proxy",
            None,
        )
        for percent in (50, 99)
    ]


def gateway_memory(harness: Harness) -> list[Row]:
    """Resident memory of a fresh gateway's worker after 100,000 requests, against what it held after 10,000."""
    load = Load(MEMORY_FIRST_REQUESTS, MEMORY_CONCURRENCY, deadline_s=MEMORY_DEADLINE_S)
    with harness.fresh_gateway() as gateway:
        gateway.drive(load)
        first_mb = gateway.worker_rss_mb()
        gateway.drive(load.of(MEMORY_REQUESTS - MEMORY_FIRST_REQUESTS))
        last_mb = gateway.worker_rss_mb()
    return [Row.against("gateway_rss_100k_mb", "MB", last_mb, first_mb, "itself after 10k requests", MEMORY_GROWTH_MAX)]


def unary_vs_litellm(harness: Harness) -> list[Row]:
    """CPU of the worker per unary request against LiteLLM."""
    ours, peer = compare(
        Side(harness.gateway(), PEER_UNARY.of(PEER_UNARY.requests * OURS_PER_PEER_UNARY)),
        Side(harness.litellm(), PEER_UNARY),
        rounds=PEER_ROUNDS,
        warm_up=PEER_WARM_UP,
    )
    return [Row.against("unary_vs_litellm", "µs CPU/request", ours.worker_us, peer.all_us, "LiteLLM", 1 / 40)]


def stream_vs_litellm(harness: Harness) -> list[Row]:
    """CPU of the worker per stream of 64 chunks against LiteLLM."""
    ours, peer = compare(
        Side(harness.gateway(), PEER_STREAMED.of(PEER_STREAMED.requests * OURS_PER_PEER_STREAMED)),
        Side(harness.litellm(), PEER_STREAMED),
        rounds=PEER_ROUNDS,
        warm_up=PEER_WARM_UP,
    )
    return [Row.against("stream_vs_litellm", "µs CPU/stream", ours.worker_us, peer.all_us, "LiteLLM", 1 / 30)]
