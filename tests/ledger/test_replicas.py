"""What an operator sees of the replicas of a shared book, and what forgetting one of them frees."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import redis

from domain.amounts import Amounts
from domain.ids import uuid7
from ledger import replicas
from ledger.book import Book
from ledger.budgets import Budget, Subject
from ledger.exchange_lines import Want
from ledger.holds import Demand, Hold, Shortfall
from ledger.replicas import QUIET_S, ReplicaActive, forget, seen_replicas, unspent
from ledger.shard_names import NAMES
from ledger.shards import Exchange
from ledger.windows import parse_window
from tests.ledger.shared_book import Ask, Clock, Replica, asks
from tests.redis_server import RedisServer

LIMIT = 100
ORGS = ("acme", "zeta")
BUDGETS = [
    Budget("all", "finance", (), "tokens", LIMIT, parse_window("total")),
    Budget("orgs", "finance", (("org", "*"),), "tokens", LIMIT, parse_window("rolling:1h")),
    Budget("streams", "finance", (("org", "*"),), "concurrency", 3, parse_window("total")),
    Budget("soft", "finance", (), "output_tokens", 1, parse_window("total"), "soft"),
]
LONG_AGO_S, LATER_S = 200, 100
US = 1_000_000
Counters = dict[str, dict[str, str]]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Redis that nobody has spoken to."""
    with RedisServer() as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Iterator["redis.Redis[str]"]:
    """An operator's client of it."""
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        client.sadd(NAMES, "-", *ORGS)
        yield client


@pytest.fixture
def clock() -> Clock:
    """The server's time as exchanges see it: long ago for the operator, whose time is the real one."""
    clock = Clock()
    clock.follow(int(time.time()) - LONG_AGO_S)
    return clock


@pytest.fixture
def ask(server: RedisServer, clock: Clock) -> Iterator[Ask]:
    """Carries exchanges to it."""
    with redis.Redis.from_url(server.url) as client:
        yield asks(client, clock)


def subject(org: str) -> Subject:
    return Subject(org, "search", "web", "", "k", "", "small", "sim")


def demand(tokens: int) -> Demand:
    return Demand(Amounts(tokens=tokens, output_tokens=tokens, requests=1, concurrency=1), Amounts(), 0, 0)


def made(clock: Clock, ask: Ask, name: str, of: int = 2, *, spent: Replica | None = None) -> Replica:
    """A replica that has joined, with what an earlier process of its name had spent."""
    now_s = clock.now_ms // 1000
    book = Book(BUDGETS, now_s, is_shared=True)
    for charge in [] if spent is None else spent.book.spent_charges():
        book.restore_spent(charge, now_s)
    it = Replica(name, of, book, clock, 10.0)
    for org in ORGS:
        it.book.route(subject(org), now_s)
        it.leases.shard(org)
    it.exchange(ask, now_s)
    return it


def held(on: Replica, ask: Ask, tokens: int, org: str = "acme") -> Hold | Shortfall:
    """Hold with what one exchange brings."""
    now_s = on.clock.now_ms // 1000
    route = on.book.route(subject(org), now_s)
    want = Want(route, demand(tokens))
    on.leases.want(want)
    on.exchange(ask, now_s, [want])
    return on.book.hold(route, demand(tokens), uuid7(), {}, now_s * US, 600)


def spend(on: Replica, ask: Ask, tokens: int, org: str = "acme") -> None:
    """Spend, and tell of it."""
    hold = held(on, ask, tokens, org)
    assert isinstance(hold, Hold), hold
    on.book.settle(hold.hold_id, Amounts(tokens=tokens, output_tokens=tokens, requests=1), on.clock.now_ms * 1000)
    tell(on, ask)


def tell(on: Replica, ask: Ask) -> None:
    """Exchange all counters."""
    now_s = on.clock.now_ms // 1000
    for counter in on.book.counters(now_s):
        on.leases.due(counter)
    on.exchange(ask, now_s)


def lost(clock: Clock, ask: Ask) -> tuple[Replica, Replica]:
    """Two replicas; the second has spent 10 and 7 and holds 20 when it is lost, and the first goes on."""
    first, gone = made(clock, ask, "first"), made(clock, ask, "gone")
    tell(first, ask)
    spend(first, ask, 3)
    spend(gone, ask, 10)
    spend(gone, ask, 7, "zeta")
    assert isinstance(held(gone, ask, 20), Hold)
    tell(gone, ask)
    clock.follow(int(time.time()) - LATER_S)
    tell(first, ask)
    return first, gone


def named(client: "redis.Redis[str]", name: str) -> replicas.Replica:
    return next(each for each in seen_replicas(client) if each.name == name)


def counters(client: "redis.Redis[str]") -> Counters:
    """All counters as they stand in Redis."""
    return {key: client.hgetall(key) for key in client.scan_iter("*:counter:*")}


def debited(found: Counters, budget: str) -> int:
    """What is debited of a budget for all replicas, in all its cells."""
    total = 0
    for key, fields in found.items():
        if f":counter:{budget}|" in key:
            cells = {name[1:] for name in fields if name[:2] in ("g|", "s|")}
            total += sum(max(int(fields.get(f"g{each}", 0)), int(fields.get(f"s{each}", 0))) for each in cells)
    return total


