"""Replicas agree on scores whatever befalls their exchanges, in whatever order."""

import json

import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ledger.shared_scores import Ask
from tests.ledger.replicas import NOW_S
from tests.ledger.shared_book import Clock
from tests.ledger.shared_scores import MANY, POINT, Sharer, told

Step = tuple[str, int, int]
STEPS = ("add", "exchange", "lost", "unanswered", "late", "restart", "flush")
COUNTED_HEARD_AND_FORGOTTEN = [
    *(("exchange", 1, 1), ("add", 1, 1), ("unanswered", 1, 1)),
    *(("exchange", 0, 1), ("exchange", 0, 1), ("flush", 0, 1)),
]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 2), st.integers(1, 5)), max_size=25))
@example(COUNTED_HEARD_AND_FORGOTTEN)
def test_replicas_agree_in_the_end_whatever_befell_their_exchanges(
    redis_client: "redis.Redis[bytes]", steps: list[Step]
) -> None:
    """Without anything forgotten the sum is exact; where Redis forgets, no score is lower than any replica's own.

    It can then be higher by what was counted and not answered, for that is told again, and others may have heard it.
    """
    redis_client.flushall()
    clock = Clock()
    clock.follow(NOW_S)
    sharers = [Sharer(redis_client, clock, MANY) for _ in range(3)]
    late: list[tuple[Sharer, Ask]] = []
    added, twice, has_forgotten = 0, 0, False
    for step, at, points in steps:
        each = sharers[at]
        if step == "add":
            each.add("a", points * POINT)
            added += points * POINT
        elif step == "exchange":
            each.take(each.deliver(each.ask()))
        elif step == "lost":
            late.append((each, each.ask()))
        elif step == "unanswered":
            each.deliver(each.ask())
        elif step == "late" and late:
            sender, ask = late.pop()
            sender.deliver(ask)
        elif step == "restart":
            clock.run += "0"
        elif step == "flush":
            twice += sum(counted_unanswered(redis_client, sharer.ask()) for sharer in sharers)
            redis_client.flushall()
            has_forgotten = True
            late = [(sender, ask) for sender, ask in late if b'"number":0' not in ask.payload]
    known = max(each.score("a") for each in sharers)
    scores = told(*sharers)
    assert len(set(scores)) == 1
    assert known <= scores[0] <= added + twice
    if not has_forgotten:
        assert scores[0] == added


def counted_unanswered(client: "redis.Redis[bytes]", ask: Ask) -> int:
    """How much of what a replica is about to tell has been counted already."""
    payload = json.loads(ask.payload)
    if client.get(ask.keys[1]) != str(payload["number"]).encode():
        return 0
    return sum(amount for table in payload["tables"] for amount in table["adds"][1::2])
