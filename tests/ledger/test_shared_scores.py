"""Replicas agree on scores that fade, whatever is lost, repeated or forgotten between them."""

import asyncio
from collections.abc import Iterator

import pytest
import redis

from ledger.shards import BadReply
from ledger.shared_scores import ANSWER_MAX, PREFIX, SharedScores, Terms, exchange
from ledger.shared_store import FAULTS, connect
from tests.ledger.shared_book import Clock
from tests.ledger.shared_scores import FADED, HALF_LIFE_S, MANY, POINT, SCORE_MAX, TABLES, TERMS, Knows, Sharer, told
from tests.redis_server import RedisServer

DAY_S = 86_400


@pytest.fixture
def two(redis_client: "redis.Redis[bytes]", clock: Clock) -> tuple[Sharer, Sharer]:
    """Two replicas that have met."""
    sharers = Sharer(redis_client, clock), Sharer(redis_client, clock)
    for each in sharers:
        each.exchange()
    return sharers


def pass_s(clock: Clock, seconds: int) -> None:
    clock.now_ms += seconds * 1000


def test_what_happens_at_each_counts_at_all(two: tuple[Sharer, Sharer]) -> None:
    first, second = two
    first.add("a", 3 * POINT)
    second.add("a", 4 * POINT)
    second.add("b", POINT, table=1)
    assert told(first, second) == [7 * POINT] * 2
    assert first.score("b", 1) == POINT
    assert first.score("b", 0) == 0, "tables are apart"


def test_an_idle_exchange_is_one_round_trip_that_changes_nothing(
    two: tuple[Sharer, Sharer], redis_client: "redis.Redis[bytes]"
) -> None:
    first, second = two
    first.add("a", POINT)
    told(first, second)
    version = redis_client.hget(f"{PREFIX}:state", "version")
    assert [first.exchange(), second.exchange()] == [1, 1]
    assert redis_client.hget(f"{PREFIX}:state", "version") == version


def test_scores_fade_the_same_everywhere(two: tuple[Sharer, Sharer], clock: Clock) -> None:
    first, second = two
    first.add("a", 8 * POINT)
    assert told(first, second) == [8 * POINT] * 2
    pass_s(clock, HALF_LIFE_S)
    second.add("a", 4 * POINT)
    assert told(first, second) == [8 * POINT] * 2
    pass_s(clock, 3 * HALF_LIFE_S)
    assert told(first, second) == [POINT] * 2


def test_a_repeated_exchange_counts_once(two: tuple[Sharer, Sharer]) -> None:
    first, second = two
    first.add("a", POINT)
    lost = first.ask()
    first.deliver(lost)
    first.add("a", 2 * POINT)
    again = first.ask()
    first.deliver(again)
    first.take(first.deliver(again))
    first.deliver(lost)
    assert told(first, second) == [3 * POINT] * 2
    first.deliver(again)
    assert told(first, second) == [3 * POINT] * 2, "not even when it comes late"


def test_an_exchange_that_comes_after_redis_forgot_counts_for_nothing(
    two: tuple[Sharer, Sharer], redis_client: "redis.Redis[bytes]"
) -> None:
    first, second = two
    first.add("a", POINT)
    late = first.ask()
    first.exchange()
    second.add("a", POINT)
    told(first, second)
    redis_client.flushall()
    assert told(second) == [2 * POINT]
    assert first.deliver(late)[0] == b"lost"
    assert told(first, second) == [2 * POINT] * 2


