"""What a replica does with its leases, over a Redis whose time the test sets."""

import pytest
import redis

from domain.amounts import MILLION, Amounts
from domain.charges import Charge
from domain.ids import uuid7
from ledger.book import Book
from ledger.budgets import Budget
from ledger.counters import Grant
from ledger.exchange_lines import name_of, tag_of
from ledger.holds import Hold, Shortfall
from ledger.leases import IDLE_S, LINES_MAX, TELL_S, Leases
from ledger.shards import BadReply, channel
from ledger.windows import parse_window
from tests.ledger.replicas import (
    NOW_S,
    NOW_US,
    SEARCH,
    budget,
    counter_of,
    fetched,
    hold,
    replica,
)
from tests.ledger.shared_book import Ask, Carrier, Clock, Replica


def test_nothing_can_be_held_before_the_store_has_leased_it(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [budget(100)])
    assert isinstance(hold(alone, 1), Shortfall)
    assert isinstance(fetched(alone, ask, 100), Hold)
    assert isinstance(hold(alone, 1), Shortfall)


def test_an_answer_that_makes_no_sense_leaves_everything_as_it_was(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [budget(100)])
    fetched(alone, ask, 40)
    shard = alone.leases.shard("acme")
    exchange = alone.leases.build(shard, [], NOW_S, 1.0)
    before = (shard.epoch, shard.serial, shard.is_open, counter_of(alone).room)
    good = ask(exchange)
    for bad in (
        [],
        [b"what"],
        [b"ok", b"1", b"1"],
        [*good, b"1"],
        [*good[:4], *([b"x"] * (len(good) - 4)), b"y"],
        [b"join"],
    ):
        with pytest.raises(BadReply):
            alone.leases.apply(shard, bad, NOW_S)
        assert (shard.epoch, shard.serial, shard.is_open, counter_of(alone).room) == before
        assert shard.in_flight is exchange
    alone.leases.apply(shard, good, NOW_S)
    assert shard.in_flight is None


def test_an_unanswered_exchange_is_sent_again_byte_for_byte(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [budget(100)])
    fetched(alone, ask, 40)
    alone.leases.collect(1.0)
    shard = alone.leases.shard("acme")
    first = alone.leases.build(shard, [], NOW_S, 1.0)
    answer = ask(first)  # which is lost
    alone.book.settle(next(iter(alone.book.holds)), Amounts(tokens=10), NOW_US)
    alone.leases.collect(2.0)
    assert alone.leases.build(shard, [], NOW_S + 1, 2.0) is first
    assert ask(first) == answer


def test_an_exchange_that_another_overtook_is_stale_and_the_replica_joins_anew(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [budget(100)])
    fetched(alone, ask, 40)
    shard = alone.leases.shard("acme")
    shard.serial = "of another process"
    exchange = alone.leases.build(shard, [], NOW_S, 1.0)
    answer = ask(exchange)
    assert answer[0] == b"stale"
    alone.leases.apply(shard, answer, NOW_S)
    assert not shard.epoch
    alone.exchange(ask, NOW_S)
    assert shard.epoch
    assert counter_of(alone).held == 40
    assert isinstance(fetched(alone, ask, 60), Hold)


@pytest.mark.parametrize("count", [0, 1, LINES_MAX, LINES_MAX + 1, 600])
def test_a_join_comes_in_pages_and_is_complete_with_the_last(
    redis_client: "redis.Redis[bytes]", clock: Clock, ask: Ask, count: int
) -> None:
    """Many counters, none of which may be missing when others begin to be leased what is left."""
    runs = budget(10, (("org", "acme"), ("run", "*")))
    old = replica(clock, [runs])
    subjects = [SEARCH._replace(run=f"run-{number}") for number in range(count)]
    for subject in subjects:
        fetched(old, ask, 7, subject)
    sent = Carrier(redis_client, clock)
    new = Replica("r0", 1, Book([runs], NOW_S, is_shared=True), clock, 0.0)
    new.leases.shard("acme")
    new.exchange(sent, NOW_S)
    joins = [each for each in sent.sent if each.is_join]
    assert [each.is_last for each in joins] == [False] * (len(joins) - 1) + [True]
    assert all(len(each.names) <= LINES_MAX for each in joins)
    assert sorted(name for each in joins for name in each.names) == sorted(
        f"b|tokens|day|org=acme,run=run-{number}" for number in range(count)
    )
    # The new process has no such holds in its journal, so all of it is free again.
    for subject in subjects[:3]:
        assert isinstance(fetched(new, ask, 10, subject), Hold)


