"""What a replica does with its leases, over a Redis of its own whose time the test sets."""

from collections.abc import Iterator

import orjson
import pytest
import redis

import ledger.leases
from domain.amounts import MILLION, Amounts
from domain.ids import uuid7
from ledger.book import Book, Crossing
from ledger.budgets import Budget, Subject
from ledger.counters import Counter, Grant
from ledger.exchange_lines import name_of, tag_of
from ledger.holds import Demand, Hold, Shortfall
from ledger.leases import IDLE_S, LIVE_MS, QUIET_S, TELL_S, BadReply, Leases, Shard, channel
from ledger.windows import parse_window
from tests.ledger.shared_book import Ask, Carrier, Clock, Replica, SharedBook, asks
from tests.redis_server import RedisServer

NOW_S = 1_772_323_200
NOW_US = NOW_S * MILLION
TTL_S = 60
SEARCH = Subject("acme", "search", "web", "", "k1", "", "small", "sim")


@pytest.fixture(scope="module")
def client() -> Iterator["redis.Redis[bytes]"]:
    with RedisServer() as server, redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
def clock(client: "redis.Redis[bytes]") -> Clock:
    client.flushall()
    clock = Clock()
    clock.follow(NOW_S)
    return clock


@pytest.fixture
def ask(client: "redis.Redis[bytes]", clock: Clock) -> Ask:
    return asks(client, clock)


def budget(limit: int, scope: tuple[tuple[str, str], ...] = (("org", "acme"),), **more: object) -> Budget:
    return Budget("b", "finance", scope, "tokens", limit, parse_window("day"), **more)  # type: ignore[arg-type]  # the test's own


def replica(clock: Clock, budgets: list[Budget], name: str = "r0", *, of: int = 1, horizon_s: float = 0.0) -> Replica:
    return Replica(name, of, Book(budgets, NOW_S, is_shared=True), clock, horizon_s)


def together(
    client: "redis.Redis[bytes]", clock: Clock, count: int, budgets: list[Budget], horizon_s: float = 0.0
) -> SharedBook:
    return SharedBook(count, Carrier(client, clock), clock, budgets, NOW_S, horizon_s)


def demand(tokens: int) -> Demand:
    return Demand(Amounts(tokens=tokens), Amounts(), 0, 0)


