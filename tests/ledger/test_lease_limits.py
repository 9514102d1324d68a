"""What limits do to leases: where they change under what is leased, or are overspent, nothing more can be spent."""

import pytest
import redis

from domain.amounts import Amounts
from domain.charges import Charge
from ledger.book import Book
from ledger.counters import Grant
from ledger.exchange_lines import Want
from ledger.holds import Hold, Shortfall
from ledger.leases import IDLE_S, LIMIT_MAX, TELL_S
from tests.ledger.replicas import (
    NOW_S,
    NOW_US,
    SEARCH,
    budget,
    charge,
    counter_of,
    demand,
    fetched,
    hold,
    idle,
    ready,
    replica,
    step,
    two,
)
from tests.ledger.shared_book import Ask, Clock, Replica


def lowered(replicas: tuple[Replica, ...], limit: int) -> None:
    for each in replicas:
        each.book.configure([budget(limit)], NOW_S)


def used(replicas: tuple[Replica, ...]) -> int:
    return sum(counter_of(each).spent + counter_of(each).held for each in replicas)


def test_what_lay_idle_under_a_larger_limit_is_not_used_again_even_where_redis_forgets(
    redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask
) -> None:
    replicas = first, second = two(clock, ask, [budget(100)], horizon_s=10.0)
    for each in replicas:
        idle(each, ask, 40)
    lowered(replicas, 20)
    redis_client.flushall()
    for each in (second, second, first, first, second, first):
        step(each, ask)
        hold(each, 20)
        assert used(replicas) <= 20


def test_what_is_held_under_a_larger_limit_is_all_that_is_ever_used_beyond_a_lower_one(
    redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask
) -> None:
    """A hold that ends makes room for another where it was, until the store has been asked; Redis adds nothing."""
    replicas = first, second = two(clock, ask, [budget(100)])
    for each in replicas:
        idle(each, ask, 10)
        fetched(each, ask, 30)
    lowered(replicas, 40)
    redis_client.flushall()
    for each in (second, first, first, second, second, first):
        for hold_id in list(each.book.holds):
            each.book.void(hold_id)
        step(each, ask)
        while isinstance(hold(each, 1), Hold):
            pass
        assert used(replicas) <= 60
    for each in replicas:
        for hold_id in list(each.book.holds):
            each.book.void(hold_id)
        each.exchange(ask, NOW_S)
    for each in (*replicas, *replicas):
        while ready(each, ask, 1):
            hold(each, 1)
    assert used(replicas) == 40


def test_what_was_given_under_a_larger_limit_is_not_used_and_goes_back_at_once(clock: Clock, ask: Ask) -> None:
    first, second = two(clock, ask, [budget(100)])
    route = first.book.route(SEARCH, NOW_S)
    want = Want(route, demand(80))
    first.leases.want(want)
    first.leases.collect(first.at_s)
    shard = first.leases.shard("acme")
    answer = ask(first.leases.build(shard, [want], NOW_S, first.at_s))
    lowered((first, second), 20)
    first.leases.apply(shard, answer, NOW_S)
    assert counter_of(first).room <= 0
    assert first.leases.is_pressing(shard, first.at_s)
    step(first, ask)
    assert ready(second, ask, 20) == 20


def test_after_an_overage_what_lies_idle_goes_back_so_that_anyone_can_have_the_rest(clock: Clock, ask: Ask) -> None:
    first, second = two(clock, ask, [budget(100)], horizon_s=10.0)
    idle(first, ask, 40)
    charge(second, ask, 80, held=20)
    second.exchange(ask, NOW_S)
    first.leases.due(counter_of(first))
    first.exchange(ask, NOW_S)
    step(second, ask, wanted=20)
    assert counter_of(second).room == 20


def test_a_limit_that_is_leased_to_its_end_calls_nothing_back(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [budget(100)], horizon_s=10.0)
    idle(alone, ask, 100)
    alone.exchange(ask, NOW_S)
    assert counter_of(alone).room == 100


def test_the_largest_limit_is_leased_to_the_last(clock: Clock, ask: Ask) -> None:
    """Amounts arrive with all their digits."""
    first, second = two(clock, ask, [budget(LIMIT_MAX)])
    fetched(first, ask, LIMIT_MAX - 2)
    assert ready(second, ask, 2) == 2
    assert counter_of(second).held_elsewhere == LIMIT_MAX - 2


def test_a_grant_beyond_what_the_store_can_count_adds_nothing_there(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [budget(LIMIT_MAX)])
    alone.book.grant(Grant("g", "b", "*", 10, NOW_S + 10, "ann", "launch"), NOW_S)
    fetched(alone, ask, LIMIT_MAX)
    assert ready(alone, ask, 1) == 0


@pytest.mark.parametrize(("of", "beyond"), [(1, 7), (2, 3)])
def test_beyond_what_is_needed_a_replica_is_leased_its_part_of_half_of_what_is_left(
    clock: Clock, ask: Ask, of: int, beyond: int
) -> None:
    replicas = [replica(clock, [budget(25)], f"r{at}", of=of, horizon_s=10.0) for at in range(of)]
    for each in (*replicas, *replicas):
        each.leases.shard("acme")
        each.exchange(ask, NOW_S)
    step(replicas[0], ask, wanted=10)
    assert counter_of(replicas[0]).room == 10 + beyond