def without(found: Counters, name: str, kind: str) -> Counters:
    """Counters without one kind of field of a replica."""
    return {
        key: {
            field: value
            for field, value in fields.items()
            if not (field.startswith(f"{kind}|") and field.endswith(f"|{name}"))
        }
        for key, fields in found.items()
    }


def kept(client: "redis.Redis[str]", name: str) -> list[set[str]]:
    """What each shard that knows a replica keeps about it."""
    shards = [client.hgetall(key) for key in client.scan_iter("*:state")]
    return [{field.split("|")[0] for field in fields if field.endswith(f"|{name}")} for fields in shards]


def test_a_redis_that_nobody_has_spoken_to_knows_no_replica(client: "redis.Redis[str]") -> None:
    assert seen_replicas(client) == []


def test_replicas_are_listed_by_age_with_what_each_has_leased_in_windows_that_still_count(
    client: "redis.Redis[str]", clock: Clock, ask: Ask
) -> None:
    lost(clock, ask)
    gone, first = seen_replicas(client)
    assert (gone.name, first.name) == ("gone", "first")
    assert sorted(gone.tags) == ["-", *ORGS]
    assert LATER_S - 1 <= first.unseen_s < LONG_AGO_S - 20 <= gone.unseen_s
    found = unspent(client, gone)
    where = {(each["budget"], each["counter"]): each["amount"] for each in found.shown}
    assert found.counters == len(where)
    assert set(where) >= {("all", "*"), ("orgs", "org=acme"), ("streams", "org=acme"), ("soft", "*")}
    assert where["all", "*"] >= 20
    assert where["soft", "*"] == 20, "a soft budget is never leased: this is held"
    assert found.amounts["tokens"] == sum(each["amount"] for each in found.shown if each["resource"] == "tokens")
    assert unspent(client, gone) == found, "looking changes nothing"


def test_forgetting_frees_what_was_leased_and_not_spent_and_nothing_else(
    client: "redis.Redis[str]", clock: Clock, ask: Ask
) -> None:
    lost(clock, ask)
    before, has = counters(client), unspent(client, named(client, "gone"))
    in_all = next(each["amount"] for each in has.shown if each["budget"] == "all")
    assert forget(client, named(client, "gone")) == has
    after = counters(client)
    assert without(after, "gone", "g") == without(before, "gone", "g")
    assert debited(before, "all") - debited(after, "all") == in_all
    spent = {"all": 17, "orgs": 17, "streams": 0, "soft": 17}
    for budget, amount in spent.items():
        assert debited(after, budget) == debited(without(without(after, "gone", "g"), "gone", "s"), budget) + amount


def test_another_replica_can_then_hold_all_that_was_not_spent(
    client: "redis.Redis[str]", clock: Clock, ask: Ask
) -> None:
    first, _ = lost(clock, ask)
    left = LIMIT - 3 - 17
    assert isinstance(held(first, ask, left), Shortfall)
    forget(client, named(client, "gone"))
    tell(first, ask)
    assert all(counter.stranded == 0 for counter in first.book.every_counter())
    assert isinstance(held(first, ask, left + 1), Shortfall)
    assert isinstance(held(first, ask, left), Hold)


def test_one_that_is_forgotten_is_listed_no_more_and_its_report_still_counts(
    client: "redis.Redis[str]", clock: Clock, ask: Ask
) -> None:
    first, _ = lost(clock, ask)
    forget(client, named(client, "gone"))
    assert [each.name for each in seen_replicas(client)] == ["first"]
    assert kept(client, "gone") == [{"joined", "serial"}] * 3
    tell(first, ask)
    assert all(shard.is_open for shard in first.leases.shards.values())


