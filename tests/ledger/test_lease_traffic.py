"""What is said of leases and when: who is told of a recall, what lies ready, and when a shard presses."""

import orjson
import redis

from ledger.exchange_lines import Want, name_of
from ledger.holds import Hold, Shortfall
from ledger.leases import CALM_MS, IDLE_S, LIVE_MS
from tests.ledger.replicas import (
    NOW_S,
    SEARCH,
    budget,
    charge,
    counter_of,
    demand,
    fetched,
    hold,
    idle,
    over,
    ready,
    replica,
    said,
    step,
    two,
)
from tests.ledger.shared_book import Ask, Clock, Replica


def told(on: Replica, now_s: int = NOW_S) -> list[dict[str, object]]:
    """The lines of the next exchange, which is then under way."""
    on.leases.collect(on.at_s)
    exchange = on.leases.build(on.leases.shard("acme"), [], now_s, on.at_s)
    lines: list[dict[str, object]] = orjson.loads(exchange.payload)["lines"]
    return lines


def three(clock: Clock, ask: Ask, limit: int) -> list[Replica]:
    replicas = [replica(clock, [budget(limit)], f"r{at}", of=3) for at in range(3)]
    for each in (*replicas, *replicas):
        each.leases.shard("acme")
        each.exchange(ask, NOW_S)
    return replicas


def test_a_recall_is_said_once_to_all_and_what_comes_back_is_said_too(
    redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask
) -> None:
    first, second, third = three(clock, ask, 100)
    held = fetched(first, ask, 90)
    said(redis_client)
    name = name_of(counter_of(first))
    assert ready(second, ask, 5) == 5
    assert said(redis_client) == [], "it was free"
    step(second, ask, wanted=30)
    assert counter_of(second).room == 10, "what is free is taken while the rest is recalled"
    assert said(redis_client) == [["r1", [name]]]
    third.book.route(SEARCH, NOW_S)
    step(third, ask)
    assert not third.leases.is_pressing(third.leases.shard("acme"), third.at_s), "it has nothing to give back"
    step(third, ask, wanted=20)
    step(second, ask, wanted=30)
    assert said(redis_client) == [], "one is under way"
    first.book.void(held.hold_id)
    assert first.leases.recall([name])
    assert first.leases.is_pressing(first.leases.shard("acme"), first.at_s)
    step(first, ask)
    assert counter_of(first).room == 0
    assert said(redis_client) == [["r0"]]
    first.leases.due(counter_of(first))
    step(first, ask)
    assert said(redis_client) == [], "nothing more came back"


def test_nothing_is_recalled_from_those_who_have_spent_all_that_they_had(
    redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask
) -> None:
    first, second = two(clock, ask, [budget(100)])
    charge(first, ask, 100)
    first.exchange(ask, NOW_S)
    said(redis_client)
    step(second, ask, wanted=1)
    (share,) = second.leases.lacking(second.book.route(SEARCH, NOW_S), demand(1))
    assert (share.is_short, share.pending) == (True, 0)
    assert said(redis_client) == []


def test_who_lacks_the_same_is_not_waited_for(clock: Clock, ask: Ask) -> None:
    """What it has it needs itself."""
    first, second = two(clock, ask, [budget(100)])
    fetched(first, ask, 90)
    step(second, ask, wanted=20)
    (share,) = second.leases.lacking(second.book.route(SEARCH, NOW_S), demand(20))
    assert share.pending == 1
    step(first, ask, wanted=20)
    second.leases.due(share.counter)
    step(second, ask)
    second.leases.due(share.counter)
    second.exchange(ask, NOW_S, [Want(second.book.route(SEARCH, NOW_S), demand(20), recalls={share.name: 0})])
    assert (share.is_short, share.pending) == (True, 0)


def test_a_recall_of_an_old_epoch_does_not_keep_one_from_being_opened_in_a_new_one(
    redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask
) -> None:
    first, second = two(clock, ask, [budget(100)])
    fetched(first, ask, 100)
    step(second, ask, wanted=1)
    step(second, ask, wanted=1)
    (share,) = second.leases.lacking(second.book.route(SEARCH, NOW_S), demand(1))
    assert share.recall == 1
    redis_client.flushall()
    for each in (first, second):
        each.exchange(ask, NOW_S)
    said(redis_client)
    second.leases.due(share.counter)
    second.exchange(ask, NOW_S, [Want(second.book.route(SEARCH, NOW_S), demand(1), recalls={share.name: 1})])
    assert said(redis_client) == [["r1", [share.name]]]


