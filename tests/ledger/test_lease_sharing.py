"""What passes between replicas of a shared book: leases, recalls, thresholds, and what is left by the dead."""

import orjson
import pytest
import redis

from domain.amounts import MILLION, Amounts
from ledger.book import Book, Crossing
from ledger.budgets import Budget
from ledger.exchange_lines import Want, name_of
from ledger.holds import Hold, Shortfall
from ledger.leases import CALM_MS, IDLE_S, LIVE_MS, QUIET_S
from ledger.shards import channel
from ledger.windows import parse_window
from tests.ledger.replicas import (
    NOW_S,
    NOW_US,
    SEARCH,
    TTL_S,
    budget,
    counter_of,
    demand,
    fetched,
    hold,
    replica,
    together,
    two,
)
from tests.ledger.shared_book import Ask, Clock, Replica


def test_a_soft_budget_is_told_of_and_never_leased(clock: Clock, ask: Ask) -> None:
    soft = budget(10, mode="soft")
    first, second = (replica(clock, [soft], name, of=2) for name in ("r0", "r1"))
    held = hold(first, 25)
    assert isinstance(held, Hold)
    second.book.route(SEARCH, NOW_S)
    for each in (first, second, first, second):
        each.exchange(ask, NOW_S)
    assert (counter_of(second).spent_elsewhere, counter_of(second).held_elsewhere) == (0, 25)
    first.book.settle(held.hold_id, Amounts(tokens=25), NOW_US)
    crossings = first.exchange(ask, NOW_S)
    assert [(crossing.band, crossing.spent) for crossing in crossings] == [("exhausted", 25)]
    second.leases.due(counter_of(second))
    assert second.exchange(ask, NOW_S) == []
    assert (counter_of(second).spent_elsewhere, counter_of(second).band) == (25, "exhausted")


def test_each_replica_sees_only_the_thresholds_that_it_crossed(
    redis_client: "redis.Redis[bytes]", clock: Clock
) -> None:
    book = together(redis_client, clock, 3, [budget(100)])
    route = book.route(SEARCH, NOW_S)
    seen: list[Crossing] = []
    for number in range(10):
        held = book.hold(route, demand(10), f"h{number}", {}, NOW_US, TTL_S)
        assert isinstance(held, Hold)
        settlement = book.settle(f"h{number}", Amounts(tokens=10), NOW_US)
        assert settlement is not None
        seen += settlement.crossings
    assert [(crossing.band, crossing.spent) for crossing in seen] == [("warn", 80), ("exhausted", 100)]


@pytest.mark.parametrize("forgets", [False, True], ids=["redis remembers", "redis forgets"])
def test_a_threshold_is_seen_once_when_what_crosses_it_was_spent_by_two_while_redis_was_away(
    redis_client: "redis.Redis[bytes]", clock: Clock, forgets: bool
) -> None:
    book = together(redis_client, clock, 2, [budget(100)])
    route = book.route(SEARCH, NOW_S)
    for number in range(4):  # two on each replica: 30 is spent and told, 15 is spent unseen
        assert isinstance(book.hold(route, demand((30, 30, 15, 15)[number]), f"h{number}", {}, NOW_US, TTL_S), Hold)
    for number in range(2):
        assert book.settle(f"h{number}", Amounts(tokens=30), NOW_US).crossings == ()  # type: ignore[union-attr]  # open, so it is no None
    for number in range(2, 4):
        book.replicas[book.home[f"h{number}"]].book.settle(f"h{number}", Amounts(tokens=15), NOW_US)
    if forgets:
        redis_client.flushall()
    for _ in range(3):
        book.tell_all(NOW_S)
    assert [(crossing.band, crossing.spent) for crossing in book.crossings] == [("warn", 90)]