def test_what_lies_idle_is_given_back(clock: Clock, ask: Ask) -> None:
    first, second = (replica(clock, [budget(100)], name, of=2, horizon_s=1.0) for name in ("r0", "r1"))
    second.leases.shard("acme")
    first.leases.shard("acme")
    first.exchange(ask, NOW_S)
    second.exchange(ask, NOW_S)
    held = fetched(first, ask, 80)
    first.book.void(held.hold_id)
    first.exchange(ask, NOW_S)
    assert counter_of(first).room >= 80
    clock.now_ms += int(2 * IDLE_S * 1000)
    first.exchange(ask, NOW_S)
    assert counter_of(first).room == 0
    assert isinstance(fetched(second, ask, 100), Hold)


def test_a_lease_grows_with_the_rate_at_which_it_is_used(clock: Clock, ask: Ask) -> None:
    ready = []
    for tokens in (1, 100):
        alone = replica(clock, [budget(1_000_000, (("org", f"of-{tokens}"),))], horizon_s=2.0)
        subject = SEARCH._replace(org=f"of-{tokens}")
        for _ in range(10):
            fetched(alone, ask, tokens, subject)
            clock.now_ms += 100
        alone.leases.due(counter_of(alone, f"org=of-{tokens}"))
        alone.exchange(ask, NOW_S)
        ready.append(counter_of(alone, f"org=of-{tokens}").room)
    assert 0 < 20 * ready[0] < ready[1]


def test_a_slow_rate_leaves_a_shard_alone_and_a_low_lease_presses(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [budget(1_000_000)], horizon_s=2.0)
    shard = alone.leases.shard("acme")
    for _ in range(5):
        fetched(alone, ask, 100)
    at_s = alone.at_s
    assert not alone.leases.is_pressing(shard, at_s)
    alone.leases.due(counter_of(alone))
    assert not alone.leases.is_pressing(shard, at_s)
    assert alone.leases.is_pressing(shard, at_s + TELL_S)
    hold(alone, counter_of(alone).room)
    assert alone.leases.is_pressing(shard, at_s)


def test_a_replica_cannot_give_itself_a_lease(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [budget(100)], horizon_s=10.0)
    fetched(alone, ask, 10)
    cell = counter_of(alone).cell
    had, cell.lease = cell.lease, cell.lease + 30
    alone.leases.due(counter_of(alone))
    alone.exchange(ask, NOW_S)
    assert cell.lease == had


def test_shards_do_not_mix(clock: Clock, ask: Ask) -> None:
    every, none = budget(100, (("org", "*"),)), Budget("n", "o", (), "tokens", 100, parse_window("day"))
    alone = replica(clock, [every, none])
    for org in ("acme", "zeta"):
        fetched(alone, ask, 5, SEARCH._replace(org=org))
    assert set(alone.leases.shards) == {"acme", "zeta", "-"}
    for tag, name in (("acme", "b|tokens|day|org=acme"), ("zeta", "b|tokens|day|org=zeta"), ("-", "n|tokens|day|*")):
        for counter in alone.book.counters(NOW_S):
            alone.leases.due(counter)
        exchange = alone.leases.build(alone.leases.shard(tag), [], NOW_S, 1.0)
        assert exchange.names == [name]
        assert all(f"{{{tag}}}" in key for key in exchange.keys)


@pytest.mark.parametrize("org", ["a{b}c", "}{", "50%", "%7B", "a|b", "a:counter:b", "ä ö", "-", "a,b"])
def test_the_name_of_an_organisation_cannot_break_its_hash_tag(clock: Clock, ask: Ask, org: str) -> None:
    alone = replica(clock, [budget(100, (("org", "*"),))])
    subject = SEARCH._replace(org=org)
    fetched(alone, ask, 60, subject)
    counter = next(iter(alone.book.counters(NOW_S)))
    tag = tag_of(counter.name)
    assert not set("{}") & set(tag)
    exchange = alone.leases.build(alone.leases.shard(tag), [], NOW_S, 1.0)
    assert {key[key.index("{") + 1 : key.index("}")] for key in (*exchange.keys, channel(tag))} == {tag}
    alone.leases.apply(alone.leases.shard(tag), ask(exchange), NOW_S)
    other = replica(clock, [budget(100, (("org", "*"),))])
    other.leases.shard(tag)
    other.exchange(ask, NOW_S)
    assert isinstance(fetched(other, ask, 100, subject), Hold), "it was not found in the index"


