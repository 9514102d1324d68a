"""Leases where several things happen at once: answers under way, limits that fall, names used twice, many cells."""

import pytest

from domain.amounts import MILLION, Amounts
from ledger.book import Book
from ledger.budgets import Budget
from ledger.counters import Grant
from ledger.exchange_lines import Want
from ledger.holds import Hold, Shortfall
from ledger.leases import CELLS_MAX, LINES_MAX
from ledger.shards import NameTaken
from ledger.windows import parse_window
from tests.ledger.replicas import NOW_S, NOW_US, SEARCH, budget, counter_of, demand, fetched, hold, replica, two
from tests.ledger.shared_book import Ask, Clock, Replica


def wants(on: Replica, ask: Ask, tokens: int) -> list[tuple[bool, int]]:
    """Of each counter that lacks after an exchange for these tokens: whether nobody has it, how many may give back."""
    route = on.book.route(SEARCH, NOW_S)
    want = Want(route, demand(tokens))
    on.leases.want(want)
    on.exchange(ask, NOW_S, [want])
    return [(share.is_short, share.pending) for share in on.leases.lacking(route, demand(tokens))]


@pytest.mark.parametrize("window", ["rolling:60s", "rolling:1h"])
def test_a_threshold_of_a_rolling_window_is_seen_although_a_cell_ended_while_it_was_told(
    clock: Clock, ask: Ask, window: str
) -> None:
    of = [Budget("b", "finance", (("org", "acme"),), "tokens", 100, parse_window(window))]
    first, _ = two(clock, ask, of)
    held = fetched(first, ask, 90)
    first.book.settle(held.hold_id, Amounts(tokens=90), NOW_US)
    first.leases.collect(first.at_s)
    shard = first.leases.shard("acme")
    answer = ask(first.leases.build(shard, (), NOW_S, first.at_s))
    later = NOW_S + counter_of(first).budget.window.cell_s
    first.book.counters(later)
    crossings = first.leases.apply(shard, answer, later)
    assert [(crossing.band, crossing.spent) for crossing in crossings] == [("warn", 90)]
    clock.follow(later)
    assert first.exchange(ask, later) == []


def test_who_gives_back_what_others_need_does_not_take_it_again_for_a_request_it_cannot_serve(
    clock: Clock, ask: Ask
) -> None:
    first, second = two(clock, ask, [budget(1_000)])
    held = fetched(second, ask, 500)
    second.book.settle(held.hold_id, Amounts(tokens=500), NOW_US)
    second.exchange(ask, NOW_S)
    assert wants(first, ask, 800) == [(True, 0)]
    assert wants(second, ask, 400) == [(True, 1)]
    assert first.leases.recall(["b|tokens|day|org=acme"])
    assert wants(first, ask, 800) == [(True, 0)]
    assert wants(second, ask, 400) == []
    assert isinstance(hold(second, 400), Hold)


def test_what_a_grant_that_ended_had_leased_is_given_back_without_being_asked_for(clock: Clock, ask: Ask) -> None:
    first, second = two(clock, ask, [budget(1_000)], horizon_s=4.0)
    for each in (first, second):
        each.book.grant(Grant("g", "b", "*", 500, NOW_S + 20, "ann", "launch"), NOW_S)
        each.exchange(ask, NOW_S)
    held = fetched(second, ask, 600)
    second.book.settle(held.hold_id, Amounts(tokens=10), NOW_US)
    second.exchange(ask, NOW_S)
    for second_s in range(20, 30):
        now_s = NOW_S + second_s
        clock.follow(now_s)
        for each in (first, second):
            each.book.counters(now_s)
            each.leases.collect(each.at_s)
            if each.leases.is_pressing(each.leases.shard("acme"), each.at_s):
                each.exchange(ask, now_s)
    route = first.book.route(SEARCH, NOW_S + 30)
    want = Want(route, demand(990))
    first.leases.want(want)
    first.exchange(ask, NOW_S + 30, [want])
    assert isinstance(hold(first, 990, (NOW_S + 30) * MILLION), Hold)


def test_two_processes_of_one_name_are_found_out_by_the_first_of_them(clock: Clock, ask: Ask) -> None:
    first = replica(clock, [budget(1_000)])
    fetched(first, ask, 100)
    copied = replica(clock, [budget(1_000)])
    fetched(copied, ask, 100)
    first.leases.due(counter_of(first))
    for _ in range(2):
        with pytest.raises(NameTaken, match="another gateway exchanges as r0: its home is a copy"):
            first.exchange(ask, NOW_S)
    fetched(copied, ask, 100)


def test_the_process_after_one_that_died_takes_its_name_over(clock: Clock, ask: Ask) -> None:
    for _ in range(3):
        fetched(replica(clock, [budget(1_000)]), ask, 100)


def test_an_exchange_has_as_many_lines_as_their_cells_allow(clock: Clock, ask: Ask) -> None:
    of = [Budget("b", "finance", (("org", "acme"), ("user", "*")), "tokens", 10**6, parse_window("rolling:60s"))]
    book = Book(of, NOW_S, is_shared=True)
    it = Replica("r0", 1, book, clock, 4.0)
    users = [SEARCH._replace(user=f"u{index}") for index in range(40)]
    for second_s in range(60):
        now_s = NOW_S + second_s
        clock.follow(now_s)
        for user in users:
            route = book.route(user, now_s)
            it.leases.want(Want(route, demand(1)))
            if second_s == 0:
                it.exchange(ask, now_s, [Want(route, demand(1_000))])
            held = hold(it, 1, now_s * MILLION, user)
            if isinstance(held, Hold):
                book.settle(held.hold_id, Amounts(tokens=1), now_s * MILLION)
        it.exchange(ask, now_s)
    shard = it.leases.shard("acme")
    for counter in book.every_counter():
        it.leases.due(counter)
    asked, cells = 0, len(book.every_counter()[0].cells)
    while shard.due:
        exchange = it.leases.build(shard, (), now_s, it.at_s)
        assert len(exchange.names) <= min(LINES_MAX, CELLS_MAX // cells)
        it.leases.apply(shard, ask(exchange), now_s)
        asked += 1
    assert asked == -(-40 // (CELLS_MAX // cells))


def test_counters_of_requests_that_were_refused_are_not_kept_to_be_told(clock: Clock) -> None:
    of = [Budget("b", "finance", (("run", "*"),), "tokens", 10, parse_window("minute"))]
    book = Book(of, NOW_S, is_shared=True)
    for index in range(20_000):
        route = book.route(SEARCH._replace(run=f"r{index}"), NOW_S)
        refused = book.hold(route, demand(11), f"h{index}", {}, NOW_US, 60)
        assert isinstance(refused, Shortfall)
        if index % 1_000 == 0:
            book.counters(NOW_S)
    book.counters(NOW_S)
    assert len(book.touched) < 2_500
