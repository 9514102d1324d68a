"""Merkle: the growing tree of RFC 6962 over one writer's records, and the proofs that can be made from it.

A leaf's data is the 32-byte `sha256` of a record, leaf 0 being record 1. Complete subtrees of 256 leaves are blocks:
with the hashes of blocks kept, any root or proof of a tree of any size needs the leaves of two or three blocks only.
Proofs are checked by `ledger/verifier.py`, which shares no code with this.
"""

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256

HASH_BYTES = 32
BLOCK_LEAVES = 256
EMPTY_ROOT = sha256(b"").digest()
_BLOCKS_CACHED = 8


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf (RFC 6962, section 2.1)."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node (RFC 6962, section 2.1)."""
    return sha256(b"\x01" + left + right).digest()


def folded(hashes: Sequence[bytes]) -> bytes:
    """The root over subtrees that stand side by side: all complete and of one size, but for a smaller last one."""
    level = list(hashes)
    while len(level) > 1:
        odd = level[-1:] if len(level) % 2 else []
        pairs = zip(level[::2], level[1::2], strict=False)
        level = [sha256(b"\x01" + left + right).digest() for left, right in pairs] + odd
    return level[0] if level else EMPTY_ROOT


class Tree:
    """A tree that grows at its right edge, of which only that edge is kept."""

    def __init__(self, blocks: Iterable[bytes] = ()) -> None:
        """Begins with the hashes of its first blocks."""
        self._peaks: list[bytes] = []
        self._blocks = 0
        self._open: list[bytes] = []
        for block in blocks:
            self._add_block(block)

    @property
    def size(self) -> int:
        """How many leaves it has."""
        return self._blocks * BLOCK_LEAVES + len(self._open)

    def extend(self, data: Iterable[bytes]) -> list[bytes]:
        """Appends leaves of these data and returns the hashes of the blocks that they completed."""
        self._open += [sha256(b"\x00" + each).digest() for each in data]
        completed = []
        at = 0
        while len(self._open) - at >= BLOCK_LEAVES:
            completed.append(folded(self._open[at : at + BLOCK_LEAVES]))
            at += BLOCK_LEAVES
        self._open = self._open[at:]
        for block in completed:
            self._add_block(block)
        return completed

    def root(self) -> bytes:
        """The root of all leaves so far."""
        found = folded(self._open) if self._open else b""
        for peak in reversed(self._peaks):
            found = node_hash(peak, found) if found else peak
        return found or EMPTY_ROOT

    def _add_block(self, block: bytes) -> None:
        merges = self._blocks
        while merges & 1:
            block = node_hash(self._peaks.pop(), block)
            merges >>= 1
        self._peaks.append(block)
        self._blocks += 1


class Subtrees:
    """The roots of the subtrees that proofs are made of, from block hashes and the leaves of single blocks."""

    def __init__(
        self, blocks: Callable[[int, int], Sequence[bytes]], leaves_of: Callable[[int], Sequence[bytes]]
    ) -> None:
        """`blocks(a, b)` are the hashes of blocks a to b, b excluded; `leaves_of(n)` the leaf hashes of block n.

        The last block may hold fewer leaves than 256.
        """
        self._blocks = blocks
        self._leaves_of = leaves_of
        self._cached: dict[int, Sequence[bytes]] = {}

    def root(self, start: int, end: int) -> bytes:
        """The root of leaves `start` to `end`, end excluded: a range of RFC 6962's own division of a tree."""
        if start % BLOCK_LEAVES:
            return folded(self._leaves(start, end))
        hashes = list(self._blocks(start // BLOCK_LEAVES, end // BLOCK_LEAVES))
        if end % BLOCK_LEAVES:
            hashes.append(folded(self._leaves(end - end % BLOCK_LEAVES, end)))
        return folded(hashes)

    def inclusion(self, index: int, size: int) -> list[bytes]:
        """The audit path of leaf `index` in the tree of `size` leaves (RFC 6962, section 2.1.1)."""
        if not 0 <= index < size:
            raise ValueError(f"a tree of {size} leaves has no leaf {index}")
        path = []
        start, end = 0, size
        while end - start > 1:
            middle = start + _left_width(end - start)
            if index < middle:
                path.append(self.root(middle, end))
                end = middle
            else:
                path.append(self.root(start, middle))
                start = middle
        return path[::-1]

    def consistency(self, old_size: int, new_size: int) -> list[bytes]:
        """The proof that the tree of `old_size` leaves is the beginning of the larger one (section 2.1.2)."""
        if not 0 < old_size <= new_size:
            raise ValueError(f"there is no consistency proof from {old_size} to {new_size} leaves")
        path = []
        start, end = 0, new_size
        while end != old_size:
            middle = start + _left_width(end - start)
            if old_size <= middle:
                path.append(self.root(middle, end))
                end = middle
            else:
                path.append(self.root(start, middle))
                start = middle
        if start > 0:
            path.append(self.root(start, end))
        return path[::-1]

    def _leaves(self, start: int, end: int) -> Sequence[bytes]:
        number, at = divmod(start, BLOCK_LEAVES)
        if number not in self._cached:
            if len(self._cached) >= _BLOCKS_CACHED:
                self._cached.clear()
            self._cached[number] = self._leaves_of(number)
        return self._cached[number][at : at + end - start]


def _left_width(width: int) -> int:
    """The largest power of two below the width of a range, which is where RFC 6962 divides it."""
    return 1 << ((width - 1).bit_length() - 1)
