"""What replicas of a shared book tell one another besides counters: grants, and the shards that any has begun."""

import json
from typing import Any

import orjson
from redis.asyncio import Redis

from ledger.book import Book
from ledger.counters import Grant
from ledger.leases import Leases
from ledger.recovery import grant_record

GRANTS_MAX = 10_000
_SHARED = "bursar:{shared}"


async def meet(client: "Redis", book: Book, leases: Leases, now_s: int) -> None:
    """Learn of the grants and shards of others, tell them of those known here, and forget grants that have expired."""
    async with client.pipeline(transaction=False) as pipeline:
        pipeline.hgetall(f"{_SHARED}:grants")
        pipeline.smembers(f"{_SHARED}:shards")
        said, tags = await pipeline.execute()
    for tag in tags:
        leases.shard(text(tag))
    known = {text(grant_id): _grant(value) for grant_id, value in said.items()}
    for grant in list(known.values())[:GRANTS_MAX]:
        if grant is not None and grant.expires_at_s > now_s:
            book.grant(grant, now_s)
    made = [each for each in book.grants.values() if each.expires_at_s > now_s and each.grant_id not in known]
    begun = leases.shards.keys() - {text(tag) for tag in tags}
    gone = [grant_id for grant_id, grant in known.items() if grant is not None and grant.expires_at_s <= now_s]
    if made or begun or gone:
        async with client.pipeline(transaction=False) as pipeline:
            for each in made:
                pipeline.hset(f"{_SHARED}:grants", each.grant_id, orjson.dumps(grant_record(each)))
            if begun:
                pipeline.sadd(f"{_SHARED}:shards", *begun)
            if gone:
                pipeline.hdel(f"{_SHARED}:grants", *gone)
            await pipeline.execute()


def text(value: Any) -> str:
    """What the store sent, as text."""
    return value.decode() if isinstance(value, bytes) else str(value)


def _grant(value: bytes) -> Grant | None:
    """A grant as another replica told it; one that cannot be read raises no limit here."""
    try:
        grant = Grant(**json.loads(value))
    except (ValueError, TypeError):
        return None
    is_whole = type(grant.amount) is int and type(grant.expires_at_s) is int
    return grant if is_whole else None
