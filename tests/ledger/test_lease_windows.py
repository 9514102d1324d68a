"""What windows and clocks do to leases: what is leased in one is not used in another, nor early or late."""

import pytest
import redis

from domain.amounts import MILLION, Amounts
from ledger.exchange_lines import Want, name_of
from ledger.holds import Shortfall
from ledger.leases import CALM_MS, LIVE_MS, TELL_S
from tests.ledger.replicas import (
    NOW_S,
    SEARCH,
    charge,
    counter_of,
    demand,
    fetched,
    hold,
    idle,
    over,
    ready,
    replica,
    step,
    two,
)
from tests.ledger.shared_book import Ask, Clock


def test_a_threshold_is_crossed_anew_in_each_window(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [over("minute")])
    for at_s in (NOW_S, NOW_S + 60):
        clock.follow(at_s)
        charge(alone, ask, 90, now_s=at_s)
        assert [crossing.band for crossing in alone.exchange(ask, at_s)] == ["warn"]


def test_what_anyone_had_of_a_window_that_ended_is_free_in_the_next(clock: Clock, ask: Ask) -> None:
    first, second = two(clock, ask, [over("minute")])
    charge(first, ask, 60)
    fetched(first, ask, 40)
    second.book.route(SEARCH, NOW_S)
    first.exchange(ask, NOW_S)
    clock.now_ms += LIVE_MS
    second.exchange(ask, NOW_S)
    route, counter = second.book.route(SEARCH, NOW_S), counter_of(second)
    assert (counter.available, counter.stranded, counter.resets_at_s(100)) == (0, 40, NOW_S + 60)
    clock.follow(NOW_S + 60)
    assert route.headroom(NOW_S + 60).band == "ok"
    assert (counter.available, counter.spent_elsewhere, counter.held_elsewhere, counter.stranded) == (100, 0, 0, 0)
    assert ready(second, ask, 100, NOW_S + 60) == 100


def test_what_others_had_of_a_rolling_window_counts_when_its_cell_turns(clock: Clock, ask: Ask) -> None:
    first, second = two(clock, ask, [over("rolling:60s")])
    charge(first, ask, 60)
    first.exchange(ask, NOW_S)
    assert ready(second, ask, 40) == 40
    assert second.book.route(SEARCH, NOW_S).headroom(NOW_S + 1) == second.book.route(SEARCH, NOW_S).headroom(NOW_S)
    assert counter_of(second).spent_elsewhere == 60


def test_a_window_that_turns_without_a_request_is_told_of_as_the_new_one(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [over("minute")])
    fetched(alone, ask, 100)
    clock.follow(NOW_S + 60)
    alone.exchange(ask, NOW_S + 60)
    assert counter_of(alone).cell.start_s == NOW_S + 60


@pytest.mark.parametrize("window", ["minute", "rolling:60s"])
def test_an_answer_that_comes_after_the_window_has_turned_is_not_taken_for_the_new_one(
    clock: Clock, ask: Ask, window: str
) -> None:
    """What it gives goes back at once, as none of it can be used any more."""
    first, second = two(clock, ask, [over(window)])
    later_s = NOW_S + (60 if window == "minute" else 1)
    charge(second, ask, 20)
    second.exchange(ask, NOW_S)
    route = first.book.route(SEARCH, NOW_S)
    want = Want(route, demand(60))
    first.leases.want(want)
    shard = first.leases.shard("acme")
    first.leases.collect(first.at_s)
    answer = ask(first.leases.build(shard, [want], NOW_S, first.at_s))
    clock.follow(later_s)
    assert isinstance(hold(first, 1, later_s * MILLION), Shortfall)
    first.leases.apply(shard, answer, later_s)
    assert first.leases.is_pressing(shard, first.at_s)
    assert counter_of(first).room <= 0
    assert counter_of(first).spent_elsewhere == 0
    first.exchange(ask, later_s)
    assert ready(second, ask, 80, later_s) >= 80


def test_an_answer_for_another_window_than_the_budget_has_by_then_is_not_taken(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [over("minute")])
    shard, route = alone.leases.shard("acme"), alone.book.route(SEARCH, NOW_S)
    alone.exchange(ask, NOW_S)
    want = Want(route, demand(60))
    alone.leases.want(want)
    answer = ask(alone.leases.build(shard, [want], NOW_S, alone.at_s))
    alone.book.configure([over("day")], NOW_S)
    alone.leases.apply(shard, answer, NOW_S)
    assert counter_of(alone).room == 0


