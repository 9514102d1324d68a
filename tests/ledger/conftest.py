"""Journals and rows for the tests of the ledger, and a Redis for those of the shared book."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from domain.ids import uuid7
from ledger.journal import Journal
from tests.ledger.replicas import NOW_S
from tests.ledger.shared_book import Ask, Clock, asks
from tests.redis_server import RedisServer

SEGMENT_BYTES = 1 << 17


@pytest.fixture
def make_journal(tmp_path: Path) -> Iterator[Callable[..., Journal]]:
    """Opens journals under `journal/` of the test's home, small ones unless told otherwise, and closes them."""
    opened: list[Journal] = []

    def make(writer: str = "gateway-0", **options: Any) -> Journal:
        settings: dict[str, Any] = {"segment_bytes": SEGMENT_BYTES, "snapshot": lambda: {"spent": []}}
        journal = Journal.open(tmp_path / "journal" / writer, **{**settings, **options})
        opened.append(journal)
        return journal

    yield make
    for journal in opened:
        journal.close()


@pytest.fixture
def usage_row() -> Callable[..., dict[str, Any]]:
    """Makes bodies of `usage` records."""

    def make(**values: Any) -> dict[str, Any]:
        row: dict[str, Any] = {
            "ts_us": time.time_ns() // 1000,
            "event_id": uuid7(),
            "request_id": uuid7(),
            "org": "acme",
            "team": "search",
            "model": "small",
            "status": "ok",
            "http_status": 200,
            "stream": True,
            "input_tokens": 100,
            "output_tokens": 10,
            "list_cost_nusd": 1_500,
            "charges": [["team-day", "acme/search", 1_763_596_800, "tokens", 110]],
        }
        return row | values

    return make


@pytest.fixture(scope="module")
def redis_client() -> Iterator["redis.Redis[bytes]"]:
    """A Redis of the module's own."""
    with RedisServer() as server, redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
def clock(redis_client: "redis.Redis[bytes]") -> Clock:
    """The time of that Redis, which knows nothing yet."""
    redis_client.flushall()
    clock = Clock()
    clock.follow(NOW_S)
    return clock


@pytest.fixture
def ask(redis_client: "redis.Redis[bytes]", clock: Clock) -> Ask:
    """Carries exchanges to it."""
    return asks(redis_client, clock)
