"""The replica that has seen the beginning of the request, unless it has too much to do."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from runtime.routing.least_load import LeastLoad


class PrefixAffinity:
    """Chooses the replica that the longest known prefix went to last, within a bound on its load; else the least load.

    A replica is chosen for its prefix only where it then has at most `free_load` requests in flight, or at most
    `over_mean_percent` more than the mean of those available, rounded up (as in Mirrokni, Thorup and Zadimoghaddam,
    "Consistent Hashing with Bounded Loads", SODA 2018). What is known is learned from what was chosen: of at most
    `prefixes_max` prefixes, those unused for longest are forgotten. Time is proportional to the length of the prefix.
    """

    def __init__(self, prefixes_max: int = 100_000, over_mean_percent: int = 25, free_load: int = 4) -> None:
        if prefixes_max < 1 or over_mean_percent < 0 or free_load < 0:
            raise ValueError("prefixes_max must be at least 1, over_mean_percent and free_load not negative")
        self._prefixes_max = prefixes_max
        self._percent = 100 + over_mean_percent
        self._free_load = free_load
        self._least_load = LeastLoad()
        self._replicas: OrderedDict[Hashable, int] = OrderedDict()  # by prefix, the longest unused first

    def choose(self, loads: Sequence[int], prefix: Sequence[Hashable] = ()) -> int:
        """The index of the replica, or -1 when none is available, from which nothing is learned."""
        chosen = self._known(loads, prefix)
        if chosen < 0:
            chosen = self._least_load.choose(loads)
        if chosen >= 0:
            self._learn(prefix, chosen)
        return chosen

    def __len__(self) -> int:
        """How many prefixes are known."""
        return len(self._replicas)

    def _known(self, loads: Sequence[int], prefix: Sequence[Hashable]) -> int:
        """The replica of the longest known prefix that can take one more, or -1."""
        load_max = self._load_max(loads)
        for each in reversed(prefix):
            replica = self._replicas.get(each, -1)
            if 0 <= replica < len(loads) and 0 <= loads[replica] < load_max:
                return replica
        return -1

    def _load_max(self, loads: Sequence[int]) -> int:
        """What a replica may have in flight with this request: rounded up, so that the least loaded always may."""
        available = [load for load in loads if load >= 0]
        if not available:
            return 0
        return max(self._free_load, -(-self._percent * (sum(available) + 1) // (100 * len(available))))

    def _learn(self, prefix: Sequence[Hashable], replica: int) -> None:
        # The longest first: where room runs out, the shorter prefixes, which more requests share, are the fresher ones.
        for each in reversed(prefix):
            self._replicas[each] = replica
            self._replicas.move_to_end(each)
        while len(self._replicas) > self._prefixes_max:
            self._replicas.popitem(last=False)
