"""Books that share one Redis against the plain dictionary: together they say what one book in memory says."""

import json
import os
from collections.abc import Iterable
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test

from ledger import recovery
from ledger.budgets import Budget, Subject
from ledger.exchange_lines import name_of
from ledger.holds import Demand, Shortfall
from ledger.records import SNAPSHOT, Record
from tests.ledger.book_draws import demands, subjects
from tests.ledger.shared_book import Carrier, Clock, SharedBook
from tests.ledger.test_book_model import TTL_S, US, BookAndModel, pick
from tests.redis_server import RedisServer

EXAMPLES = int(os.environ.get("BURSAR_EXAMPLES", "25"))
STEPS = 40
FATES = ("answered", "lost", "unanswered", "twice")


class SharedBookAndModel(BookAndModel):
    """The same machine on several replicas, each with its own journal, over a Redis and a network that fail."""

    def __init__(self, client: "redis.Redis[bytes]", replicas: int, horizon_s: float) -> None:
        super().__init__()
        client.flushall()
        self.client = client
        self.horizon_s = horizon_s
        self.count_of_replicas = replicas
        self.journals: list[list[Record]] = [[] for _ in range(replicas)]

    def make_book(self, budgets: Iterable[Budget], now_s: int) -> Any:
        clock = Clock()
        clock.run = "1"
        return SharedBook(self.count_of_replicas, Carrier(self.client, clock), clock, budgets, now_s, self.horizon_s)

    @rule(which=st.integers(0, 2))
    def die_and_rebuild(self, which: int) -> None:
        at = which % self.count_of_replicas
        self.book.die(at, self.model.now_s, self.journals[at])

    @rule()
    def redis_forgets(self) -> None:
        self.client.flushall()
        self.book.clock.run += "0"

    @rule(fates=st.lists(st.sampled_from(FATES), min_size=1, max_size=8))
    def network_fails(self, fates: list[Any]) -> None:
        """The next exchanges are lost on their way, or their answers are, or they arrive twice."""
        self.book.ask.fates.extend(fates)

    @precondition(lambda self: self.book.ask.sent)
    @rule(which=pick)
    def a_repetition_comes_late(self, which: int) -> None:
        """What was sent once arrives again after others: it changes nothing, unless it had never arrived."""
        carrier = self.book.ask
        exchange = carrier.sent[-1 - which % min(len(carrier.sent), 40)]
        had_arrived, before = exchange.serial in carrier.arrived, self.stored()
        answer = carrier.deliver(exchange)
        if had_arrived and exchange.keys[0].encode() in before:
            assert self.stored() == before, f"a late repetition was taken and answered {answer[0]!r}"

    @rule(subject=subjects, demand=demands())
    def hold_cut_off(self, subject: Subject, demand: Demand) -> None:
        """A replica that cannot ask holds no more than would fit if it could."""
        self.count += 1
        hold_id, now_us = f"h{self.count}", self.tell_time()
        route = self.book.route(subject, now_us // US)
        granted = self.book.hold_cut_off(route, demand, hold_id, {"hold_id": hold_id}, now_us, TTL_S)
        if isinstance(granted, Shortfall):
            assert granted.is_cut_off
            return
        cap = self.model.cap_that_fits(subject, demand)
        assert cap is not None
        assert granted.cap <= cap
        self.model.hold(hold_id, subject, demand, granted.cap)
        self.expiry[hold_id] = granted.expires_at_us
        self.demands[hold_id] = (demand, granted.cap)
        self.write("hold", self.moved(granted, "opened"))

    @invariant()
    def no_replica_can_overspend(self) -> None:
        """What is used and what any replica might still use unasked fit the limit together."""
        if not self.pool:
            return
        sums: dict[str, list[int]] = {}
        for replica in self.book.replicas:
            for counter in replica.book.every_counter():
                is_current = counter.turns_s > self.model.now_s and replica.book.find(counter.budget.id, counter.name)
                if counter.budget.is_hard and is_current:
                    known = sums.setdefault(name_of(counter), [0, 0, 0])
                    known[0] += counter.spent + counter.held
                    known[1] += max(0, counter.room)
                    known[2] = counter.limit
        for name, (used, room, limit) in sums.items():
            assert used + room <= max(used, limit), f"{name}: {used} used and {room} ready of {limit}"

    @invariant()
    def no_threshold_is_seen_where_none_was_crossed(self) -> None:
        """Nor one a second time, after Redis or a replica has forgotten."""
        assert not self.pool or self.book.crossings == []

    def stored(self) -> dict[bytes, Any]:
        """All that Redis has."""
        kinds = {key: self.client.type(key) for key in self.client.scan_iter() if not key.endswith(b":recall")}
        read = {b"hash": self.client.hgetall, b"set": self.client.smembers, b"string": self.client.get}
        return {key: read[kind](key) for key, kind in kinds.items()}

    def take_snapshot(self) -> None:
        for journal, replica in zip(self.journals, self.book.replicas, strict=True):
            journal.clear()
            _write(journal, SNAPSHOT, recovery.snapshot(replica.book))

    def write(self, kind: str, body: dict[str, Any]) -> None:
        body = {"ts_us": self.clock_us, **body}
        at = 0 if body.get("status") == "adjusted" else self.book.home.get(body.get("hold_id"))
        for index, journal in enumerate(self.journals):
            if at in (None, index):
                _write(journal, kind, body)


def _write(journal: list[Record], kind: str, body: dict[str, Any]) -> None:
    journal.append(Record(len(journal) + 1, kind, json.dumps(body).encode(), b"", "", 0))


@pytest.mark.timeout(120 + EXAMPLES)
@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("horizon_s", [0.0, 1.0], ids=["each hold asks redis", "leases"])
def test_replicas_say_together_what_one_book_says(replicas: int, horizon_s: float) -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as client:
        run_state_machine_as_test(
            lambda: SharedBookAndModel(client, replicas, horizon_s),
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                phases=[Phase.explicit, Phase.reuse, Phase.generate],
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            ),
        )
