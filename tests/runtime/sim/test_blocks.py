"""The block pool against a brute-force model of it."""

from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime.sim.blocks import BlockPool, chain_hashes, root_hash

BLOCK_SIZE = 2
NUM_BLOCKS = 7

Content = tuple[str, tuple[int, ...]]
"""What a full block stands for: the salt, and all tokens up to its end."""


@dataclass
class Holding:
    blocks: list[int]
    contents: list[Content | None]


@dataclass
class Model:
    """Which contents are findable, by scanning; `idle` holds the unreferenced ones, longest idle first."""

    held: list[list[Content | None]] = field(default_factory=list)
    idle: list[Content] = field(default_factory=list)

    def findable(self) -> set[Content]:
        return {content for contents in self.held for content in contents if content} | set(self.idle)

    def hits(self, salt: str, tokens: tuple[int, ...]) -> int:
        count = 0
        findable = self.findable()
        while (count + 1) * BLOCK_SIZE <= len(tokens) and (salt, tokens[: (count + 1) * BLOCK_SIZE]) in findable:
            count += 1
        return count


class PoolAgainstModel(RuleBasedStateMachine):
    """Requests come and go; hits, references, evictions and free blocks are those of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.model = Model()
        self.holdings: list[Holding] = []

    @rule(
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9).map(tuple),
        salt=st.sampled_from(["", "team-a"]),
    )
    def admit(self, tokens: tuple[int, ...], salt: str) -> None:
        hashes = chain_hashes(root_hash(salt), tokens, BLOCK_SIZE)
        prefix = self.pool.cached_prefix(hashes, len(hashes))
        assert len(prefix) == self.model.hits(salt, tokens)
        fresh = -(-len(tokens) // BLOCK_SIZE) - len(prefix)
        shared = [(salt, tokens[: (at + 1) * BLOCK_SIZE]) for at in range(len(prefix))]
        held = {content for contents in self.model.held for content in contents if content}
        free = NUM_BLOCKS - len({block for holding in self.holdings for block in holding.blocks})
        room = fresh <= free - len(set(shared) - held)
        assert self.pool.can_allocate(fresh, prefix) == room
        if not room:
            with pytest.raises(ValueError, match="free"):
                self.pool.allocate(fresh, prefix)
            return
        blank = free - len(self.model.idle)
        self.model.idle = [content for content in self.model.idle if content not in shared]
        blocks = self.pool.allocate(fresh, prefix)
        assert blocks[: len(prefix)] == prefix
        del self.model.idle[: max(0, fresh - blank)]
        contents: list[Content | None] = list(shared)
        for at in range(len(prefix), len(blocks)):
            content = (salt, tokens[: (at + 1) * BLOCK_SIZE])
            if at < len(hashes):
                self.pool.seal(blocks[at], hashes[at])
            contents.append(content if at < len(hashes) and content not in self.model.findable() else None)
        self.holdings.append(Holding(blocks, contents))
        self.model.held.append(contents)

    @precondition(lambda self: self.holdings)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.holdings) - 1))
        self.pool.free(self.holdings.pop(at).blocks)
        contents = self.model.held.pop(at)
        still = {content for others in self.model.held for content in others if content}
        self.model.idle += [content for content in reversed(contents) if content and content not in still]

    @invariant()
    def references_are_holdings(self) -> None:
        for block in range(NUM_BLOCKS):
            assert self.pool.references(block) == sum(holding.blocks.count(block) for holding in self.holdings)

    @invariant()
    def no_block_is_lost(self) -> None:
        used = {block for holding in self.holdings for block in holding.blocks}
        assert self.pool.free_blocks == NUM_BLOCKS - len(used)
        assert self.pool.usage == pytest.approx(len(used) / NUM_BLOCKS)


TestPoolAgainstModel = PoolAgainstModel.TestCase


def test_hashes_depend_on_every_token_before_and_on_the_salt() -> None:
    base = chain_hashes(root_hash("a"), [1, 2, 3, 4, 5], 2)
    assert len(base) == 2
    assert chain_hashes(root_hash("a"), [1, 2, 3, 4], 2) == base
    assert chain_hashes(root_hash("a"), [9, 2, 3, 4], 2)[1] != base[1]
    assert not set(chain_hashes(root_hash("b"), [1, 2, 3, 4], 2)) & set(base)


def test_hashes_can_be_extended_from_where_they_ended() -> None:
    tokens = list(range(20))
    whole = chain_hashes(root_hash(""), tokens, 4)
    assert whole[:3] + chain_hashes(whole[2], tokens[12:], 4) == whole


def test_the_tail_of_a_chain_is_evicted_before_its_head() -> None:
    pool = BlockPool(3)
    hashes = chain_hashes(root_hash(""), range(6), 2)
    blocks = pool.allocate(3)
    for block, block_hash in zip(blocks, hashes, strict=True):
        pool.seal(block, block_hash)
    pool.free(blocks)
    pool.allocate(1)
    assert pool.cached_prefix(hashes, 3) == blocks[:2]


def test_freeing_twice_is_refused() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    pool.free(blocks)
    with pytest.raises(ValueError, match="without being held"):
        pool.free(blocks)
    assert pool.free_blocks == 2


def test_only_held_blocks_are_sealed() -> None:
    with pytest.raises(ValueError, match="without being held"):
        BlockPool(1).seal(0, b"hash")
