"""Which replica is chosen, whatever the loads."""

from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from math import ceil
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.routing.least_load import LeastLoad
from runtime.routing.port import RoutingPolicy
from runtime.routing.prefix_affinity import PrefixAffinity
from runtime.routing.round_robin import RoundRobin

MAKERS: dict[str, Callable[[], RoutingPolicy]] = {
    "least_load": LeastLoad,
    "round_robin": RoundRobin,
    "prefix_affinity": PrefixAffinity,
}
each_policy = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
LOADS = st.lists(st.integers(-1, 20), min_size=3, max_size=3)
ASKED = st.lists(st.tuples(LOADS, st.lists(st.integers(0, 9), max_size=4)), max_size=60)
Asked = list[tuple[list[int], list[int]]]


@each_policy
@given(asked=ASKED)
def test_an_available_replica_is_chosen_where_there_is_one(make: Callable[[], RoutingPolicy], asked: Asked) -> None:
    policy = make()
    for loads, prefix in asked:
        chosen = policy.choose(loads, prefix)
        assert chosen == -1 if max(loads) < 0 else loads[chosen] >= 0


@each_policy
@given(asked=ASKED)
def test_the_same_requests_go_the_same_ways(make: Callable[[], RoutingPolicy], asked: Asked) -> None:
    first, second = make(), make()
    assert [first.choose(*each) for each in asked] == [second.choose(*each) for each in asked]


@each_policy
def test_no_replicas_are_none_available(make: Callable[[], RoutingPolicy]) -> None:
    assert make().choose([], [1]) == -1


def test_the_least_loaded_is_chosen_and_of_equals_the_first() -> None:
    policy = LeastLoad()
    assert [policy.choose(loads) for loads in ([3, 1, 1], [0, 0], [-1, 9, 8], [-1, -1])] == [1, 0, 2, -1]


def test_each_has_its_turn_and_who_is_away_misses_it() -> None:
    policy = RoundRobin()
    assert [policy.choose([9, 0, 0]) for _ in range(4)] == [0, 1, 2, 0]
    assert [policy.choose([0, -1, 0]) for _ in range(3)] == [2, 0, 2]


def test_a_conversation_stays_where_it_began() -> None:
    policy = PrefixAffinity()
    assert policy.choose([2, 1, 3], [10, 11]) == 1
    assert policy.choose([0, 3, 0], [10, 11, 12]) == 1
    assert policy.choose([0, 0, 0], [20, 21]) == 0


def test_the_longest_known_prefix_decides() -> None:
    policy = PrefixAffinity()
    policy.choose([1, 0, 1], [1, 2])
    policy.choose([9, 9, 0], [1, 3])
    assert policy.choose([0, 0, 0], [1, 2, 4]) == 1
    assert policy.choose([0, 0, 0], [1, 3, 5]) == 2


def test_where_it_is_too_busy_a_shorter_prefix_decides_before_the_load_does() -> None:
    policy = PrefixAffinity(free_load=2)
    policy.choose([1, 0, 1], [1, 2])
    policy.choose([1, 9, 0], [1])
    assert policy.choose([0, 5, 1], [1, 2]) == 2


def test_who_is_away_or_gone_is_passed_over() -> None:
    policy = PrefixAffinity()
    policy.choose([1, 1, 0], [1])
    assert policy.choose([1, 0, -1], [1]) == 1
    policy.choose([1, 1, 0], [2])
    assert policy.choose([0, 1], [2]) == 0


@given(asked=ASKED, percent=st.integers(0, 200), free=st.integers(0, 6))
def test_no_replica_has_more_than_the_bound_allows(asked: Asked, percent: int, free: int) -> None:
    """With the request it is no more than so many percent over the mean, rounded up, or within what is free."""
    policy = PrefixAffinity(over_mean_percent=percent, free_load=free)
    for loads, prefix in asked:
        chosen = policy.choose(loads, prefix)
        if chosen >= 0:
            available = [load for load in loads if load >= 0]
            mean = Fraction(sum(available) + 1, len(available))
            assert loads[chosen] + 1 <= max(free, ceil(mean * (100 + percent) / 100))


def test_one_prefix_that_all_share_is_spread_by_the_bound() -> None:
    """A thousand requests that never end, all of one beginning, leave no replica more than a quarter over the mean."""
    policy, loads = PrefixAffinity(), [0, 0, 0, 0]
    for request in range(1000):
        loads[policy.choose(loads, [7, 100 + request])] += 1
    assert max(loads) <= 1.25 * 250 + 1


def test_what_is_known_is_bounded_and_what_is_used_stays() -> None:
    policy, dice = PrefixAffinity(prefixes_max=100), Random(1)
    policy.choose([1, 0], ["kept", "kept too"])
    for _ in range(1000):
        policy.choose([0, 1], [dice.random() for _ in range(dice.randint(1, 8))])
        assert policy.choose([0, 0], ["kept", "kept too"]) == 1
        assert len(policy) <= 100


def test_conversations_spread_and_each_comes_back_to_where_it_began() -> None:
    """Four at a time are in flight: new ones go where there is least to do, later turns to where the first went."""
    policy, homes = PrefixAffinity(), dict[int, int]()
    for turn in range(5):
        for first in range(0, 200, 4):
            loads = [0, 0, 0, 0]
            for talk in range(first, first + 4):
                chosen = policy.choose(loads, [(talk, block) for block in range(turn + 1)])
                loads[chosen] += 1
                assert homes.setdefault(talk, chosen) == chosen
    assert Counter(homes.values()) == {0: 50, 1: 50, 2: 50, 3: 50}


@pytest.mark.parametrize("wrong", [{"prefixes_max": 0}, {"over_mean_percent": -1}, {"free_load": -1}])
def test_bounds_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        PrefixAffinity(**wrong)
