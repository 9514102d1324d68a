"""A watch: every replica and Redis looked at all the time, for what no moment may show."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import redis

from tests.e2e import shared_counters
from tests.e2e.replicas import Replica, Replicas
from tests.load.instance import InstanceFailed

_POLL_S = 0.2


@dataclass
class Watch:
    """Looks at every replica and at Redis all the time; `overspent` is what no moment may show."""

    replicas: Replicas
    redis_url: str
    limits: dict[str, int]
    overspent: list[str] = field(default_factory=list)
    looks: int = 0

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.to_thread(self._look)
            await asyncio.sleep(_POLL_S)

    def _look(self) -> None:
        for replica in self.replicas.of.values():
            self.overspent += [f"{replica.name}: {each}" for each in _counters(replica) if _taken(each) > each["limit"]]
        try:
            found = shared_counters.debits(self.redis_url)
        except redis.RedisError:
            return  # it is away, as it is meant to be now and then
        self.overspent += [f"redis: {each}" for each in shared_counters.overspent(found, self.limits)]
        self.looks += 1


@asynccontextmanager
async def watched(replicas: Replicas, redis_url: str, limits: dict[str, int]) -> AsyncIterator[Watch]:
    """A watch that looks while the context lasts."""
    watch = Watch(replicas, redis_url, limits)
    watching = asyncio.create_task(watch.run())
    try:
        yield watch
        if watching.done():
            watching.result()  # it never ends by itself: this raises what ended it
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def _counters(replica: Replica) -> list[dict[str, Any]]:
    try:
        return replica.counters()
    except InstanceFailed:
        return []  # it was killed


def _taken(counter: dict[str, Any]) -> int:
    """All that a replica knows to be spent, held or leased of a counter, by itself and by the others."""
    return sum(int(counter[name]) for name in ("spent", "held", "spent_elsewhere", "held_elsewhere"))
