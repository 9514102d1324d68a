"""A paged pool of KV-cache blocks with prefix caching."""

from collections.abc import Hashable, Sequence

from runtime.eviction.port import EvictionPolicy


class BlockPool:
    """Counts blocks, and keeps full ones findable by the hash of their content until they are needed for others.

    A block is blank (no content), private (of one request, which alone can find it: it is not full, or has no hash, or
    another holds the same content already) or findable under its hash: held by one request or more, or released.
    Blank blocks are handed out before the policy gives up released ones.
    """

    def __init__(self, num_blocks: int, eviction: EvictionPolicy) -> None:
        self.num_blocks = num_blocks
        self.blank = num_blocks
        self.private = 0
        self._eviction = eviction
        self._references: dict[Hashable, int] = {}

    @property
    def free_blocks(self) -> int:
        """Blocks that no request holds, those with findable content included."""
        return self.blank + len(self._eviction)

    @property
    def used_blocks(self) -> int:
        """Blocks that requests hold."""
        return self.num_blocks - self.blank - len(self._eviction)

    @property
    def findable(self) -> int:
        """Blocks whose content can be found, held or released."""
        return len(self._references)

    @property
    def usage(self) -> float:
        """The held part of the pool, 0 to 1."""
        return self.used_blocks / self.num_blocks

    def references(self, block_hash: Hashable) -> int:
        """How many requests hold this content; 0 also when it cannot be found."""
        return self._references.get(block_hash, 0)

    def cached_prefix(self, hashes: Sequence[Hashable], blocks_max: int) -> int:
        """How many of the first hashes, at most `blocks_max`, are findable; changes nothing."""
        references = self._references
        count = 0
        for block_hash in hashes:
            if count == blocks_max or block_hash not in references:
                break
            count += 1
        return count

    def revived(self, hashes: Sequence[Hashable], count: int) -> int:
        """How many of the first `count` findable hashes nobody holds: holding them takes that many free blocks."""
        references = self._references
        return sum(1 for at in range(count) if references[hashes[at]] == 0)

    def hold(self, hashes: Sequence[Hashable], now: int) -> None:
        """A request holds these findable blocks."""
        references, eviction = self._references, self._eviction
        for block_hash in hashes:
            eviction.hit(block_hash, now)
            if references[block_hash] == 0:
                eviction.hold(block_hash)
            references[block_hash] += 1

    def take(self, count: int, now: int) -> None:
        """Hand out `count` private blocks; ValueError, and nothing happens, when fewer are free."""
        short = count - self.blank
        if short > 0:
            self._give_up(short, count, now)
        self.blank -= count
        self.private += count

    def seal(self, block_hash: Hashable, now: int) -> bool:
        """Make a private block findable, which its request holds; False when it stays private: there is one already.

        vLLM keeps such doubles under their hash too, until they are evicted; here they are blank once they are free.
        """
        if block_hash in self._references:
            return False
        if self.private == 0:
            raise ValueError("a block is sealed that no request holds")
        self.private -= 1
        self._references[block_hash] = 1
        self._eviction.insert(block_hash, now)
        return True

    def free(self, hashes: Sequence[Hashable], private: int, now: int) -> None:
        """A request lets go of findable blocks and private ones; a chain's tail first, for more can share its head.

        Raises ValueError for what is not held.
        """
        references = self._references
        if private > self.private:
            raise ValueError(f"{private} private blocks are freed and only {self.private} are held")
        self.private -= private
        self.blank += private
        for block_hash in reversed(hashes):
            left = references.get(block_hash, 0) - 1
            if left < 0:
                raise ValueError("a block is freed without being held")
            references[block_hash] = left
            if left == 0:
                self._eviction.release(block_hash, now)

    def _give_up(self, short: int, count: int, now: int) -> None:
        if short > len(self._eviction):
            raise ValueError(f"{count} blocks were asked for and {self.free_blocks} are free")
        for _ in range(short):
            block_hash = self._eviction.evict(now)
            if self._references.get(block_hash) != 0:
                raise ValueError("the eviction policy gave up content that is held, or that it never had")
            del self._references[block_hash]
            self.blank += 1
