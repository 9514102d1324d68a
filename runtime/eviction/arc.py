"""Gives up what was used once or what was used again, whichever of the two the requests miss less.

The adaptive replacement cache of Megiddo and Modha ("ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST '03).
"""

from collections import OrderedDict
from collections.abc import Hashable


class ArcEviction:
    """Two lists in order of last use, of keys used once and of keys used again, with a learned target for the first.

    `capacity` is the size of the cache in keys. What was given up is remembered in two ghost lists; that one of them
    is asked for again moves the target towards its list. Adapted to content that is held: a held key counts towards
    the size of its list, but only released keys stand in the order and can be given up; where the list that should
    shrink has only held keys, the other one gives. The target moves when the content comes in again, which is after
    room was made for it and not before, so the paper's rule for a target that is met exactly does not arise. Constant
    time per operation; at most `capacity` keys are remembered beyond those in the cache.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("capacity must be at least 1 key")
        self._capacity = capacity
        self._target_once = 0
        self._once_size = 0
        self._again: dict[Hashable, bool] = {}  # of every key in the cache: was it used again
        # The longest unused first. A plain dict looks at every place that was given up before it finds its first key.
        self._released_once: OrderedDict[Hashable, None] = OrderedDict()
        self._released_again: OrderedDict[Hashable, None] = OrderedDict()
        self._ghosts_once: OrderedDict[Hashable, None] = OrderedDict()
        self._ghosts_again: OrderedDict[Hashable, None] = OrderedDict()

    def insert(self, key: Hashable, now: int) -> None:
        """Take the key in as used once; as used again, if it is remembered, and move the target."""
        once, again = len(self._ghosts_once), len(self._ghosts_again)
        if key in self._ghosts_once:
            del self._ghosts_once[key]
            self._target_once = min(self._capacity, self._target_once + max(1, again // once))
        elif key in self._ghosts_again:
            del self._ghosts_again[key]
            self._target_once = max(0, self._target_once - max(1, once // again))
        else:
            self._again[key] = False
            self._once_size += 1
            return
        self._again[key] = True

    def hit(self, key: Hashable, now: int) -> None:
        """Count the key as used again."""
        if not self._again[key]:
            self._again[key] = True
            self._once_size -= 1
        if key in self._released_once:
            del self._released_once[key]
            self._released_again[key] = None
        elif key in self._released_again:
            self._released_again.move_to_end(key)

    def hold(self, key: Hashable) -> None:
        """Take the key out of the order, not out of its list."""
        del self._list_of(key)[key]

    def release(self, key: Hashable, now: int) -> None:
        """Put the key last in its list."""
        self._list_of(key)[key] = None

    def evict(self, now: int) -> Hashable:
        """Give up the longest unused of the list that is over its target, and remember it; KeyError when none is."""
        wants_once = self._once_size > self._target_once
        is_once = bool(self._released_once) and (wants_once or not self._released_again)
        key, _ = (self._released_once if is_once else self._released_again).popitem(last=False)
        self._forget(key)
        (self._ghosts_once if is_once else self._ghosts_again)[key] = None
        self._trim()
        return key

    def remove(self, key: Hashable) -> None:
        """Forget the key, held or released, and do not remember it."""
        if key in self._again:
            self._forget(key)

    def __len__(self) -> int:
        """How many keys are released."""
        return len(self._released_once) + len(self._released_again)

    def _list_of(self, key: Hashable) -> OrderedDict[Hashable, None]:
        return self._released_again if self._again[key] else self._released_once

    def _forget(self, key: Hashable) -> None:
        self._list_of(key).pop(key, None)
        if not self._again.pop(key):
            self._once_size -= 1

    def _trim(self) -> None:
        """Keep the paper's two bounds: those used once with their ghosts within capacity, all within twice that."""
        while self._ghosts_once and self._once_size + len(self._ghosts_once) > self._capacity:
            self._ghosts_once.popitem(last=False)
        while len(self._again) + len(self._ghosts_once) + len(self._ghosts_again) > 2 * self._capacity:
            ghosts = self._ghosts_again or self._ghosts_once
            if not ghosts:
                return
            ghosts.popitem(last=False)
