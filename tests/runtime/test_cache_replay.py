"""What a replay finds in a cache, and that nothing finds more than the optimum."""

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.cache_replay import Access, HitRates, accesses_of, hit_rate_table, replay
from runtime.cache_replay.optimum import Optimum
from runtime.cache_replay.plot import hit_rate_plot
from runtime.eviction.arc import ArcEviction
from runtime.eviction.lru import LruEviction
from runtime.eviction.port import EvictionPolicy
from runtime.eviction.reuse import ReuseEviction
from runtime.workload.port import Arrival, WorkloadError

Make = Callable[[int], EvictionPolicy]
POLICIES: dict[str, Make] = {"lru": lambda _: LruEviction(), "arc": ArcEviction, "reuse": ReuseEviction}


class Given:
    """A workload of these arrivals."""

    name = "given"
    block_tokens = 16

    def __init__(self, *arrivals: Arrival) -> None:
        self.arrivals = arrivals

    def __iter__(self) -> Iterator[Arrival]:
        return iter(self.arrivals)


def accesses(*chains: Sequence[int]) -> list[Access]:
    """Requests for these paths through one tree, a second apart: equal paths from the root have equal ids."""
    ids: dict[tuple[int, ...], int] = {}

    def blocks(chain: Sequence[int]) -> tuple[int, ...]:
        return tuple(ids.setdefault(tuple(chain[: depth + 1]), len(ids)) for depth in range(len(chain)))

    return [Access(second * 1_000_000, blocks(chain)) for second, chain in enumerate(chains)]


CHAINS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=3), min_size=1, max_size=7)


def best(requests: list[Access], capacity: int) -> int:
    """The most hits that any choice of what to keep after each request could bring: all choices are tried."""

    @cache
    def most(index: int, cached: frozenset[int]) -> int:
        if index == len(requests):
            return 0
        blocks = requests[index].blocks[:capacity]
        hits = 0
        while hits < len(blocks) and blocks[hits] in cached:
            hits += 1
        others = sorted(cached - set(blocks))
        room = min(len(others), capacity - len(blocks))
        kept = (frozenset((*blocks, *those)) for those in combinations(others, room))
        return hits + max(most(index + 1, each) for each in kept)

    return most(0, frozenset())


@settings(max_examples=300, deadline=None)
@given(chains=CHAINS, capacity=st.integers(1, 5))
def test_the_optimum_is_what_the_best_of_all_choices_finds(chains: list[list[int]], capacity: int) -> None:
    requests = accesses(*chains)
    assert replay(requests, capacity, Optimum(requests)).hits == best(requests, capacity)


@pytest.mark.parametrize("make", POLICIES.values(), ids=POLICIES)
@settings(max_examples=100, deadline=None)
@given(chains=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), max_size=40), capacity=st.integers(1, 12))
def test_no_policy_finds_more_than_the_optimum(make: Make, chains: list[list[int]], capacity: int) -> None:
    requests = accesses(*chains)
    optimum = replay(requests, capacity, Optimum(requests))
    found = replay(requests, capacity, make(capacity))
    assert found.lookups == optimum.lookups == sum(map(len, chains))
    assert found.hits <= optimum.hits


@settings(max_examples=100, deadline=None)
@given(chains=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), max_size=40), capacity=st.integers(1, 12))
def test_least_recent_use_is_replayed_as_a_plain_list_would(chains: list[list[int]], capacity: int) -> None:
    requests = accesses(*chains)
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for _, asked in requests:
        blocks = asked[:capacity]
        missing = [block for block in blocks if block not in kept]
        hits += blocks.index(missing[0]) if missing else len(blocks)
        for block in reversed(blocks):
            kept[block] = None
            kept.move_to_end(block)
        while len(kept) > capacity:
            kept.popitem(last=False)
    assert replay(requests, capacity, LruEviction()).hits == hits


