"""Replays the blocks of a workload against a cache of bounded size: what would have been found in it.

The model: requests come one by one in order of arrival and take no time, so that what one left is there for the next.
A request's hits are the blocks that it finds from its begin up to the first that is missing. It holds all its blocks
at once, taking in those that are missing and giving up others for them, and releases them with the last block first.
What is beyond the whole cache, in a request longer than that, is not kept. A turn that waits for the end of another
request comes as much later than that request as the workload says.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from runtime.eviction.port import EvictionPolicy
from runtime.workload.port import Workload, WorkloadError

LOOKUPS_MAX = 50_000_000


class Access(NamedTuple):
    """One request as the cache sees it: when it comes, and its prefix-chained blocks."""

    at_us: int
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Replay:
    """What one replay found; `lookups` and `hits` count blocks."""

    capacity_blocks: int
    lookups: int
    hits: int
    evictions: int

    @property
    def hit_rate(self) -> float:
        """Hits per lookup; 0 where nothing was looked up."""
        return self.hits / self.lookups if self.lookups else 0.0


def accesses_of(workload: Workload, lookups_max: int = LOOKUPS_MAX) -> list[Access]:
    """The requests of a workload that have blocks, in order of arrival; at one instant in the workload's order.

    All are in memory at once, for the optimum looks ahead: WorkloadError where that is too much.
    """
    came_us: list[int] = []
    order: list[tuple[int, int]] = []
    blocks: list[tuple[int, ...]] = []
    lookups = 0
    for index, arrival in enumerate(workload):
        lookups += len(arrival.blocks)
        if lookups > lookups_max or index >= lookups_max:
            raise WorkloadError(
                f"{workload.name} has more than {lookups_max:,} blocks or requests: replay a part of it"
            )
        at_us = arrival.at_us + (came_us[arrival.after] if arrival.after >= 0 else 0)
        came_us.append(at_us)
        blocks.append(arrival.blocks)
        order.append((at_us, index))
    order.sort()
    return [Access(at_us, blocks[index]) for at_us, index in order if blocks[index]]


def replay(accesses: Iterable[Access], capacity_blocks: int, policy: EvictionPolicy) -> Replay:
    """Replay against a cache of `capacity_blocks` that `policy`, fresh, decides over; ValueError for no capacity."""
    if capacity_blocks < 1:
        raise ValueError("capacity_blocks must be at least 1")
    cached: set[Hashable] = set()
    lookups = hits = evictions = 0
    for at_us, asked in accesses:
        lookups += len(asked)
        blocks = asked[:capacity_blocks]
        found = [block in cached for block in blocks]
        hits += found.index(False) if False in found else len(blocks)
        for block, is_found in zip(blocks, found, strict=True):
            if is_found:
                policy.hit(block, at_us)
                policy.hold(block)
        for block, is_found in zip(blocks, found, strict=True):
            if is_found:
                continue
            if len(cached) == capacity_blocks:
                cached.remove(policy.evict(at_us))
                evictions += 1
            policy.insert(block, at_us)
            cached.add(block)
        for block in reversed(blocks):
            policy.release(block, at_us)
    return Replay(capacity_blocks, lookups, hits, evictions)
