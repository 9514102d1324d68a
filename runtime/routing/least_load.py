"""The replica with the fewest requests in flight."""

from collections.abc import Hashable, Sequence


class LeastLoad:
    """Chooses the available replica with the least load, of equals the first."""

    def choose(self, loads: Sequence[int], prefix: Sequence[Hashable] = ()) -> int:
        """The index of the replica, or -1 when none is available; `prefix` does not matter."""
        chosen = -1
        for index, load in enumerate(loads):
            if load >= 0 and (chosen < 0 or load < loads[chosen]):
                chosen = index
        return chosen