def test_what_is_given_back_is_not_used_from_the_moment_it_is_sent(clock: Clock, ask: Ask) -> None:
    first, _ = two(clock, ask, [budget(100)], horizon_s=10.0)
    first.book.void(fetched(first, ask, 60).hold_id)
    first.leases.recall([name_of(counter_of(first))])
    told(first)
    assert isinstance(hold(first, 1), Shortfall)


def test_all_who_wait_are_fetched_for_at_once(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [budget(100)])
    alone.exchange(ask, NOW_S)
    wants = [Want(alone.book.route(SEARCH, NOW_S), demand(tokens)) for tokens in (10, 15)]
    for want in wants:
        alone.leases.want(want)
    alone.exchange(ask, NOW_S, wants)
    assert counter_of(alone).room == 25


def test_a_soft_budget_is_never_lacking_and_nothing_of_it_lies_ready(clock: Clock, ask: Ask) -> None:
    first, second = two(clock, ask, [budget(1_000, mode="soft")], horizon_s=10.0)
    hold(first, 25)
    hold(first, 2_000)
    assert first.leases.lacking(first.book.route(SEARCH, NOW_S), demand(1)) == []
    for each in (first, first, second):
        each.leases.due(each.book.route(SEARCH, NOW_S).counters[0][0])
        each.exchange(ask, NOW_S)
    assert counter_of(second).held_elsewhere == 2_025
    first.book.void(next(reversed(first.book.holds)))
    for each in (first, first, second):
        each.leases.due(counter_of(each))
        each.exchange(ask, NOW_S)
    assert counter_of(second).held_elsewhere == 25


def test_of_what_a_dead_replica_had_only_what_it_did_not_spend_is_stranded(clock: Clock, ask: Ask) -> None:
    first, second = two(clock, ask, [budget(100)])
    charge(first, ask, 10)
    fetched(first, ask, 20)
    clock.now_ms += LIVE_MS
    assert ready(second, ask, 70) == 70
    counter = counter_of(second)
    assert (counter.spent_elsewhere, counter.held_elsewhere, counter.stranded) == (10, 20, 20)


def test_what_is_known_of_others_leaves_out_what_is_given_here(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [budget(100)])
    fetched(alone, ask, 40)
    assert (counter_of(alone).held_elsewhere, counter_of(alone).available) == (0, 60)


def test_what_is_left_of_a_budget_that_is_gone_is_leased_only_as_far_as_it_is_held(clock: Clock, ask: Ask) -> None:
    first, second = two(clock, ask, [budget(100)], horizon_s=10.0)
    first.book.void(fetched(first, ask, 50).hold_id)
    assert counter_of(first).room >= 50
    hold(first, 10)
    first.book.configure([], NOW_S)
    clock.now_ms += int(IDLE_S * 1000)
    first.exchange(ask, NOW_S)
    assert ready(second, ask, 90) == 90


def test_a_counter_that_was_forgotten_and_made_again_is_leased_as_any(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [over("minute")])
    alone.book.void(fetched(alone, ask, 40).hold_id)
    alone.leases.recall([name_of(counter_of(alone))])
    alone.exchange(ask, NOW_S)
    clock.follow(NOW_S + 60)
    alone.book.counters(NOW_S + 60)
    assert alone.book.find("b", "org=acme") is None
    assert ready(alone, ask, 40, NOW_S + 60) == 40


def test_a_counter_of_which_something_is_leased_is_not_forgotten(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [over("rolling:60s")], horizon_s=10.0)
    alone.book.void(fetched(alone, ask, 40).hold_id)
    counter = counter_of(alone)
    alone.book.counters(NOW_S + 1)
    assert counter_of(alone) is counter


def test_a_counter_that_lies_still_is_not_told_of_again(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [budget(100)])
    charge(alone, ask, 40)
    alone.exchange(ask, NOW_S)
    shard = alone.leases.shard("acme")
    clock.now_ms += int(2 * IDLE_S * 1000)
    alone.leases.collect(alone.at_s)
    assert not shard.due


def test_only_the_cells_that_changed_are_told(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [over("rolling:60s")])
    for at_s in (NOW_S, NOW_S + 1, NOW_S + 2):
        clock.follow(at_s)
        charge(alone, ask, 10, now_s=at_s)
        alone.exchange(ask, at_s)
    alone.leases.due(counter_of(alone))
    (line,) = told(alone, NOW_S + 2)
    assert (line["whole"], line["cells"]) == (False, [[NOW_S + 2, 10, 10, 10, 10]])


