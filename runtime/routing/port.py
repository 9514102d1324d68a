"""Which replica serves a request."""

from collections.abc import Hashable, Sequence
from typing import Protocol


class RoutingPolicy(Protocol):
    """Chooses among replicas by their load and by what their caches may hold. Deterministic."""

    def choose(self, loads: Sequence[int], prefix: Sequence[Hashable] = ()) -> int:
        """The index of the replica, or -1 when none is available.

        `loads` are the requests in flight of each replica in a fixed order, -1 for one that cannot serve now; `prefix`
        the chained hashes of the request's first blocks, the shortest prefix first.
        """
