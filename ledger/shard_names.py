"""The names of the shards that replicas of a shared book have begun, by which one that is new to all of them is known.

They are kept beside a shard of their own, which every replica joins, and before that names all that it has. So once all
have joined it, in the epoch that lasts, a name that is not there yet is of a shard of which nobody has spent anything.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from redis.asyncio import Redis

from ledger.exchange_lines import tag_of
from ledger.leases import Leases

SHARED = "shared"
STATE, NAMES = f"bursar:{{{SHARED}}}:state", f"bursar:{{{SHARED}}}:shards"
_NAMES_MAX = 1_000


async def name_shard(client: "Redis", leases: Leases, tag: str) -> str:
    """Name a shard that is begun here; the run of the server when it is new to all replicas, else nothing."""
    shard = leases.shard(tag)
    if shard.is_named:
        return ""
    async with client.pipeline(transaction=True) as pipeline:
        pipeline.sadd(NAMES, tag)
        pipeline.hgetall(STATE)
        pipeline.info("server")
        added, state, server = await pipeline.execute()
    shard.is_named = True
    run = text(server["run_id"])
    facts = {text(key): text(value) for key, value in state.items()}
    return run if added and is_whole(facts, leases.shard(SHARED).epoch, run, leases.replicas) else ""


def is_whole(state: Mapping[str, str], epoch: str, run: str, replicas: int) -> bool:
    """Whether all replicas have named what they have: they joined this epoch, on the server that runs now."""
    joined = sum(key.startswith("joined|") for key in state)
    return bool(epoch) and state.get("epoch") == epoch and state.get("run") == run and joined >= replicas


async def name_all(client: "Redis", leases: Leases) -> None:
    """Name every shard of which this replica has something, before it joins the others in an epoch of the names."""
    tags = known_tags(leases)
    for first in range(0, len(tags), _NAMES_MAX):
        await client.sadd(NAMES, *tags[first : first + _NAMES_MAX])
    for tag in tags:
        leases.shard(tag).is_named = True


def known_tags(leases: Leases) -> list[str]:
    """Every shard of which this replica may have something."""
    return list(leases.shards.keys() | {tag_of(counter.name) for counter in leases.book.every_counter()})


async def learn_names(client: "Redis", leases: Leases, count: int) -> None:
    """Begin here too what others have begun, where there are not as many names as are known here."""
    if count != sum(shard.is_named for shard in leases.shards.values()):
        learn(leases, await client.smembers(NAMES))


def learn(leases: Leases, names: Iterable[Any]) -> None:
    """Take the names that the store has."""
    for name in names:
        leases.shard(text(name)).is_named = True


def text(value: Any) -> str:
    """What the store sent, as text."""
    return value.decode() if isinstance(value, bytes) else str(value)