def test_a_threshold_that_was_seen_is_not_seen_again_in_a_new_epoch(
    redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask
) -> None:
    """Nor by the next process, which finds in its journal what was spent."""
    alone = replica(clock, [budget(100)])
    charge(alone, ask, 90)
    assert [crossing.band for crossing in alone.exchange(ask, NOW_S)] == ["warn"]
    rebuilt = Book([budget(100)], NOW_S, is_shared=True)
    for each in alone.book.spent_charges():
        rebuilt.restore_spent(each, NOW_S)
    for replica_ in (alone, Replica("r0", 1, rebuilt, clock, 0.0)):
        redis_client.flushall()
        replica_.leases.shard("acme")
        for _ in range(2):
            replica_.leases.due(counter_of(replica_))
            assert replica_.exchange(ask, NOW_S) == []


def test_a_threshold_that_was_not_told_before_redis_forgot_is_seen_after_it(
    redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask
) -> None:
    """What is spent while an exchange is under way is not told with it, and what a join tells is not summed yet."""
    alone = replica(clock, [budget(100)])
    held = fetched(alone, ask, 90)
    alone.leases.due(counter_of(alone))
    shard = alone.leases.shard("acme")
    answer = ask(alone.leases.build(shard, [], NOW_S, alone.at_s))
    alone.book.settle(held.hold_id, Amounts(tokens=90), NOW_US)
    assert alone.leases.apply(shard, answer, NOW_S) == []
    redis_client.flushall()
    while shard.joining is None:
        step(alone, ask)
    assert step(alone, ask) == []
    redis_client.flushall()
    crossings = alone.exchange(ask, NOW_S)
    for _ in range(2):
        alone.leases.due(counter_of(alone))
        crossings += alone.exchange(ask, NOW_S)
    assert [crossing.band for crossing in crossings] == ["warn"]


def test_a_threshold_is_seen_once_all_replicas_have_joined_and_not_before(clock: Clock, ask: Ask) -> None:
    soft = budget(100, mode="soft")
    first, second = (replica(clock, [soft], name, of=2) for name in ("r0", "r1"))
    hold_id = hold(first, 90).hold_id  # type: ignore[union-attr]  # a soft budget refuses nothing
    first.book.settle(hold_id, Amounts(tokens=90), NOW_US)
    assert first.exchange(ask, NOW_S) == []
    second.leases.shard("acme")
    assert second.exchange(ask, NOW_S) == []
    clock.now_ms += int(TELL_S * 1000)
    assert [crossing.band for crossing in first.exchange(ask, NOW_S)] == ["warn"]


def test_a_new_process_uses_nothing_of_what_its_journal_has_before_it_was_leased_again(clock: Clock, ask: Ask) -> None:
    """Not even what a correction frees."""
    rebuilt = Book([budget(100)], NOW_S, is_shared=True)
    rebuilt.restore_spent(Charge("b", "org=acme", NOW_S, "tokens", 60), NOW_S)
    alone = Replica("r0", 1, rebuilt, clock, 0.0)
    rebuilt.adjust([Charge("b", "org=acme", NOW_S, "tokens", -60)], NOW_S)
    assert isinstance(hold(alone, 1), Shortfall)
    assert isinstance(fetched(alone, ask, 100), Hold)


def test_what_a_process_spent_before_it_died_is_told_of_by_the_next_without_a_request(clock: Clock, ask: Ask) -> None:
    rebuilt = Book([budget(100)], NOW_S, is_shared=True)
    rebuilt.restore_spent(Charge("b", "org=acme", NOW_S, "tokens", 90), NOW_S)
    first, second = two(clock, ask, [budget(100)])
    fetched(first, ask, 90)
    second.book.route(SEARCH, NOW_S)
    again = Replica("r0", 2, rebuilt, clock, 0.0)
    again.leases.shard("acme")
    crossings = again.exchange(ask, NOW_S)
    clock.now_ms += int(2 * IDLE_S * 1000)
    crossings += again.exchange(ask, NOW_S)
    second.exchange(ask, NOW_S)
    assert counter_of(second).spent_elsewhere == 90
    assert [crossing.band for crossing in crossings] == ["warn"]


@pytest.mark.parametrize("forgets", [False, True], ids=["redis remembers", "redis forgets"])
def test_what_holds_of_a_larger_limit_leave_free_is_not_held_beyond_the_lower_one(
    redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask, forgets: bool
) -> None:
    """What one knows of the other is from before, and what Redis knows of both is at first a part."""
    replicas = first, second = two(clock, ask, [budget(100)], horizon_s=10.0)
    for each in replicas:
        fetched(each, ask, 40)
    lowered(replicas, 40)
    for each in replicas if forgets else (first,):
        each.book.void(next(iter(each.book.holds)))
    if forgets:
        redis_client.flushall()
        step(second, ask)
        step(second, ask)
    for each in replicas:
        hold(each, 40)
    assert used(replicas) <= 40


def test_after_an_overage_no_more_is_leased_than_is_asked_for(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [budget(1_000)])
    charge(alone, ask, 50, held=10)
    assert ready(alone, ask, 5) == 5