def test_a_block_behind_a_missing_one_is_no_hit() -> None:
    class HeadFirst(LruEviction):
        """Gives up the head of a chain before its tail."""

        def release(self, key: object, now: int) -> None:
            super().release(key, now)
            self._released.move_to_end(key, last=False)

    requests = accesses([1, 1, 1], [2], [1, 1, 1])
    assert replay(requests, 3, HeadFirst()).hits == 0
    assert replay(requests, 3, LruEviction()).hits == 2


def test_what_is_longer_than_the_cache_is_kept_as_far_as_it_fits() -> None:
    requests = accesses([1, 1, 1, 1], [1, 1, 1, 1])
    found = replay(requests, 3, LruEviction())
    assert (found.lookups, found.hits, found.evictions) == (8, 3, 0)


def test_a_turn_comes_after_the_one_that_it_waits_for() -> None:
    workload = Given(
        Arrival(5, 16, 1, (1,)),
        Arrival(10, 16, 1, (1, 2), after=0),
        Arrival(7, 16, 1, (3,)),
        Arrival(0, 16, 1),
        Arrival(1, 16, 1, (1, 2, 4), after=1),
    )
    assert accesses_of(workload) == [(5, (1,)), (7, (3,)), (15, (1, 2)), (16, (1, 2, 4))]


def test_more_than_fits_into_memory_is_refused_before_it_is_read_whole() -> None:
    read = []

    class Endless(Given):
        def __iter__(self) -> Iterator[Arrival]:
            while True:
                read.append(1)
                yield Arrival(0, 16, 1, (1, 2))

    with pytest.raises(WorkloadError, match="given has more than 10 blocks or requests: replay a part"):
        accesses_of(Endless(), lookups_max=10)
    assert len(read) == 6


def test_a_cache_has_room() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        replay([], 0, LruEviction())


def workload(requests: int = 400) -> Given:
    dice = random.Random(1)
    chains = [[1, *(dice.randint(0, 2) for _ in range(dice.randint(1, 6)))] for _ in range(requests)]
    return Given(*(Arrival(at_us, 16, 1, blocks) for at_us, blocks in accesses(*chains)))


def test_the_table_has_every_policy_between_nothing_and_the_optimum() -> None:
    rows = hit_rate_table(workload(), (10, 40, 100_000))
    assert [row.capacity_blocks for row in rows] == [10, 40, 100_000]
    for row in rows:
        assert min(row.lru, row.arc, row.reuse) > 0
        assert max(row.lru, row.arc, row.reuse) <= row.optimum < row.infinite + 1e-9 < 1
    large = rows[-1]
    assert large.lru == large.arc == large.reuse == large.optimum == pytest.approx(large.infinite)


def test_a_workload_without_blocks_is_refused() -> None:
    with pytest.raises(WorkloadError, match="given has no blocks"):
        hit_rate_table(Given(Arrival(0, 16, 1)), (10,))


ROWS = [HitRates(100, 0.1, 0.2, 0.3, 0.4, 0.5), HitRates(10, 0.01, 0.02, 0.03, 0.04, 0.5)]


def test_the_picture_names_every_line_and_size(tmp_path: Path) -> None:
    hit_rate_plot(ROWS, tmp_path / "rates.svg", "a trace")
    drawn = (tmp_path / "rates.svg").read_text(encoding="utf-8")
    for said in ("LRU", "ARC", "reuse", "optimum", "infinite", ">10<", ">100<", "a trace"):
        assert said in drawn


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_same_rows_make_the_same_picture(tmp_path: Path, suffix: str) -> None:
    for name in ("a", "b"):
        hit_rate_plot(ROWS, tmp_path / (name + suffix))
    first = (tmp_path / ("a" + suffix)).read_bytes()
    assert first == (tmp_path / ("b" + suffix)).read_bytes()
    assert len(first) > 1000


def test_a_picture_needs_rows_and_a_known_kind_of_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no rows"):
        hit_rate_plot([], tmp_path / "rates.svg")
    with pytest.raises(ValueError, match=r"rates.txt is neither .png nor .svg"):
        hit_rate_plot(ROWS, tmp_path / "rates.txt")
