"""Recalls: what other replicas need back and what they have given back, heard as they say it."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress

from redis.asyncio import Redis

from ledger.leases import Leases
from ledger.shard_names import text
from ledger.shards import channel
from ledger.shared_store import FAULTS

SILENCE_S = 5.0
_AGAIN_S = 0.2


async def hear_recalls(
    leases: Leases, listener: "Redis", on_due: Callable[[], None], on_return: Callable[[], None]
) -> None:
    """Hear until cancelled what is due to be told now, and that something came back.

    While nothing is heard, exchanges tell the same a little later.
    """
    while True:
        with suppress(*FAULTS):
            await _listen(leases, listener, on_due, on_return)
        await asyncio.sleep(_AGAIN_S)


async def _listen(leases: Leases, listener: "Redis", on_due: Callable[[], None], on_return: Callable[[], None]) -> None:
    """Hear until the connection breaks, or does not answer when it is asked after a silence."""
    async with listener.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.psubscribe(channel("*"))
        is_asked = False
        while True:
            message = await pubsub.get_message(timeout=SILENCE_S)
            if message is not None:
                is_asked = False
                if message["type"] == "pmessage":
                    _hear(leases, text(message["channel"]), message["data"], on_due, on_return)
            elif is_asked:
                return
            else:
                await pubsub.ping()
                is_asked = True


def _hear(leases: Leases, where: str, data: bytes, on_due: Callable[[], None], on_return: Callable[[], None]) -> None:
    said = json.loads(data)
    if not isinstance(said, list) or not said or said[0] == leases.replica:
        return
    tag = where.partition("{")[2].rpartition("}")[0]
    if tag not in leases.shards:
        leases.shard(tag)
        on_due()
    if len(said) > 2:
        leases.join(tag)
        on_due()
    wanted = said[1] if len(said) > 1 and isinstance(said[1], list) else []
    if not wanted:
        on_return()
    elif leases.recall(text(name) for name in wanted):
        on_due()