def test_what_it_sent_before_it_was_forgotten_changes_nothing_when_it_arrives_after(
    client: "redis.Redis[str]", clock: Clock, ask: Ask
) -> None:
    first, gone = made(clock, ask, "first"), made(clock, ask, "gone")
    tell(first, ask)
    shard, sent = gone.leases.shard("acme"), []
    route = gone.book.route(subject("acme"), clock.now_ms // 1000)

    def asked(exchange: Exchange) -> Sequence[bytes]:
        sent.append(exchange)
        return ask(exchange)

    spend(gone, asked, 10)
    want = Want(route, demand(30))
    gone.leases.want(want)
    waits = gone.leases.build(shard, [want], clock.now_ms // 1000, gone.at_s)
    forget(client, named(client, "gone"))
    before = counters(client), kept(client, "gone"), client.hgetall("bursar:{acme}:state")
    for late in (*sent, waits):
        assert ask(late)[0] == b"stale"
    assert (counters(client), kept(client, "gone"), client.hgetall("bursar:{acme}:state")) == before


def test_one_that_comes_back_with_its_journal_rejoins_and_reports_what_it_spent(
    client: "redis.Redis[str]", clock: Clock, ask: Ask
) -> None:
    first, gone = lost(clock, ask)
    hold = next(iter(gone.book.holds.values()))
    gone.book.settle(hold.hold_id, Amounts(tokens=20, output_tokens=20, requests=1), clock.now_ms * 1000)  # unreported
    forget(client, named(client, "gone"))
    back = made(clock, ask, "gone", spent=gone)
    tell(back, ask)
    tell(first, ask)
    assert [each.name for each in seen_replicas(client)] == ["gone", "first"]
    counter = first.book.find("all", "*")
    assert counter is not None
    assert (counter.spent, counter.spent_elsewhere, counter.stranded) == (3, 37, 0)
    assert isinstance(held(back, ask, 5), Hold)


def test_one_that_was_only_cut_off_rejoins_and_gives_back_what_was_freed(
    client: "redis.Redis[str]", clock: Clock, ask: Ask
) -> None:
    first, gone = lost(clock, ask)
    forget(client, named(client, "gone"))
    assert isinstance(held(first, ask, LIMIT - 3 - 17 - 20), Hold)
    tell(gone, ask)
    assert debited(counters(client), "all") > LIMIT, "it has come back with what was freed"
    counter = gone.book.find("all", "*")
    assert counter is not None
    assert counter.room <= 0
    for _ in range(2):
        tell(first, ask)
        tell(gone, ask)
    assert debited(counters(client), "all") == LIMIT
    assert gone.leases.shard("acme").is_open


def test_one_that_a_single_shard_has_seen_just_now_is_not_forgotten(
    client: "redis.Redis[str]", clock: Clock, ask: Ask
) -> None:
    lost(clock, ask)
    older = named(client, "gone")
    client.hset("bursar:{zeta}:state", "seen|gone", int(time.time() * 1000) - (QUIET_S - 20) * 1000)
    before = counters(client)
    with pytest.raises(ReplicaActive, match=r"seen 4\d s ago"):
        forget(client, named(client, "gone"))
    with pytest.raises(ReplicaActive, match="come back"):
        forget(client, older)
    assert counters(client) == before
    assert "gone" in {each.name for each in seen_replicas(client)}


def test_one_that_comes_back_while_it_is_forgotten_keeps_what_it_claims(
    client: "redis.Redis[str]", clock: Clock, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, gone = lost(clock, ask)
    freeing = replicas._each_counter

    def late(*asked: Any) -> replicas.Unspent:
        tell(gone, ask)
        return freeing(*asked)

    monkeypatch.setattr(replicas, "_each_counter", late)
    with pytest.raises(ReplicaActive, match="come back"):
        forget(client, named(client, "gone"))
    assert unspent(client, named(client, "gone")).amounts["output_tokens"] == 20
    tell(gone, ask)
    assert gone.leases.shard("acme").is_open


def test_what_an_epoch_has_forgotten_is_neither_listed_nor_freed(
    client: "redis.Redis[str]", clock: Clock, ask: Ask
) -> None:
    lost(clock, ask)
    gone = named(client, "gone")
    for tag in ("-", *ORGS):
        client.hset(f"bursar:{{{tag}}}:state", "epoch", "another")
    assert unspent(client, gone).counters == 0
    before = counters(client)
    assert forget(client, gone).counters == 0
    assert counters(client) == before


def test_shards_and_counters_are_gone_through_in_parts(client: "redis.Redis[str]") -> None:
    shards, each = 150, 300
    old_ms = int(time.time() * 1000) - LONG_AGO_S * 1000
    with client.pipeline(transaction=False) as pipeline:
        for shard in range(shards):
            tag = f"org{shard}"
            pipeline.sadd(NAMES, tag)
            pipeline.hset(f"bursar:{{{tag}}}:state", mapping={"epoch": "e", "seen|gone": old_ms, "serial|gone": "1"})
            for number in range(each if shard == 0 else 2):
                name = f"teams|tokens|total|org={tag},team=t{number}"
                pipeline.sadd(f"bursar:{{{tag}}}:replica:gone", name)
                fields = {"epoch": "e", "g|0|gone": 9, "s|0|gone": 2, "g|0|other": 5, "s|0|other": 1}
                pipeline.hset(f"bursar:{{{tag}}}:counter:{name}", mapping=fields)
        name = "teams|tokens|minute|org=org1"
        pipeline.sadd("bursar:{org1}:replica:gone", name)
        pipeline.hset(f"bursar:{{org1}}:counter:{name}", mapping={"epoch": "e", "g|60|gone": 9})
        pipeline.execute()
    count = each + 2 * (shards - 1)  # without the one whose minute is over
    (gone,) = seen_replicas(client)
    assert len(gone.tags) == shards
    assert (unspent(client, gone).counters, unspent(client, gone).amounts) == (count, {"tokens": 7 * count})
    assert forget(client, gone).amounts == {"tokens": 7 * count}
    fields = {"epoch": "e", "g|0|gone": "2", "s|0|gone": "2", "g|0|other": "5", "s|0|other": "1"}
    found = counters(client)
    assert found.pop(f"bursar:{{org1}}:counter:{name}") == {"epoch": "e", "g|60|gone": "0"}
    assert list(found.values()) == [fields] * count
    assert seen_replicas(client) == []
