"""Which cached content is given up first."""

from collections.abc import Hashable
from typing import Protocol


class EvictionPolicy(Protocol):
    """The order in which the content of a cache of bounded size is given up.

    Keys are chained prefix hashes. A key is inserted held; it can be evicted while it is released. `now` never goes
    back; its unit is the caller's own (steps, microseconds). Of keys released together the caller releases the tail of
    a chain first, for more can share its head.
    """

    def insert(self, key: Hashable, now: int) -> None:
        """Take in new content, which someone holds."""

    def hit(self, key: Hashable, now: int) -> None:
        """Note that a request found this content; comes before `hold`, and also for content that is held already."""

    def hold(self, key: Hashable) -> None:
        """Someone needs it who did not: it cannot be evicted any more. It was released."""

    def release(self, key: Hashable, now: int) -> None:
        """Nobody needs it any more: it can be evicted."""

    def evict(self, now: int) -> Hashable:
        """Give up one released key and return it; KeyError when there is none."""

    def remove(self, key: Hashable) -> None:
        """Forget a key that was lost otherwise, held or released."""

    def __len__(self) -> int:
        """How many keys can be evicted."""