def hold(on: Replica, tokens: int, now_us: int = NOW_US, subject: Subject = SEARCH) -> Hold | Shortfall:
    """Hold from the leases that are there."""
    return on.book.hold(on.book.route(subject, now_us // MILLION), demand(tokens), uuid7(), {}, now_us, TTL_S)


def fetched(on: Replica, ask: Ask, tokens: int, subject: Subject = SEARCH) -> Hold:
    """Hold what one exchange brings."""
    route = on.book.route(subject, NOW_S)
    on.leases.want(route, demand(tokens))
    on.exchange(ask, NOW_S, [(route, demand(tokens))])
    held = hold(on, tokens, subject=subject)
    assert isinstance(held, Hold), held
    return held


def counter_of(on: Replica, name: str = "org=acme") -> Counter:
    counter = on.book.find("b", name)
    assert counter is not None
    return counter


def lines(shard: Shard) -> list[dict[str, object]]:
    assert shard.in_flight is not None
    found: list[dict[str, object]] = orjson.loads(shard.in_flight.payload)["lines"]
    return found


def test_nothing_can_be_held_before_the_store_has_leased_it(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [budget(100)])
    assert isinstance(hold(alone, 1), Shortfall)
    assert isinstance(fetched(alone, ask, 100), Hold)
    assert isinstance(hold(alone, 1), Shortfall)


def test_nothing_is_leased_before_all_replicas_have_joined(clock: Clock, ask: Ask) -> None:
    first, second = (replica(clock, [budget(100)], name, of=2) for name in ("r0", "r1"))
    route = first.book.route(SEARCH, NOW_S)
    first.leases.want(route, demand(10))
    first.exchange(ask, NOW_S, [(route, demand(10))])
    assert isinstance(hold(first, 10), Shortfall)
    assert not first.leases.shard("acme").is_open
    second.leases.shard("acme")
    second.exchange(ask, NOW_S)
    assert isinstance(fetched(first, ask, 10), Hold)


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


@pytest.mark.parametrize("count", [0, 1, ledger.leases.LINES_MAX, ledger.leases.LINES_MAX + 1, 600])
def test_a_join_comes_in_pages_and_is_complete_with_the_last(
    client: "redis.Redis[bytes]", clock: Clock, ask: Ask, count: int
) -> None:
    """Many counters, none of which may be missing when others begin to be leased what is left."""
    runs = budget(10, (("org", "acme"), ("run", "*")))
    old = replica(clock, [runs])
    subjects = [SEARCH._replace(run=f"run-{number}") for number in range(count)]
    for subject in subjects:
        fetched(old, ask, 7, subject)
    sent = Carrier(client, clock)
    new = Replica("r0", 1, Book([runs], NOW_S, is_shared=True), clock, 0.0)
    new.leases.shard("acme")
    new.exchange(sent, NOW_S)
    joins = [each for each in sent.sent if each.is_join]
    assert [each.is_last for each in joins] == [False] * (len(joins) - 1) + [True]
    assert all(len(each.names) <= ledger.leases.LINES_MAX for each in joins)
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


def test_each_replica_sees_only_the_thresholds_that_it_crossed(client: "redis.Redis[bytes]", clock: Clock) -> None:
    book = together(client, clock, 3, [budget(100)])
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
    client: "redis.Redis[bytes]", clock: Clock, forgets: bool
) -> None:
    book = together(client, clock, 2, [budget(100)])
    route = book.route(SEARCH, NOW_S)
    for number in range(4):  # two on each replica: 30 is spent and told, 15 is spent unseen
        assert isinstance(book.hold(route, demand((30, 30, 15, 15)[number]), f"h{number}", {}, NOW_US, TTL_S), Hold)
    for number in range(2):
        assert book.settle(f"h{number}", Amounts(tokens=30), NOW_US).crossings == ()  # type: ignore[union-attr]
    for number in range(2, 4):
        book.replicas[book.home[f"h{number}"]].book.settle(f"h{number}", Amounts(tokens=15), NOW_US)
    if forgets:
        client.flushall()
    for _ in range(3):
        book.tell_all(NOW_S)
    assert [(crossing.band, crossing.spent) for crossing in book.crossings] == [("warn", 90)]


def test_a_replica_cannot_give_itself_a_lease(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [budget(100)], horizon_s=1.0)
    fetched(alone, ask, 10)
    counter_of(alone).cell.lease = 95
    alone.exchange(ask, NOW_S)
    assert counter_of(alone).cell.lease < 95


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


def test_two_organisations_have_two_tags() -> None:
    names = ["org=a", "org=A", "org=%61", "org=a b", "org=a+b", "org=a%2520b", "*", "team=a"]
    assert len({tag_of(name) for name in names}) == len(names) - 1


def test_what_a_dead_replica_had_is_listed_apart_until_it_has_joined_again(
    client: "redis.Redis[bytes]", clock: Clock, ask: Ask
) -> None:
    book = together(client, clock, 2, [budget(100)])
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
    second.leases.want(route, demand(1))
    second.exchange(ask, NOW_S, [(route, demand(1))])
    short = hold(second, 1)
    assert isinstance(short, Shortfall)
    assert counter_of(second).available == -30


def test_a_lower_limit_takes_effect_on_leases_at_once(clock: Clock, ask: Ask) -> None:
    alone = replica(clock, [budget(100)])
    alone.book.grant(Grant("g", "b", "*", 50, NOW_S + 10, "ann", "launch"), NOW_S)
    held = fetched(alone, ask, 140)
    alone.book.void(held.hold_id)
    assert isinstance(hold(alone, 140, NOW_US + 10 * MILLION), Shortfall)
    alone.book.configure([budget(20)], NOW_S + 10)
    assert isinstance(hold(alone, 30, NOW_US + 10 * MILLION), Shortfall)


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


def two(clock: Clock, ask: Ask, budgets: list[Budget], horizon_s: float = 0.0) -> tuple[Replica, Replica]:
    """Two replicas that have joined the shard of acme."""
    first, second = (replica(clock, budgets, name, of=2, horizon_s=horizon_s) for name in ("r0", "r1"))
    for each in (first, second, first, second):
        each.leases.shard("acme")
        each.exchange(ask, NOW_S)
    return first, second


def test_who_did_not_hear_a_recall_learns_of_it_with_its_next_exchange(clock: Clock, ask: Ask) -> None:
    first, second = two(clock, ask, [budget(100)], horizon_s=10.0)
    first.book.void(fetched(first, ask, 90).hold_id)
    first.exchange(ask, NOW_S)
    assert counter_of(first).room >= 90
    route = second.book.route(SEARCH, NOW_S)
    second.leases.want(route, demand(100))
    second.exchange(ask, NOW_S, [(route, demand(100))])
    (share,) = second.leases.lacking(route, demand(100))
    assert (share.is_short, share.pending) == (True, 1)
    first.leases.due(counter_of(first))
    first.exchange(ask, NOW_S)
    assert counter_of(first).room == 0
    second.leases.due(share.counter)
    second.exchange(ask, NOW_S, [(route, demand(100))])
    assert (share.is_short, share.pending) == (False, 0)
    assert isinstance(hold(second, 100), Hold)


def test_a_recall_that_others_have_answered_is_the_last_word(clock: Clock, ask: Ask) -> None:
    first, second = two(clock, ask, [budget(100)])
    fetched(first, ask, 90)
    route = second.book.route(SEARCH, NOW_S)
    second.leases.want(route, demand(11))
    second.exchange(ask, NOW_S, [(route, demand(11))])
    (share,) = second.leases.lacking(route, demand(11))
    assert (share.is_short, share.pending) == (True, 1), "what the other holds may have ended meanwhile"
    assert first.leases.recall([share.name])
    first.exchange(ask, NOW_S)
    for _ in range(3):
        second.leases.due(share.counter)
        second.exchange(ask, NOW_S, [(route, demand(11))])
        assert (share.is_short, share.pending) == (True, 0)


def test_shortly_after_a_recall_nothing_is_leased_beyond_need(clock: Clock, ask: Ask) -> None:
    first, second = two(clock, ask, [budget(100)], horizon_s=10.0)
    first.book.void(fetched(first, ask, 50).hold_id)
    route = second.book.route(SEARCH, NOW_S)
    second.leases.want(route, demand(100))
    second.exchange(ask, NOW_S, [(route, demand(100))])
    first.leases.recall([name_of(counter_of(first))])
    first.exchange(ask, NOW_S)
    first.leases.due(counter_of(first))
    first.exchange(ask, NOW_S)
    assert counter_of(first).room == 0
    clock.now_ms += ledger.leases.CALM_MS
    first.leases.due(counter_of(first))
    first.exchange(ask, NOW_S)
    assert counter_of(first).room > 0


def test_a_clock_that_is_ahead_frees_nothing_of_a_rolling_window_early(clock: Clock, ask: Ask) -> None:
    rolling = Budget("b", "finance", (("org", "acme"),), "tokens", 100, parse_window("rolling:60s"))
    first, second = two(clock, ask, [rolling])
    fetched(first, ask, 100)
    route = second.book.route(SEARCH, NOW_S + 120)
    for _ in range(2):
        second.leases.want(route, demand(1))
        second.exchange(ask, NOW_S + 120, [(route, demand(1))])
        assert isinstance(hold(second, 1, NOW_US + 120 * MILLION), Shortfall)


def test_who_has_nothing_to_tell_learns_of_a_new_epoch_all_the_same(
    client: "redis.Redis[bytes]", clock: Clock, ask: Ask
) -> None:
    first, second = two(clock, ask, [budget(100)])
    shard = second.leases.shard("acme")
    assert not second.leases.is_pressing(shard, second.at_s)
    client.flushall()
    clock.now_ms += int(QUIET_S * 1000)
    assert second.leases.is_pressing(shard, second.at_s)
    second.exchange(ask, NOW_S)
    assert not second.leases.is_pressing(shard, second.at_s)
    first.exchange(ask, NOW_S)
    said = [orjson.loads(each) for each in client.lrange(channel("acme"), 0, -1)]
    assert ["r0", {}, "joined"] in said
    second.leases.join("acme")
    assert second.leases.is_pressing(shard, second.at_s)


def test_a_recall_of_a_counter_that_is_not_known_here_asks_for_nothing() -> None:
    leases = Leases(Book([], NOW_S, is_shared=True), "r0", 1, uuid7())
    assert not leases.recall(["b|tokens|day|org=acme"])
    assert leases.shards == {}
