"""A paged pool of KV-cache blocks with prefix caching."""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

from runtime.sim.eviction import EvictionPolicy, LruEviction

_DIGEST_BYTES = 16


def root_hash(cache_salt: str) -> bytes:
    """The parent of a first block: requests share blocks only if their salts are equal."""
    return blake2b(cache_salt.encode(), digest_size=_DIGEST_BYTES).digest()


def chain_hashes(parent: bytes, token_ids: Sequence[int], block_size: int) -> list[bytes]:
    """One hash for each full block of `token_ids`, each over its parent's hash and its own tokens.

    A trailing partial block has none. Token ids must fit 32 unsigned bits, or OverflowError is raised.
    """
    packed = array("I", token_ids)
    width = packed.itemsize * block_size
    data = packed.tobytes()
    hashes: list[bytes] = []
    for start in range(0, len(data) - width + 1, width):
        parent = blake2b(parent + data[start : start + width], digest_size=_DIGEST_BYTES).digest()
        hashes.append(parent)
    return hashes


class BlockPool:
    """Hands out block numbers, counts references, and keeps full blocks findable until they are needed for others.

    A block is blank (free, no content), held (one reference or more) or cached (free, its content still findable).
    Blank blocks are handed out before cached ones are evicted.
    """

    def __init__(self, num_blocks: int, eviction: EvictionPolicy | None = None) -> None:
        self.num_blocks = num_blocks
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._evictable: EvictionPolicy = LruEviction() if eviction is None else eviction
        self._references = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}

    @property
    def free_blocks(self) -> int:
        """Blocks that nothing references, cached ones included."""
        return len(self._blank) + len(self._evictable)

    @property
    def usage(self) -> float:
        """The referenced part of the pool, 0 to 1."""
        return 1.0 - self.free_blocks / self.num_blocks

    def references(self, block: int) -> int:
        """How many requests hold the block."""
        return self._references[block]

    def cached_prefix(self, hashes: Sequence[bytes], blocks_max: int) -> list[int]:
        """The blocks of the longest findable prefix of `hashes`, at most `blocks_max`; changes nothing."""
        found: list[int] = []
        for block_hash in hashes[:blocks_max]:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def can_allocate(self, count: int, prefix: Sequence[int] = ()) -> bool:
        """Whether `count` fresh blocks are left once the blocks of `prefix` are held."""
        if not prefix:
            return count <= len(self._blank) + len(self._evictable)
        revived = sum(1 for block in prefix if self._references[block] == 0)
        return count + revived <= self.free_blocks

    def allocate(self, count: int, prefix: Sequence[int] = ()) -> list[int]:
        """Hold `prefix` (from `cached_prefix`) and `count` fresh blocks; returns all of them in that order.

        Raises ValueError, and changes nothing, when `can_allocate` says no.
        """
        if not self.can_allocate(count, prefix):
            raise ValueError(f"{count} blocks were asked for and {self.free_blocks} are free")
        for block in prefix:
            if self._references[block] == 0:
                self._evictable.remove(block)
            self._references[block] += 1
        return [*prefix, *(self._take_fresh() for _ in range(count))]

    def seal(self, block: int, block_hash: bytes) -> None:
        """Make a held, full block findable; of two blocks with the same content the first stays the findable one."""
        if self._references[block] == 0:
            raise ValueError(f"block {block} is sealed without being held")
        if block_hash not in self._block_of:
            self._block_of[block_hash] = block
            self._hash_of[block] = block_hash

    def free(self, blocks: Sequence[int]) -> None:
        """Drop one reference of each block; the tail of a chain is evicted before its head, which more can share.

        Raises ValueError for a block that is not held.
        """
        for block in reversed(blocks):
            left = self._references[block] - 1
            if left < 0:
                raise ValueError(f"block {block} is freed without being held")
            self._references[block] = left
            if left == 0:
                self._release(block)

    def _take_fresh(self) -> int:
        if self._blank:
            block = self._blank.pop()
        else:
            block = self._evictable.pop()
            self._forget(block)
        self._references[block] = 1
        return block

    def _forget(self, block: int) -> None:
        block_hash = self._hash_of[block]
        if block_hash is None:
            raise RuntimeError(f"evictable block {block} has no content")
        del self._block_of[block_hash]
        self._hash_of[block] = None

    def _release(self, block: int) -> None:
        if self._hash_of[block] is None:
            self._blank.append(block)
        else:
            self._evictable.add(block)