def test_what_could_not_be_told_for_a_while_counts_for_what_is_left_of_it(
    two: tuple[Sharer, Sharer], clock: Clock
) -> None:
    first, second = two
    first.add("a", 8 * POINT)
    first.ask()  # it is lost
    pass_s(clock, HALF_LIFE_S)
    first.add("a", POINT)
    pass_s(clock, HALF_LIFE_S)
    assert told(first, second) == [2 * POINT + POINT // 2] * 2


def test_a_redis_that_forgot_all_lowers_nothing(
    two: tuple[Sharer, Sharer], clock: Clock, redis_client: "redis.Redis[bytes]"
) -> None:
    first, second = two
    first.add("a", 5 * POINT)
    told(first, second)
    redis_client.flushall()
    second.add("a", POINT)
    assert told(first, second) == [6 * POINT] * 2
    third = Sharer(redis_client, clock)
    assert told(first, second, third) == [6 * POINT] * 3, "nor is anything counted twice"


def test_a_redis_that_lost_its_last_writes_is_told_them_again(
    two: tuple[Sharer, Sharer], clock: Clock, redis_client: "redis.Redis[bytes]"
) -> None:
    first, second = two
    first.add("a", POINT)
    told(first, second)
    dump = {key: (redis_client.dump(key), redis_client.pttl(key)) for key in redis_client.scan_iter()}
    first.add("a", 2 * POINT)
    first.exchange()
    redis_client.flushall()
    for key, (value, ttl_ms) in dump.items():
        assert value is not None
        redis_client.restore(key, ttl_ms, value)
    clock.run = "another"
    assert told(first, second) == [3 * POINT] * 2


def test_a_restart_that_loses_nothing_counts_nothing_twice(two: tuple[Sharer, Sharer], clock: Clock) -> None:
    first, second = two
    first.add("a", POINT)
    first.deliver(first.ask())  # the answer is lost, and so is the server
    clock.run = "another"
    second.add("a", POINT)
    assert told(first, second) == [2 * POINT] * 2


def test_what_a_clock_that_was_ahead_has_left_is_right_and_fades(
    two: tuple[Sharer, Sharer], clock: Clock, redis_client: "redis.Redis[bytes]"
) -> None:
    first, second = two
    pass_s(clock, DAY_S)
    first.add("a", 5 * POINT)
    told(first, second)
    pass_s(clock, -DAY_S)
    for each in two:  # as the gateway's tracker does
        each.own.put(0, "a", 5 * POINT, each.now_s)
    assert told(first, second) == [5 * POINT] * 2
    pass_s(clock, 10 * HALF_LIFE_S)
    assert told(Sharer(redis_client, clock)) == [5 * POINT // 1024]
    second.add("a", POINT)
    assert told(first, second) == [POINT + 5 * POINT // 1024] * 2


def test_a_clock_that_is_set_back_to_the_same_time_twice_has_all_told_again_twice(
    two: tuple[Sharer, Sharer], clock: Clock, redis_client: "redis.Redis[bytes]"
) -> None:
    first, second = two
    first.add("a", POINT)
    told(first, second)
    for ahead_s in (6, DAY_S):
        pass_s(clock, ahead_s)
        first.exchange()
        second.exchange()
        pass_s(clock, -ahead_s)
        first.deliver(first.ask())  # the answer is lost
    assert told(first, second, Sharer(redis_client, clock)) == [POINT] * 3


def test_a_clock_that_is_set_back_a_little_has_nothing_told_again(
    two: tuple[Sharer, Sharer], clock: Clock, redis_client: "redis.Redis[bytes]"
) -> None:
    first, second = two
    first.add("a", POINT)
    told(first, second)
    epoch = redis_client.hget(f"{PREFIX}:state", "epoch")
    pass_s(clock, -5)
    assert [first.exchange(), second.exchange()] == [1, 1]
    assert redis_client.hget(f"{PREFIX}:state", "epoch") == epoch
    pass_s(clock, -1)
    first.exchange()
    assert redis_client.hget(f"{PREFIX}:state", "epoch") != epoch, "however slowly it goes back"


def test_a_replica_that_begins_with_what_its_journal_had_counts_none_of_it_twice(
    two: tuple[Sharer, Sharer], clock: Clock, redis_client: "redis.Redis[bytes]"
) -> None:
    first, second = two
    first.add("a", 5 * POINT)
    told(first, second)
    reborn = Sharer(redis_client, clock)
    reborn.own = first.own
    reborn.shared = SharedScores(TABLES, reborn.own, TERMS)
    assert told(second, reborn) == [5 * POINT] * 2
    reborn.add("a", POINT)
    assert told(second, reborn) == [6 * POINT] * 2


def test_a_new_replica_hears_all_there_is(
    two: tuple[Sharer, Sharer], clock: Clock, redis_client: "redis.Redis[bytes]"
) -> None:
    first, _ = (Sharer(redis_client, clock, MANY) for _ in range(2))
    for number in range(1_500):
        first.add(f"k{number}", POINT)
    assert first.exchange() <= 3 + 1_500 // ANSWER_MAX + 1, "as much as fits is told and heard at once"
    late = Sharer(redis_client, clock, MANY)
    late.exchange()
    assert {late.score(f"k{number}") for number in range(1_500)} == {POINT}


def test_a_score_has_a_most(two: tuple[Sharer, Sharer]) -> None:
    first, second = two
    for each in (first, second):
        each.shared.add(0, "a", SCORE_MAX, each.now_s)
        each.shared.add(0, "a", SCORE_MAX, each.now_s)
    assert told(first, second) == [SCORE_MAX] * 2


def test_what_has_faded_is_removed(
    two: tuple[Sharer, Sharer], clock: Clock, redis_client: "redis.Redis[bytes]"
) -> None:
    first, second = two
    first.add("a", 4 * FADED)
    told(first, second)
    pass_s(clock, 2 * HALF_LIFE_S)
    first.exchange()
    assert redis_client.hlen(f"{PREFIX}:team") == 1
    pass_s(clock, 1)
    first.exchange()
    assert redis_client.hlen(f"{PREFIX}:team") == redis_client.zcard(f"{PREFIX}:team:order") == 0


def test_there_are_no_more_keys_than_the_table_has_and_another_table_loses_none(
    two: tuple[Sharer, Sharer], redis_client: "redis.Redis[bytes]"
) -> None:
    first, second = two
    second.add("a", 9 * POINT)
    told(first, second)
    for number in range(100):
        first.add(f"run-{number}", POINT, table=1)
        first.exchange()
    assert redis_client.hlen(f"{PREFIX}:run") == redis_client.zcard(f"{PREFIX}:run:order") == 5
    assert told(first, second) == [9 * POINT] * 2
    assert redis_client.hget(f"{PREFIX}:run", "run-99") is not None


def test_what_waits_is_bounded_while_redis_is_away(two: tuple[Sharer, Sharer]) -> None:
    first, second = two
    for number in range(100):
        first.shared.add(1, f"run-{number}", POINT, first.now_s)
    first.add("a", POINT)
    assert first.shared.dropped == 95
    assert told(first, second) == [POINT] * 2
    assert [second.score(f"run-{number}", 1) for number in (94, 95, 99)] == [0, POINT, POINT]


def test_a_key_too_long_to_be_shared_stays_here(two: tuple[Sharer, Sharer]) -> None:
    first, second = two
    first.add("a" * 513, POINT)
    told(first, second)
    assert second.score("a" * 513) == 0
    assert first.shared.dropped == 1


def test_a_session_is_forgotten_in_time(two: tuple[Sharer, Sharer], redis_client: "redis.Redis[bytes]") -> None:
    assert two[0].shared.is_told
    sessions = list(redis_client.scan_iter(f"{PREFIX}:session:*"))
    assert len(sessions) == 2
    assert all(0 < redis_client.ttl(key) <= 86_400 for key in redis_client.scan_iter(f"{PREFIX}*"))


@pytest.mark.parametrize(
    "reply",
    [
        [],
        [b"ok", b"0"],
        [b"join", b"0", b"e", b"0", b"0"],
        [b"ok", b"0", b"e", b"1", b"a", b"1"],
        [b"ok", b"0", b"e", b"x", b"0"],
        [b"ok", b"0", b"e", b"0", b"0", b"0"],
        [b"ok", b"0", b"e", b"1", b"a", b"much", b"1", b"0"],
    ],
)
def test_an_answer_out_of_form_changes_nothing(two: tuple[Sharer, Sharer], reply: list[bytes]) -> None:
    first, second = two
    first.add("a", POINT)
    ask = first.ask()
    with pytest.raises(BadReply):
        first.shared.apply(reply, first.now_s)
    assert first.ask() == ask
    assert told(first, second) == [POINT] * 2


class TestOverTheNetwork:
    """The exchange as the gateway makes it, with Redis' own time."""

    @pytest.fixture
    def server(self) -> Iterator[RedisServer]:
        with RedisServer() as server:
            yield server

    async def test_two_processes_agree_in_three_round_trips_each(self, server: RedisServer) -> None:
        shared = [SharedScores(TABLES, Knows(), Terms(HALF_LIFE_S, SCORE_MAX, FADED)) for _ in range(2)]
        client, listener = connect(server.url, 1_000, None)
        try:
            shared[0].add(0, "a", POINT, 0)
            for each in (*shared, *shared):
                is_more = True
                while is_more:
                    scores, is_more = await exchange(client, each, 0)
            assert [(score.table, score.key) for score in scores] == [(0, "a")] or not scores
            assert shared[0].is_told
            assert max(each.exchanges for each in shared) <= 3
        finally:
            await client.aclose()
            await listener.aclose()

    async def test_a_redis_that_is_away_is_a_fault_and_what_was_to_be_told_is_told_later(
        self, server: RedisServer
    ) -> None:
        own = Knows()
        shared = SharedScores(TABLES, own, TERMS)
        client, listener = connect(server.url, 200, None)
        try:
            shared.add(0, "a", POINT, 0)
            server.stop()
            with pytest.raises(FAULTS):
                await exchange(client, shared, 0)
            server.start()
            while not shared.is_told:
                await exchange(client, shared, 0)
                await asyncio.sleep(0)
            assert server.ask(f"HGET {PREFIX}:team a").split(b"\r\n")[1].startswith(str(POINT).encode()[:3])
        finally:
            await client.aclose()
            await listener.aclose()


def test_every_key_lies_in_one_slot_of_a_cluster(clock: Clock) -> None:
    with RedisServer(cluster=True) as server, redis.Redis.from_url(server.url) as client:
        first, second = Sharer(client, clock), Sharer(client, clock)
        first.add("a", POINT)
        first.add("b", POINT, table=1)
        assert told(first, second) == [POINT] * 2
        slots = {client.cluster("KEYSLOT", key) for key in client.scan_iter()}  # type: ignore[no-untyped-call]  # redis' own
        assert len(slots) == 1
