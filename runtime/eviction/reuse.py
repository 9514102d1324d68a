"""Gives up what is expected to be used again last, from the reuse intervals that it has seen.

Beckmann, Chen and Cidon rank content by the hits that it brings for the room and time that it takes, estimated for each
age ("LHD: Improving Cache Hit Rate by Maximizing Hit Density", NSDI '18); this is the same estimate read the other way
round, as the expected time to the next use, and learned beyond eviction from remembered keys.
"""

from collections import OrderedDict
from collections.abc import Hashable

_USES_KINDS = 8
_KINDS = 2 * _USES_KINDS
_AGES = 48
_GHOSTS_PER_KEY = 4
_LEARN_EVERY_MIN = 256
_KEPT_AT_LEARNING = 0.95


class _Use:
    """A key's last use: how many uses there were, of which kind it was, when, and in which cell the key now is."""

    __slots__ = ("at", "cell", "uses")

    def __init__(self, uses: int, cell: int, at: int) -> None:
        self.uses = uses
        self.cell = cell
        self.at = at


class _Cell:
    """The keys of one kind and one age class, the oldest first: those that can be given up, and those that were."""

    __slots__ = ("ghosts", "released")

    def __init__(self) -> None:
        # A plain dict looks at every place that was given up before it finds its first key.
        self.released: OrderedDict[Hashable, _Use] = OrderedDict()
        self.ghosts: OrderedDict[Hashable, _Use] = OrderedDict()