def test_nothing_is_leased_of_another_window_until_the_store_was_asked_and_the_old_one_is_given_up(
    redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask
) -> None:
    alone = replica(clock, [over("minute")])
    idle(alone, ask, 60)
    old = f"bursar:{{acme}}:counter:{name_of(counter_of(alone))}"
    alone.book.configure([over("day")], NOW_S)
    assert counter_of(alone).room == 0
    clock.now_ms += int(TELL_S * 1000)
    alone.exchange(ask, NOW_S)
    assert not [field for field in redis_client.hkeys(old) if field[:2] in (b"g|", b"s|")]


@pytest.mark.parametrize(("server_s", "leased"), [(57, 0), (58, 0), (59, 10)])
def test_a_replica_whose_clock_is_ahead_is_leased_a_window_a_second_before_it_begins(
    clock: Clock, ask: Ask, server_s: int, leased: int
) -> None:
    alone = replica(clock, [over("minute")])
    alone.leases.shard("acme")
    alone.exchange(ask, NOW_S)
    clock.follow(NOW_S + server_s)
    assert ready(alone, ask, 10, NOW_S + 60) == leased


def test_a_replica_whose_clock_is_behind_cannot_spend_again_what_others_spent_of_the_window_it_is_in(
    clock: Clock, ask: Ask
) -> None:
    first, second = two(clock, ask, [over("minute")])
    charge(first, ask, 100)
    clock.follow(NOW_S + 61)
    fetched(first, ask, 10, now_s=NOW_S + 61)
    assert ready(second, ask, 1, NOW_S + 59) <= 0


def test_a_rolling_window_is_as_long_by_a_clock_that_is_behind(clock: Clock, ask: Ask) -> None:
    first, second = two(clock, ask, [over("rolling:60s")])
    fetched(first, ask, 100)
    clock.follow(NOW_S + 61)
    assert ready(second, ask, 1, NOW_S + 60) <= 0
    assert ready(second, ask, 1, NOW_S + 61) == 1


def test_the_cells_of_a_rolling_window_that_are_not_told_anew_go_on_counting(clock: Clock, ask: Ask) -> None:
    first, second = two(clock, ask, [over("rolling:60s")])
    charge(first, ask, 50)
    for at_s in (NOW_S + 1, NOW_S + 2):
        clock.follow(at_s)
        charge(first, ask, 10, now_s=at_s)
        first.exchange(ask, at_s)
    assert ready(second, ask, 100, NOW_S + 2) == 30


@pytest.mark.parametrize("spent", [0, 90])
def test_a_hold_of_an_earlier_cell_that_ends_is_told(clock: Clock, ask: Ask, spent: int) -> None:
    """It makes no room in the cell that is charged now; what it did not use is free for all."""
    first, second = two(clock, ask, [over("rolling:60s")])
    held = fetched(first, ask, 90)
    for at_s in (NOW_S + 2, NOW_S + 3):
        clock.follow(at_s)
        first.leases.due(counter_of(first))
        first.exchange(ask, at_s)
    first.book.settle(held.hold_id, Amounts(tokens=spent), (NOW_S + 3) * MILLION)
    assert counter_of(first).room <= 0
    crossings = first.exchange(ask, NOW_S + 3)
    assert [crossing.band for crossing in crossings] == (["warn"] if spent else [])
    assert ready(second, ask, 100, NOW_S + 3) == 100 - spent
    assert counter_of(second).spent_elsewhere == spent


def test_what_lies_idle_in_an_earlier_cell_goes_back(clock: Clock, ask: Ask) -> None:
    first, second = two(clock, ask, [over("rolling:60s")], horizon_s=10.0)
    idle(first, ask, 60)
    clock.follow(NOW_S + 1)
    first.leases.due(counter_of(first))
    step(first, ask, NOW_S + 1)
    clock.now_ms += CALM_MS
    assert ready(second, ask, 70, NOW_S + 1) >= 70


def test_a_threshold_that_is_told_when_its_window_has_ended_is_not_announced_for_the_next(
    clock: Clock, ask: Ask
) -> None:
    alone = replica(clock, [over("minute")])
    charge(alone, ask, 90)
    alone.leases.due(counter_of(alone))
    shard = alone.leases.shard("acme")
    answer = ask(alone.leases.build(shard, [], NOW_S, alone.at_s))
    alone.book.counters(NOW_S + 60)
    assert alone.leases.apply(shard, answer, NOW_S + 60) == []
