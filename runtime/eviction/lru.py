"""Gives up what was used longest ago."""

from collections import OrderedDict
from collections.abc import Hashable


class LruEviction:
    """Least recently used: a key was last used when it was last released or hit.

    Constant time per operation, and no memory but for the released keys.
    """

    def __init__(self) -> None:
        # The longest unused first. A plain dict looks at every place that was given up before it finds its first key.
        self._released: OrderedDict[Hashable, None] = OrderedDict()

    def insert(self, key: Hashable, now: int) -> None:
        """Nothing to note: held content has no place in the order."""

    def hit(self, key: Hashable, now: int) -> None:
        """Put the key last, if it is among the released."""
        if key in self._released:
            self._released.move_to_end(key)

    def hold(self, key: Hashable) -> None:
        """Take the key out of the order."""
        del self._released[key]

    def release(self, key: Hashable, now: int) -> None:
        """Put the key last."""
        self._released[key] = None

    def evict(self, now: int) -> Hashable:
        """Give up the released key that was used longest ago; KeyError when there is none."""
        return self._released.popitem(last=False)[0]

    def remove(self, key: Hashable) -> None:
        """Forget the key, held or released."""
        self._released.pop(key, None)

    def __len__(self) -> int:
        """How many keys are released."""
        return len(self._released)
