"""Every replica in turn."""

from collections.abc import Hashable, Sequence


class RoundRobin:
    """Chooses the first available replica after the one that it chose before."""

    def __init__(self) -> None:
        self._last = -1

    def choose(self, loads: Sequence[int], prefix: Sequence[Hashable] = ()) -> int:
        """The index of the replica, or -1 when none is available; only whether one is matters, not its load."""
        for step in range(1, len(loads) + 1):
            index = (self._last + step) % len(loads)
            if loads[index] >= 0:
                self._last = index
                return index
        return -1