class ReuseEviction:
    """Least expected reuse: what content of its kind and age has waited for its next use, on the whole, the longest.

    A kind is how often a key was used (1, 2-3, 4-7, ... 128 or more) and whether it was the last of its chain, which
    is often cut short and never met again. An age is the time since the last use, in powers of two of the caller's
    unit. The expected wait of a cell, one age of one kind, is the time that keys of the kind have spent at that age
    and beyond, divided by the uses that ended it: those that wait still and those never used again count too. A head
    of chains is of no less use than what follows it: at the same age, what was used more often never counts as waiting
    longer, nor what is not the last of its chain as longer than what is.

    `capacity` is the size of the cache in keys; four times as many are remembered after they were given up. Every
    operation takes constant time, except that, once in `capacity` / 4 releases, all 768 cells are ranked anew. Until
    the first time it is least recently used; what was learned counts half after 14 more.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("capacity must be at least 1 key")
        self._ghosts_max = _GHOSTS_PER_KEY * capacity
        self._learn_every = max(_LEARN_EVERY_MIN, capacity // 4)
        self._unlearned = 0
        self._uses: dict[Hashable, _Use] = {}  # of the keys in the cache
        self._ghosts: OrderedDict[Hashable, _Use] = OrderedDict()  # the longest given up first
        self._cells: dict[int, _Cell] = {}  # by kind x ages + age; no empty ones
        self._released = 0
        self._swept_at = -1
        self._is_tail_next = True
        self._reused = [0.0] * (_KINDS * _AGES)
        self._lost = [0.0] * (_KINDS * _AGES)
        self._rank = [_AGES - cell % _AGES for cell in range(_KINDS * _AGES)]

    def insert(self, key: Hashable, now: int) -> None:
        """Take the key in; if it is remembered, that was a reuse."""
        self._is_tail_next = True
        ghost = self._ghosts.pop(key, None)
        if ghost is None:
            self._uses[key] = _Use(1, 0, now)
            return
        self._leave(ghost.cell, key)
        self._reused[_aged(ghost, now)] += 1
        ghost.uses += 1
        self._uses[key] = ghost

    def hit(self, key: Hashable, now: int) -> None:
        """Count a use; the interval is learned from where the key was released."""
        self._is_tail_next = True
        use = self._uses[key]
        use.uses += 1
        cell = self._cells.get(use.cell)
        if cell is not None and key in cell.released:
            self._leave(use.cell, key)
            self._reused[_aged(use, now)] += 1
            self._enter(key, use, now, is_tail=bool(use.cell // _AGES & 1))

    def hold(self, key: Hashable) -> None:
        """Take the key out of its cell."""
        self._is_tail_next = True
        self._leave(self._uses[key].cell, key)
        self._released -= 1

    def release(self, key: Hashable, now: int) -> None:
        """Put the key into the youngest cell of its kind; the first key released in a row is the last of a chain."""
        self._enter(key, self._uses[key], now, is_tail=self._is_tail_next)
        self._is_tail_next = False
        self._released += 1
        self._unlearned += 1
        if self._unlearned >= self._learn_every:
            self._unlearned = 0
            self._learn(now)

    def evict(self, now: int) -> Hashable:
        """Give up the oldest key of the cell with the longest expected wait; KeyError when nothing is released."""
        if not self._released:
            raise KeyError("nothing is released")
        self._sweep(now)
        rank = self._rank
        _, number = min((rank[number], number) for number, cell in self._cells.items() if cell.released)
        cell = self._cells[number]
        key, use = cell.released.popitem(last=False)
        self._released -= 1
        del self._uses[key]
        self._ghosts[key] = cell.ghosts[key] = use
        if len(self._ghosts) > self._ghosts_max:
            self._lose(now)
        return key

    def remove(self, key: Hashable) -> None:
        """Forget the key, held or released, and do not remember it."""
        use = self._uses.pop(key, None)
        cell = None if use is None else self._cells.get(use.cell)
        if use is not None and cell is not None and key in cell.released:
            self._leave(use.cell, key)
            self._released -= 1

    def __len__(self) -> int:
        """How many keys are released."""
        return self._released

    def _enter(self, key: Hashable, use: _Use, now: int, *, is_tail: bool) -> None:
        kind = 2 * (min(use.uses.bit_length(), _USES_KINDS) - 1) + is_tail
        use.cell, use.at = kind * _AGES, now
        self._cell(use.cell).released[key] = use

    def _leave(self, number: int, key: Hashable) -> None:
        cell = self._cells[number]
        if key in cell.released:
            del cell.released[key]
        else:
            del cell.ghosts[key]
        if not cell.released and not cell.ghosts:
            del self._cells[number]

    def _lose(self, now: int) -> None:
        """Forget the key given up longest ago: it was not used again for as long as it is old."""
        key, use = self._ghosts.popitem(last=False)
        self._lost[_aged(use, now)] += 1
        self._leave(use.cell, key)

    def _cell(self, number: int) -> _Cell:
        cell = self._cells.get(number)
        if cell is None:
            cell = self._cells[number] = _Cell()
        return cell

    def _sweep(self, now: int) -> None:
        """Move the keys that have outgrown their age classes, the oldest classes first so that the order stays.

        A key given up early may stand before an older one, which is then counted as younger for up to its next class.
        """
        if now == self._swept_at:
            return
        self._swept_at = now
        for number in sorted(self._cells, reverse=True):
            cell = self._cells[number]
            for is_ghost in (False, True):
                keys = cell.ghosts if is_ghost else cell.released
                while keys:
                    key = next(iter(keys))
                    use = keys[key]
                    aged = _aged(use, now)
                    if aged <= number:
                        break
                    del keys[key]
                    use.cell = aged
                    older = self._cell(aged)
                    (older.ghosts if is_ghost else older.released)[key] = use
            if not cell.released and not cell.ghosts:
                del self._cells[number]

    def _learn(self, now: int) -> None:
        """Rank the cells by their expected waits, and let what was learned so far count less from now on."""
        self._sweep(now)
        waits = [float("inf")] * (_KINDS * _AGES)
        for kind in range(_KINDS):
            self._expect(kind, waits)
        order = sorted(range(_KINDS * _AGES), key=lambda cell: (-waits[cell], *_doubt(cell)))
        for rank, cell in enumerate(order):
            self._rank[cell] = rank
        for counts in (self._reused, self._lost):
            counts[:] = [_KEPT_AT_LEARNING * count for count in counts]

    def _expect(self, kind: int, waits: list[float]) -> None:
        """Set the expected waits of one kind; where it has not been seen, those of the kind used half as often."""
        waited = beyond = reused = 0.0
        for age in reversed(range(_AGES)):
            cell = kind * _AGES + age
            present = self._cells.get(cell)
            still = len(present.released) + len(present.ghosts) if present else 0
            ended = self._reused[cell] + self._lost[cell] + still
            width = max(1, 1 << age >> 1)
            # Those that ended here did so, on the whole, halfway.
            waited += (beyond + ended / 2) * width
            beyond += ended
            reused += self._reused[cell]
            if reused >= 1:
                waits[cell] = waited / reused
            if kind >= 2 and (not beyond or waits[cell] > waits[cell - 2 * _AGES]):
                waits[cell] = waits[cell - 2 * _AGES]
            if kind % 2 and waits[cell] < waits[cell - _AGES]:
                waits[cell] = waits[cell - _AGES]


def _doubt(cell: int) -> tuple[bool, int, int]:
    """Among cells of equal waits: the last of chains go first, then what was used less, then what is older."""
    kind, age = divmod(cell, _AGES)
    return kind % 2 == 0, kind, -age


def _aged(use: _Use, now: int) -> int:
    """The cell of a key's kind and of its age by now."""
    return use.cell - use.cell % _AGES + min(_AGES - 1, (now - use.at).bit_length())