def test_some_idle_lease_is_kept_and_much_of_it_is_given_back(clock: Clock, ask: Ask) -> None:
    """Up to four times what should lie ready, then as much as should."""
    alone = replica(clock, [budget(1_000)], horizon_s=10.0)
    fetched(alone, ask, 100)
    target = alone.leases.due(counter_of(alone)).target
    cell, shard = counter_of(alone).cell, alone.leases.shard("acme")
    for beyond, kept in ((3 * target, 3 * target), (5 * target, target)):
        cell.lease = cell.held + beyond
        alone.leases.due(counter_of(alone))
        (line,) = told(alone)
        assert line["cells"] == [[NOW_S, 0, 0, 100, 100 + kept]]
        assert shard.in_flight is not None
        alone.leases.apply(shard, ask(shard.in_flight), NOW_S)


def test_who_waits_presses_and_what_is_under_way_too(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [budget(100)])
    shard, route = alone.leases.shard("acme"), alone.book.route(SEARCH, NOW_S)
    assert alone.leases.is_pressing(shard, alone.at_s), "no epoch is known yet"
    alone.exchange(ask, NOW_S)
    assert not alone.leases.is_pressing(shard, alone.at_s)
    alone.leases.want(Want(route, demand(0)))
    assert not alone.leases.is_pressing(shard, alone.at_s), "nothing is lacking"
    alone.leases.want(Want(route, demand(1)))
    assert alone.leases.is_pressing(shard, alone.at_s)
    exchange = alone.leases.build(shard, [], NOW_S, alone.at_s)
    assert alone.leases.is_pressing(shard, alone.at_s), "it may have been lost"
    alone.leases.apply(shard, ask(exchange), NOW_S)
    assert not alone.leases.is_pressing(shard, alone.at_s)


def test_who_gives_back_what_others_need_takes_nothing_ready_with_the_same_exchange(clock: Clock, ask: Ask) -> None:
    """However long after the recall it hears of it."""
    first, second = two(clock, ask, [budget(100)], horizon_s=10.0)
    first.book.void(fetched(first, ask, 60).hold_id)
    step(second, ask, wanted=90)
    clock.now_ms += CALM_MS
    first.leases.due(counter_of(first))
    step(first, ask)
    assert counter_of(first).room > 0
    step(first, ask)
    assert counter_of(first).room == 0


def test_a_lease_that_is_used_without_asking_lies_ready_as_long_as_it_is(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [budget(1_000)], horizon_s=2.0)
    alone.book.void(fetched(alone, ask, 10).hold_id)
    for _ in range(10):
        clock.now_ms += 1_000
        held = hold(alone, 1)
        assert isinstance(held, Hold)
        alone.book.void(held.hold_id)
        alone.exchange(ask, NOW_S)


def test_what_lies_ready_is_the_largest_request_of_late_and_anew_after_a_pause(clock: Clock, ask: Ask) -> None:
    alone, _ = two(clock, ask, [budget(1_000)], horizon_s=10.0)
    for wanted in (100, 5):
        alone.leases.due(alone.book.route(SEARCH, NOW_S).counters[0][0])
        step(alone, ask, wanted=wanted)
        assert counter_of(alone).room == 200
    clock.now_ms += 20_000
    for _ in range(2):
        alone.exchange(ask, NOW_S)
        clock.now_ms += int(IDLE_S * 1000)
    assert counter_of(alone).room == 0
    step(alone, ask, wanted=5)
    assert counter_of(alone).room == 10


def test_what_others_have_is_asked_for_until_they_have_nothing_more(clock: Clock, ask: Ask) -> None:
    first, second = two(clock, ask, [budget(100)])
    held = fetched(first, ask, 60)
    assert ready(second, ask, 0) == 0
    first.book.void(held.hold_id)
    for each in (first, second):
        clock.now_ms += int(IDLE_S * 1000)
        each.exchange(ask, NOW_S)
    assert (counter_of(second).held_elsewhere, counter_of(second).available) == (0, 100)


def test_who_gives_back_what_others_need_takes_again_what_it_needs_itself_where_that_is_all_there(
    clock: Clock, ask: Ask
) -> None:
    first, second = two(clock, ask, [budget(60)], horizon_s=10.0)
    idle(first, ask, 60)
    step(second, ask, wanted=60)
    first.leases.recall([name_of(counter_of(first))])
    step(first, ask, wanted=50)
    assert counter_of(first).room == 50
