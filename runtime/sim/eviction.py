"""Which free cached block is given up first."""

from collections import OrderedDict
from typing import Protocol


class EvictionPolicy(Protocol):
    """The order in which unreferenced cached blocks are given up."""

    def add(self, block: int) -> None:
        """Take in a block whose last reference went away."""

    def remove(self, block: int) -> None:
        """Let go of a block that is referenced again."""

    def pop(self) -> int:
        """Give up one block; raises KeyError when there is none."""

    def __len__(self) -> int: ...


class LruEviction:
    """Gives up the block that has been unreferenced for longest."""

    def __init__(self) -> None:
        self._order: OrderedDict[int, None] = OrderedDict()

    def add(self, block: int) -> None:
        self._order[block] = None

    def remove(self, block: int) -> None:
        del self._order[block]

    def pop(self) -> int:
        return self._order.popitem(last=False)[0]

    def __len__(self) -> int:
        return len(self._order)
