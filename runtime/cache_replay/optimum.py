"""The best that any eviction policy could do: one that knows the future."""

from collections.abc import Hashable, Sequence
from heapq import heappop, heappush

from runtime.cache_replay.replay import Access


class Optimum:
    """Gives up what is used again last, of equals what stands deepest in its chain (Belady, IBM Systems Journal 1966).

    It must be told of exactly the accesses that it was made from, in their order. No request of a workload uses a
    block without all before it, so a block is never used sooner than its chain's head, which this therefore keeps the
    longest: what it finds block by block are whole prefixes.
    """

    def __init__(self, accesses: Sequence[Access]) -> None:
        never = len(accesses)
        self._next_uses: dict[Hashable, list[int]] = {}  # of each block: the requests that use it, the next one last
        self._depths: dict[Hashable, int] = {}
        for index in reversed(range(len(accesses))):
            for depth, block in enumerate(accesses[index].blocks):
                self._next_uses.setdefault(block, [never]).append(index)
                self._depths[block] = depth
        self._released: dict[Hashable, tuple[int, int]] = {}
        self._order: list[tuple[int, int, int, Hashable]] = []
        self._pushed = 0

    def insert(self, key: Hashable, now: int) -> None:
        """Leave this use behind."""
        self._next_uses[key].pop()

    def hit(self, key: Hashable, now: int) -> None:
        """Leave this use behind."""
        self._next_uses[key].pop()

    def hold(self, key: Hashable) -> None:
        """Take the key out of the order."""
        del self._released[key]

    def release(self, key: Hashable, now: int) -> None:
        """Put the key where its next use says."""
        next_use, depth = self._next_uses[key][-1], self._depths[key]
        self._pushed += 1
        self._released[key] = (next_use, self._pushed)
        heappush(self._order, (-next_use, -depth, self._pushed, key))

    def evict(self, now: int) -> Hashable:
        """Give up the key that is used again last; KeyError when nothing is released."""
        while self._released:
            next_use, _, pushed, key = heappop(self._order)
            if self._released.get(key) == (-next_use, pushed):
                del self._released[key]
                return key
        raise KeyError("nothing is released")

    def remove(self, key: Hashable) -> None:
        """Forget the key, held or released."""
        self._released.pop(key, None)

    def __len__(self) -> int:
        """How many keys are released."""
        return len(self._released)