def test_a_threshold_crossed_just_before_a_replica_died_is_seen_by_its_next_process(clock: Clock, ask: Ask) -> None:
    first = replica(clock, [budget(100)])
    held = fetched(first, ask, 90)
    first.book.settle(held.hold_id, Amounts(tokens=90), NOW_US)  # and it dies before it told
    rebuilt = Book([budget(100)], NOW_S, is_shared=True)
    for charge in first.book.spent_charges():
        rebuilt.restore_spent(charge, NOW_S)
    second = Replica("r0", 1, rebuilt, clock, 0.0)
    second.leases.shard("acme")
    crossings = [*second.exchange(ask, NOW_S), *second.exchange(ask, NOW_S)]
    for _ in range(2):
        second.leases.due(counter_of(second))
        crossings += second.exchange(ask, NOW_S)
    assert [crossing.band for crossing in crossings] == ["warn"]


def test_what_a_dead_replica_had_is_listed_apart_until_it_has_joined_again(
    redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask
) -> None:
    book = together(redis_client, clock, 2, [budget(100)])
    route = book.route(SEARCH, NOW_S)
    assert isinstance(book.hold(route, demand(30), "h1", {}, NOW_US, TTL_S), Hold)
    at, other = book.home["h1"], 1 - book.home["h1"]
    lives = book.replicas[other]
    lives.book.route(SEARCH, NOW_S)
    clock.now_ms += LIVE_MS
    lives.leases.due(counter_of(lives))
    lives.exchange(ask, NOW_S)
    counter = counter_of(lives)
    assert (counter.stranded, counter.held_elsewhere, counter.available) == (30, 30, 70)
    assert isinstance(fetched(lives, ask, 70), Hold)
    book.die(at, NOW_S, [])
    book.tell_all(NOW_S)
    assert (counter.stranded, counter.held_elsewhere) == (0, 0)
    assert isinstance(fetched(lives, ask, 30), Hold)


def test_what_was_allowed_while_the_store_was_away_is_told_and_leaves_nothing_to_others(clock: Clock, ask: Ask) -> None:
    first, second = (replica(clock, [budget(100, on_unavailable="allow")], name, of=2) for name in ("r0", "r1"))
    for each in (first, second, first):
        each.leases.shard("acme")
        each.exchange(ask, NOW_S)
    first.book.set_away(is_away=True)
    assert isinstance(hold(first, 130), Hold)
    first.book.set_away(is_away=False)
    first.exchange(ask, NOW_S)
    route = second.book.route(SEARCH, NOW_S)
    want = Want(route, demand(1))
    second.leases.want(want)
    second.exchange(ask, NOW_S, [want])
    short = hold(second, 1)
    assert isinstance(short, Shortfall)
    assert counter_of(second).available == -30


def test_a_budget_that_is_gone_gives_its_leases_back(clock: Clock, ask: Ask) -> None:
    first, second = (replica(clock, [budget(100)], name, of=2) for name in ("r0", "r1"))
    for each in (first, second, first):
        each.leases.shard("acme")
        each.exchange(ask, NOW_S)
    held = fetched(first, ask, 100)
    first.book.void(held.hold_id)
    first.book.configure([], NOW_S)
    clock.now_ms += int(IDLE_S * 1000)
    first.exchange(ask, NOW_S)
    assert isinstance(fetched(second, ask, 100), Hold)


def test_who_did_not_hear_a_recall_learns_of_it_with_its_next_exchange(clock: Clock, ask: Ask) -> None:
    first, second = two(clock, ask, [budget(100)], horizon_s=10.0)
    first.book.void(fetched(first, ask, 90).hold_id)
    first.exchange(ask, NOW_S)
    assert counter_of(first).room >= 90
    route = second.book.route(SEARCH, NOW_S)
    want = Want(route, demand(100))
    second.leases.want(want)
    second.exchange(ask, NOW_S, [want])
    (share,) = second.leases.lacking(route, demand(100))
    assert (share.is_short, share.pending) == (True, 1)
    first.leases.due(counter_of(first))
    first.exchange(ask, NOW_S)
    assert counter_of(first).room == 0
    second.leases.due(share.counter)
    second.exchange(ask, NOW_S, [want])
    assert (share.is_short, share.pending) == (False, 0)
    assert isinstance(hold(second, 100), Hold)


