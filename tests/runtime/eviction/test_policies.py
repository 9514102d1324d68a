"""What every eviction policy keeps to, whatever it thinks of the future."""

import ast
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import runtime.eviction
from runtime.eviction.arc import ArcEviction
from runtime.eviction.lru import LruEviction
from runtime.eviction.port import EvictionPolicy
from runtime.eviction.reuse import ReuseEviction

CAPACITY = 8
Make = Callable[[int], EvictionPolicy]
MAKERS: dict[str, Make] = {"lru": lambda _: LruEviction(), "arc": ArcEviction, "reuse": ReuseEviction}
each_policy = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
Step = tuple[str, int, int]
KINDS = ("ask", "ask", "ask", "end", "evict", "lose", "touch")
STEPS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 11), st.integers(0, 50)), max_size=150)


class Cache:
    """A policy beside a plain model of the cache that it decides over: who holds what."""

    def __init__(self, policy: EvictionPolicy) -> None:
        self.policy, self.now = policy, 0
        self.holders: dict[int, int] = {}  # of each cached key: how many hold it
        self.given_up: list[int] = []

    def run(self, steps: list[Step]) -> list[int]:
        """What is given up in these steps and after them, until only what is held is left."""
        for what, key, later in steps:
            self.now += later
            getattr(self, what)(key)
            assert len(self.policy) == self.released()
        while self.released():
            self.evict()
        with pytest.raises(KeyError):
            self.policy.evict(self.now)
        return self.given_up

    def released(self) -> int:
        return sum(not held for held in self.holders.values())

    def ask(self, key: int) -> None:
        if key in self.holders:
            self.policy.hit(key, self.now)
            if not self.holders[key]:
                self.policy.hold(key)
            self.holders[key] += 1
        elif self.released() or len(self.holders) < CAPACITY:
            if len(self.holders) == CAPACITY:
                self.evict()
            self.policy.insert(key, self.now)
            self.holders[key] = 1

    def end(self, key: int) -> None:
        if self.holders.get(key):
            self.holders[key] -= 1
            if not self.holders[key]:
                self.policy.release(key, self.now)

    def evict(self, _: int = 0) -> None:
        if self.released():
            key = self.policy.evict(self.now)
            assert isinstance(key, int)
            assert self.holders.pop(key) == 0, "what is held was given up"
            self.given_up.append(key)

    def lose(self, key: int) -> None:
        self.policy.remove(key)
        self.holders.pop(key, None)

    def touch(self, key: int) -> None:
        if key in self.holders:
            self.policy.hit(key, self.now)


def run(policy: EvictionPolicy, steps: list[Step]) -> list[int]:
    return Cache(policy).run(steps)


@each_policy
@settings(max_examples=150)
@given(steps=STEPS)
def test_gives_up_what_is_cached_and_not_held_and_nothing_else(make: Make, steps: list[Step]) -> None:
    run(make(CAPACITY), steps)


@each_policy
@settings(max_examples=50)
@given(steps=STEPS)
def test_the_same_life_ends_the_same(make: Make, steps: list[Step]) -> None:
    assert run(make(CAPACITY), steps) == run(make(CAPACITY), steps)


@each_policy
def test_nothing_can_be_given_up_of_an_empty_cache(make: Make) -> None:
    with pytest.raises(KeyError):
        make(CAPACITY).evict(0)


@each_policy
def test_what_was_lost_is_new_when_it_comes_again(make: Make) -> None:
    """A key that is removed while it is held leaves nothing behind that could be given up later."""
    policy = make(CAPACITY)
    policy.insert(1, 0)
    policy.remove(1)
    assert len(policy) == 0
    policy.insert(1, 1)
    policy.release(1, 1)
    assert [policy.evict(2)] == [1]


@pytest.mark.parametrize("make", [ArcEviction, ReuseEviction])
def test_a_cache_has_room_for_a_key(make: Make) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make(0)


@pytest.mark.parametrize(("make", "per_key"), [(ArcEviction, 2), (ReuseEviction, 5)], ids=["arc", "reuse"])
def test_what_is_remembered_is_bounded(make: Make, per_key: int) -> None:
    """A million keys that come once leave no more than so many per key of the cache, in any of its containers."""
    policy, dice = make(CAPACITY), random.Random(1)
    for now in range(20_000):
        key = dice.randrange(1_000_000)
        if now >= CAPACITY:
            policy.evict(now)
        policy.insert(key, now)
        policy.release(key, now)
    containers = [each for each in vars(policy).values() if isinstance(each, dict)]
    assert len(containers) > 2
    keys = {key for each in containers for key in each}
    assert len(keys) <= per_key * CAPACITY + 64  # and reuse counts its cells by number, few of which have keys


@pytest.mark.parametrize("name", [*MAKERS, "port"])
def test_needs_nothing_but_python(name: str) -> None:
    """The plugin ships each of these files into vLLM's environment, where Bursar is not."""
    tree = ast.parse((Path(runtime.eviction.__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
    imported = {
        module.split(".")[0]
        for node in ast.walk(tree)
        for module in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    }
    assert imported
    assert imported <= sys.stdlib_module_names
