"""Bursar's eviction policies for what vLLM offloads to the CPU's memory.

vLLM finds them by `eviction_policy` and `cache_policy_module_path` in its `kv_connector_extra_config`:
`{"eviction_policy": "BursarReuse", "cache_policy_module_path": "bursar_vllm.cache_policy"}`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from vllm.v1.kv_offload.cpu.policies.base import CachePolicy, ChunkStatus, order_request_keys

from .eviction.arc import ArcEviction
from .eviction.lru import LruEviction
from .eviction.reuse import ReuseEviction

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import OffloadKey, ReqContext

    from .eviction.port import EvictionPolicy


class Offloaded(CachePolicy):  # type: ignore[misc]  # vLLM is in an environment of its own
    """The chunks in the CPU's memory, given up in the order of an eviction policy.

    vLLM pins a chunk while it is written or read, and tells of a request's uses when the request has ended. To the
    policy a pinned chunk is held. A request that ends is a hit on what it reused, and everything of it that is not
    pinned is held and released anew, its tail first; so what is still pinned then counts as used when it is unpinned.
    """

    def __init__(self, cache_capacity: int) -> None:
        super().__init__(cache_capacity)
        self.chunks: dict[OffloadKey, ChunkStatus] = {}
        self._policy = self.new_policy(cache_capacity)

    @staticmethod
    def new_policy(capacity: int) -> EvictionPolicy:
        """The policy, fresh, for a cache of so many chunks."""
        raise NotImplementedError

    def get(self, key: OffloadKey) -> ChunkStatus | None:
        """The chunk of a key that is cached, ready or not."""
        return self.chunks.get(key)

    def insert(self, key: OffloadKey, chunk: ChunkStatus) -> None:
        """Take in a chunk, which is pinned unless it is ready and nobody reads it."""
        self.chunks[key] = chunk
        now_us = _now_us()
        self._policy.insert(key, now_us)
        if chunk.ref_cnt == 0:
            self._policy.release(key, now_us)

    def remove(self, key: OffloadKey) -> None:
        """Forget a chunk that could not be written."""
        del self.chunks[key]
        self._policy.remove(key)

    def touch(self, keys: Iterable[OffloadKey], req_context: ReqContext) -> None:
        """Count a use of those that are cached."""
        used = [key for key in keys if key in self.chunks]
        self._use(used, set(used))

    def on_store_miss(self, keys: Iterable[OffloadKey], req_context: ReqContext) -> None:
        """Nothing to note: the policy sees for itself that a chunk comes again which it had given up."""

    def on_request_finished(
        self,
        key_groups: Sequence[Sequence[OffloadKey]],
        insertion_only_keys: set[OffloadKey],
        reused_keys: set[OffloadKey],
        req_context: ReqContext,
    ) -> None:
        """Count a use of what was reused, and put all of the request last, its head behind its tail."""
        self._use([key for key in order_request_keys(key_groups, req_context) if key in self.chunks], reused_keys)

    def evict(self, n: int, protected: set[OffloadKey]) -> list[tuple[OffloadKey, ChunkStatus]] | None:
        """Give up exactly `n` chunks that are neither pinned nor protected, or None and nothing where there are not.

        What is protected belongs to the request that room is made for, and counts as used now.
        """
        spared = sorted(key for key in protected if self._is_released(key))
        if len(self._policy) - len(spared) < n:
            return None
        now_us = _now_us()
        for key in spared:
            self._policy.hold(key)
        given_up: list[Any] = [self._policy.evict(now_us) for _ in range(n)]
        for key in spared:
            self._policy.release(key, now_us)
        return [(key, self.chunks.pop(key)) for key in given_up]

    def clear(self) -> None:
        """Forget every chunk, and what the policy has learned."""
        self.chunks.clear()
        self._policy = self.new_policy(self.cache_capacity)

    def mark_evictable(self, key: OffloadKey) -> None:
        """The last pin of a chunk is gone."""
        self._policy.release(key, _now_us())

    def mark_non_evictable(self, key: OffloadKey) -> None:
        """A chunk has its first pin."""
        self._policy.hold(key)

    def _is_released(self, key: OffloadKey) -> bool:
        chunk = self.chunks.get(key)
        return chunk is not None and chunk.ref_cnt == 0

    def _use(self, keys: list[OffloadKey], reused: set[OffloadKey]) -> None:
        """Take cached keys, from head to tail, as what one request used and now leaves."""
        now_us = _now_us()
        released = [key for key in keys if self._is_released(key)]
        for key in keys:
            if key in reused:
                self._policy.hit(key, now_us)
        for key in released:
            self._policy.hold(key)
        for key in reversed(released):
            self._policy.release(key, now_us)


class BursarLru(Offloaded):
    """Gives up what was used longest ago."""

    @staticmethod
    def new_policy(capacity: int) -> EvictionPolicy:
        """A policy that needs not know the capacity."""
        return LruEviction()


class BursarArc(Offloaded):
    """Gives up what was used once or what was used again, whichever of the two the requests miss less."""

    @staticmethod
    def new_policy(capacity: int) -> EvictionPolicy:
        """A policy that remembers as many chunks as the cache has."""
        return ArcEviction(max(1, capacity))


class BursarReuse(Offloaded):
    """Gives up what is expected to be used again last."""

    @staticmethod
    def new_policy(capacity: int) -> EvictionPolicy:
        """A policy that remembers four times as many chunks as the cache has."""
        return ReuseEviction(max(1, capacity))


def _now_us() -> int:
    return time.monotonic_ns() // 1_000
