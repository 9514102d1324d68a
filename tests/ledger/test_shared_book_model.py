"""Books that share one Redis against the plain dictionary: together they say what one book in memory says."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from ledger import recovery
from ledger.budgets import Budget
from ledger.records import SNAPSHOT, Record
from tests.ledger.shared_book import Clock, SharedBook, asks
from tests.ledger.test_book_model import BookAndModel
from tests.redis_server import RedisServer


class SharedBookAndModel(BookAndModel):
    """The same machine on several replicas, each with its own journal."""

    def __init__(self, client: "redis.Redis[bytes]", replicas: int, horizon_s: float) -> None:
        super().__init__()
        client.flushall()
        self.client = client
        self.horizon_s = horizon_s
        self.count_of_replicas = replicas
        self.journals: list[list[Record]] = [[] for _ in range(replicas)]

    def make_book(self, budgets: Iterable[Budget], now_s: int) -> Any:
        clock = Clock()
        return SharedBook(self.count_of_replicas, asks(self.client, clock), clock, budgets, now_s, self.horizon_s)

    @rule(which=st.integers(0, 2))
    def die_and_rebuild(self, which: int) -> None:
        at = which % self.count_of_replicas
        self.book.die(at, self.model.now_s, self.journals[at])

    @rule()
    def redis_forgets(self) -> None:
        self.client.flushall()

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


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("horizon_s", [0.0, 1.0], ids=["each hold asks redis", "leases"])
def test_replicas_say_together_what_one_book_says(replicas: int, horizon_s: float) -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as client:
        run_state_machine_as_test(
            lambda: SharedBookAndModel(client, replicas, horizon_s),
            settings=settings(
                max_examples=int(__import__("os").environ.get("EX", "25")),
                stateful_step_count=40,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            ),
        )
