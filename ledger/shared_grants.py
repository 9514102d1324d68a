"""Grants of a shared book: each replica tells the others of those made at it."""

import json
from collections.abc import Mapping
from typing import Any

import orjson
from redis.asyncio import Redis

from ledger.book import Book
from ledger.counters import Grant
from ledger.recovery import grant_record
from ledger.shard_names import text

GRANTS_MAX = 10_000
GRANTS = "bursar:{shared}:grants"
_NUMBERS = ("amount", "expires_at_s")


async def share_grants(client: "Redis", book: Book, now_s: int, said: Mapping[Any, Any]) -> None:
    """Take the grants that the store has, tell it of those known here alone, and let those go that have expired."""
    known = {text(grant_id): _grant(value) for grant_id, value in said.items()}
    for grant in list(known.values())[:GRANTS_MAX]:
        if grant is not None and grant.expires_at_s > now_s:
            book.grant(grant, now_s)
    made = [each for each in book.grants.values() if each.expires_at_s > now_s and each.grant_id not in known]
    gone = [grant_id for grant_id, grant in known.items() if grant is not None and grant.expires_at_s <= now_s]
    if made or gone:
        async with client.pipeline(transaction=False) as pipeline:
            for each in made:
                pipeline.hset(GRANTS, each.grant_id, orjson.dumps(grant_record(each)))
            if gone:
                pipeline.hdel(GRANTS, *gone)
            await pipeline.execute()


def _grant(value: bytes | str) -> Grant | None:
    """A grant as another replica told it; one that cannot be read raises no limit here."""
    try:
        grant = Grant(**json.loads(value))
    except (ValueError, TypeError):
        return None
    is_read = all(type(each) is (int if name in _NUMBERS else str) for name, each in grant_record(grant).items())
    return grant if is_read else None