def test_what_a_correction_freed_is_not_free_again_in_the_next_process(clock: Clock, ask: Ask) -> None:
    """The older one may have given it back, and another replica may have it."""
    rebuilt = Book([budget(100)], NOW_S, is_shared=True)
    rebuilt.restore_spent(Charge("b", "org=acme", NOW_S, "tokens", -30), NOW_S)
    alone = Replica("r0", 1, rebuilt, clock, 0.0)
    assert isinstance(hold(alone, 1), Shortfall)
    alone.leases.shard("acme")
    alone.exchange(ask, NOW_S)
    assert isinstance(fetched(alone, ask, 130), Hold)
    assert isinstance(hold(alone, 1), Shortfall)


def test_two_organisations_have_two_tags() -> None:
    names = ["org=a", "org=A", "org=%61", "org=a b", "org=a+b", "org=a%2520b", "*", "team=a"]
    assert len({tag_of(name) for name in names}) == len(names) - 1


@pytest.mark.parametrize(("on_unavailable", "granted"), [("lease", 40), ("deny", 0), ("allow", 1_000)])
def test_while_the_store_is_away_a_budget_goes_by_what_it_says_of_that(
    clock: Clock, ask: Ask, on_unavailable: str, granted: int
) -> None:
    alone = replica(clock, [budget(100, on_unavailable=on_unavailable)])
    held = fetched(alone, ask, 40)
    alone.book.void(held.hold_id)
    alone.book.set_away(is_away=True)
    fits = [tokens for tokens in (1, 40, 41, 1_000) if not isinstance(_tried(alone, tokens), Shortfall)]
    assert max(fits, default=0) == granted
    short = _tried(alone, 2_000)
    assert isinstance(short, Hold) if on_unavailable == "allow" else short.is_cut_off


def _tried(on: Replica, tokens: int) -> Hold | Shortfall:
    held = hold(on, tokens)
    if isinstance(held, Hold):
        on.book.void(held.hold_id)
    return held


def test_a_lower_limit_takes_effect_on_leases_at_once(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [budget(100)])
    alone.book.grant(Grant("g", "b", "*", 50, NOW_S + 10, "ann", "launch"), NOW_S)
    held = fetched(alone, ask, 140)
    alone.book.void(held.hold_id)
    assert isinstance(hold(alone, 140, NOW_US + 10 * MILLION), Shortfall)
    alone.book.configure([budget(20)], NOW_S + 10)
    assert isinstance(hold(alone, 30, NOW_US + 10 * MILLION), Shortfall)


def test_another_window_is_another_account(clock: Clock, ask: Ask) -> None:
    """What was spent counts in the new account as one book counts it, and nothing stays leased in the old one."""
    minute = Budget("b", "finance", (("org", "acme"),), "tokens", 100, parse_window("minute"))
    alone = replica(clock, [minute])
    old_name = name_of(next(iter([alone.book.route(SEARCH, NOW_S).counters[0][0]])))
    held = fetched(alone, ask, 60)
    alone.book.settle(held.hold_id, Amounts(tokens=60), NOW_US)
    alone.book.configure([budget(100)], NOW_S)
    clock.now_ms += int(IDLE_S * 1000)
    alone.exchange(ask, NOW_S)
    assert isinstance(fetched(alone, ask, 40), Hold)
    assert isinstance(hold(alone, 1), Shortfall)
    assert old_name != name_of(counter_of(alone))
    alone.book.configure([minute], NOW_S)
    alone.exchange(ask, NOW_S)
    assert isinstance(hold(alone, 1), Shortfall)
    assert counter_of(alone).available == 0


def test_a_recall_of_a_counter_that_is_not_known_here_asks_for_nothing() -> None:
    leases = Leases(Book([], NOW_S, is_shared=True), "r0", 1, uuid7())
    assert not leases.recall(["b|tokens|day|org=acme"])
    assert leases.shards == {}