def test_a_recall_that_others_have_answered_is_the_last_word(clock: Clock, ask: Ask) -> None:
    first, second = two(clock, ask, [budget(100)])
    fetched(first, ask, 90)
    route = second.book.route(SEARCH, NOW_S)
    want = Want(route, demand(11))
    second.leases.want(want)
    second.exchange(ask, NOW_S, [want])
    (share,) = second.leases.lacking(route, demand(11))
    assert (share.is_short, share.pending) == (True, 1), "what the other holds may have ended meanwhile"
    assert second.leases.gone(want, 0) == []
    assert first.leases.recall([share.name])
    first.exchange(ask, NOW_S)
    for _ in range(3):
        second.leases.due(share.counter)
        built = second.leases.built
        second.exchange(ask, NOW_S, [want])
        assert (share.is_short, share.pending) == (True, 0)
        assert second.leases.gone(want, built) == [share]
        assert second.leases.gone(want, second.leases.built) == [], "nothing was asked since"


def test_who_comes_while_a_recall_is_under_way_has_another_opened_and_keeps_nobody_waiting_for_its_end(
    clock: Clock, ask: Ask
) -> None:
    first, second = two(clock, ask, [budget(100)])
    fetched(first, ask, 90)
    route, shard = second.book.route(SEARCH, NOW_S), second.leases.shard("acme")

    def gone(wants: list[Want]) -> list[bool]:
        """For which of these one exchange finds out that nobody has enough; the other replica answers its recall."""
        built = second.leases.built
        second.leases.want(wants[0])
        second.leases.apply(shard, ask(second.leases.build(shard, wants, NOW_S, second.at_s)), NOW_S)
        first.leases.recall([name_of(counter_of(first))])
        first.exchange(ask, NOW_S)
        return [bool(second.leases.gone(want, built)) for want in wants]

    wants = [Want(route, demand(11)) for _ in range(5)]
    assert [gone(wants[:count]) for count in (1, 2, 3, 4)] == [
        [False],
        [False, False],
        [True, False, False],
        [True, True, False, False],
    ]
    assert gone(wants[2:4]) == [True, True], "nobody new has come"
    assert gone(wants[4:]) == [False], "what was answered before it came is not for it"
    assert gone(wants[4:]) == [True]


def test_what_was_short_is_not_known_to_be_while_it_is_asked_for_again(clock: Clock, ask: Ask) -> None:
    first, second = two(clock, ask, [budget(100)])
    fetched(first, ask, 90)
    route, asked = second.book.route(SEARCH, NOW_S), demand(11)
    want = Want(route, asked)
    second.leases.want(want)
    second.exchange(ask, NOW_S, [want])
    (share,) = second.leases.lacking(route, asked)
    assert share.is_short
    second.leases.due(share.counter)
    shard = second.leases.shard("acme")
    exchange = second.leases.build(shard, [want], NOW_S, second.at_s)
    assert not share.is_short
    second.leases.apply(shard, ask(exchange), NOW_S)
    assert share.is_short


def test_what_is_overspent_has_no_room_even_for_nothing(clock: Clock, ask: Ask) -> None:
    """As in a book that is not shared."""
    first, second = two(clock, ask, [budget(100)])
    held = fetched(first, ask, 90)
    first.book.settle(held.hold_id, Amounts(tokens=130), NOW_US)
    first.exchange(ask, NOW_S)
    route = second.book.route(SEARCH, NOW_S)
    second.leases.due(route.counters[0][0])
    second.exchange(ask, NOW_S, [Want(route, demand(0))])
    (share,) = second.leases.lacking(route, demand(0))
    assert (share.is_short, share.pending, share.counter.available) == (True, 0, -30)


