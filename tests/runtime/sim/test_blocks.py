"""The block pool against a brute-force model of it."""

from collections.abc import Hashable
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime.eviction.lru import LruEviction
from runtime.sim.blocks import BlockPool
from runtime.sim.hashing import chain_hashes, root_hash

BLOCK_SIZE = 2
NUM_BLOCKS = 7

Content = tuple[str, tuple[int, ...]]
"""What a full block stands for: the salt, and all tokens up to its end."""


@dataclass
class Model:
    """Which contents are findable, by scanning; `idle` holds the unreferenced ones, longest idle first."""

    held: list[list[Content | None]] = field(default_factory=list)
    idle: list[Content] = field(default_factory=list)

    def in_use(self) -> set[Content]:
        return {content for contents in self.held for content in contents if content}

    def findable(self) -> set[Content]:
        return self.in_use() | set(self.idle)

    def used(self) -> int:
        return len(self.in_use()) + sum(contents.count(None) for contents in self.held)


def pool_of(num_blocks: int) -> BlockPool:
    return BlockPool(num_blocks, LruEviction())


class PoolAgainstModel(RuleBasedStateMachine):
    """Requests come and go; hits, references, evictions and free blocks are those of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = pool_of(NUM_BLOCKS)
        self.model = Model()
        self.now = 0

    @rule(
        tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9).map(tuple),
        salt=st.sampled_from(["", "team-a"]),
    )
    def admit(self, tokens: tuple[int, ...], salt: str) -> None:
        self.now += 1
        contents = [(salt, tokens[:end]) for end in range(BLOCK_SIZE, len(tokens) + 1, BLOCK_SIZE)]
        found = next((at for at, content in enumerate(contents) if content not in self.model.findable()), len(contents))
        assert self.pool.cached_prefix(contents, len(contents)) == found
        fresh = -(-len(tokens) // BLOCK_SIZE) - found
        free = NUM_BLOCKS - self.model.used()
        revived = len(set(contents[:found]) - self.model.in_use())
        assert self.pool.revived(contents, found) == revived
        assert self.pool.free_blocks == free
        if fresh > free - revived:
            return
        blank = free - len(self.model.idle)
        self.pool.hold(contents[:found], self.now)
        self.model.idle = [content for content in self.model.idle if content not in contents[:found]]
        self.pool.take(fresh, self.now)
        del self.model.idle[: max(0, fresh - blank)]
        holding: list[Content | None] = [*contents[:found], *[None] * fresh]
        for at in range(found, len(contents)):
            fresh_content = contents[at] not in self.model.findable()
            assert self.pool.seal(contents[at], self.now) == fresh_content
            if fresh_content:
                holding[at] = contents[at]
        self.model.held.append(holding)

    @precondition(lambda self: self.model.held)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.now += 1
        contents = self.model.held.pop(data.draw(st.integers(0, len(self.model.held) - 1)))
        shared: list[Hashable] = [content for content in contents if content]
        self.pool.free(shared, len(contents) - len(shared), self.now)
        still = self.model.in_use()
        self.model.idle += [content for content in reversed(contents) if content and content not in still]

    @invariant()
    def references_are_holdings(self) -> None:
        for content in self.model.findable():
            assert self.pool.references(content) == sum(content in contents for contents in self.model.held)

    @invariant()
    def no_block_is_lost(self) -> None:
        assert self.pool.used_blocks == self.model.used()
        assert self.pool.free_blocks == NUM_BLOCKS - self.model.used()
        assert self.pool.findable == len(self.model.findable())
        assert self.pool.blank + self.pool.private + self.pool.findable == NUM_BLOCKS
        assert self.pool.usage == pytest.approx(self.model.used() / NUM_BLOCKS)


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
    pool = pool_of(3)
    pool.take(3, 0)
    for block_hash in "abc":
        assert pool.seal(block_hash, 0)
    pool.free(["a", "b", "c"], 0, 1)
    pool.take(1, 2)
    assert pool.cached_prefix("abc", 3) == 2


def test_freeing_twice_is_refused() -> None:
    pool = pool_of(2)
    pool.take(2, 0)
    pool.seal("a", 0)
    pool.free(["a"], 1, 1)
    with pytest.raises(ValueError, match="without being held"):
        pool.free(["a"], 0, 2)
    with pytest.raises(ValueError, match="only 0 are held"):
        pool.free([], 1, 2)
    assert pool.free_blocks == 2


def test_more_than_is_free_is_not_handed_out() -> None:
    pool = pool_of(3)
    pool.take(2, 0)
    with pytest.raises(ValueError, match="2 blocks were asked for and 1 are free"):
        pool.take(2, 0)
    assert pool.free_blocks == 1


def test_only_held_blocks_are_sealed() -> None:
    with pytest.raises(ValueError, match="no request holds"):
        pool_of(1).seal("a", 0)


class Deluded(LruEviction):
    """Gives up what it never had."""

    def evict(self, now: int) -> Hashable:
        super().evict(now)
        return "something else"


def test_a_policy_that_gives_up_what_it_may_not_is_found_out() -> None:
    pool = BlockPool(1, Deluded())
    pool.take(1, 0)
    pool.seal("a", 0)
    pool.free(["a"], 0, 1)
    with pytest.raises(ValueError, match="the eviction policy gave up"):
        pool.take(1, 2)
