"""The hit rates of every eviction policy at several cache sizes, beside the best possible ones."""

from collections.abc import Sequence
from dataclasses import dataclass

from runtime.cache_replay.optimum import Optimum
from runtime.cache_replay.replay import accesses_of, replay
from runtime.eviction.arc import ArcEviction
from runtime.eviction.lru import LruEviction
from runtime.eviction.reuse import ReuseEviction
from runtime.workload.port import Workload, WorkloadError


@dataclass(frozen=True, slots=True)
class HitRates:
    """Hits per looked-up block in a cache of one size: under each policy, with the future known, and without bound."""

    capacity_blocks: int
    lru: float
    arc: float
    reuse: float
    optimum: float
    infinite: float


def hit_rate_table(workload: Workload, sizes: Sequence[int]) -> list[HitRates]:
    """One row for each cache size in blocks; WorkloadError where the workload has no blocks to find."""
    accesses = accesses_of(workload)
    lookups = sum(len(access.blocks) for access in accesses)
    if not lookups:
        raise WorkloadError(
            f"{workload.name} has no blocks: a hit rate needs a trace that says which prefixes are shared, as an own "
            "one does where ledger.prompt_blocks was on"
        )
    distinct = len({block for access in accesses for block in access.blocks})
    return [
        HitRates(
            capacity_blocks=size,
            lru=replay(accesses, size, LruEviction()).hit_rate,
            arc=replay(accesses, size, ArcEviction(size)).hit_rate,
            reuse=replay(accesses, size, ReuseEviction(size)).hit_rate,
            optimum=replay(accesses, size, Optimum(accesses)).hit_rate,
            infinite=1 - distinct / lookups,
        )
        for size in sizes
    ]