def test_shortly_after_a_recall_nothing_is_leased_beyond_need(clock: Clock, ask: Ask) -> None:
    first, second = two(clock, ask, [budget(100)], horizon_s=10.0)
    first.book.void(fetched(first, ask, 50).hold_id)
    route = second.book.route(SEARCH, NOW_S)
    want = Want(route, demand(100))
    second.leases.want(want)
    second.exchange(ask, NOW_S, [want])
    first.leases.recall([name_of(counter_of(first))])
    first.exchange(ask, NOW_S)
    first.leases.due(counter_of(first))
    first.exchange(ask, NOW_S)
    assert counter_of(first).room == 0
    clock.now_ms += CALM_MS
    first.leases.due(counter_of(first))
    first.exchange(ask, NOW_S)
    assert counter_of(first).room > 0


def test_a_clock_that_is_ahead_frees_nothing_of_a_rolling_window_early(clock: Clock, ask: Ask) -> None:
    rolling = Budget("b", "finance", (("org", "acme"),), "tokens", 100, parse_window("rolling:60s"))
    first, second = two(clock, ask, [rolling])
    fetched(first, ask, 100)
    clock.follow(NOW_S + 60)
    for _ in range(2):
        route = second.book.route(SEARCH, NOW_S + 61)
        want = Want(route, demand(1))
        second.leases.want(want)
        second.exchange(ask, NOW_S + 61, [want])
        assert isinstance(hold(second, 1, NOW_US + 61 * MILLION), Shortfall)
    clock.follow(NOW_S + 61)
    assert isinstance(fetched(second, ask, 1, now_s=NOW_S + 61), Hold)


def test_a_band_that_others_caused_is_lifted_with_time_without_a_hold(clock: Clock, ask: Ask) -> None:
    """Or a policy that refuses by that band would refuse for ever."""
    rolling = Budget("b", "finance", (("org", "acme"),), "tokens", 100, parse_window("rolling:60s"))
    first, second = two(clock, ask, [rolling])
    first.book.settle(fetched(first, ask, 100).hold_id, Amounts(tokens=100), NOW_US)
    route = second.book.route(SEARCH, NOW_S)
    for each in (first, second):
        each.exchange(ask, NOW_S)
    assert route.headroom(NOW_S).band == "exhausted"
    clock.follow(NOW_S + 61)
    second.exchange(ask, NOW_S + 61)
    assert route.headroom(NOW_S + 61).band == "ok"


def test_who_has_nothing_to_tell_learns_of_a_new_epoch_all_the_same(
    redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask
) -> None:
    first, second = two(clock, ask, [budget(100)])
    shard = second.leases.shard("acme")
    assert not second.leases.is_pressing(shard, second.at_s)
    redis_client.flushall()
    clock.now_ms += int(QUIET_S * 1000)
    assert second.leases.is_pressing(shard, second.at_s)
    second.exchange(ask, NOW_S)
    assert not second.leases.is_pressing(shard, second.at_s)
    first.exchange(ask, NOW_S)
    said = [orjson.loads(each) for each in redis_client.lrange(channel("acme"), 0, -1)]
    assert ["r0", {}, "joined"] in said
    second.leases.join("acme")
    assert second.leases.is_pressing(shard, second.at_s)


def test_nothing_is_leased_before_all_replicas_have_joined(clock: Clock, ask: Ask) -> None:
    first, second = (replica(clock, [budget(100)], name, of=2) for name in ("r0", "r1"))
    route = first.book.route(SEARCH, NOW_S)
    want = Want(route, demand(10))
    first.leases.want(want)
    first.exchange(ask, NOW_S, [want])
    assert isinstance(hold(first, 10), Shortfall)
    assert not first.leases.shard("acme").is_open
    second.leases.shard("acme")
    second.exchange(ask, NOW_S)
    assert isinstance(fetched(first, ask, 10), Hold)
