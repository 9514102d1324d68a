"""The Redis of a shared book: connections to it, its time, what it keeps over a restart, and what can go wrong."""

import asyncio
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Connection, ConnectionPool, Redis, SSLConnection
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from domain.tasks import within
from ledger.shard_names import text
from ledger.shards import BadReply, NameTaken

CONNECTIONS_MAX = 16
TRUSTED_US = 50_000
CONNECT_S = 1.0
# What a Redis says (CONFIG GET) that loses nothing that it has acknowledged.
SYNCED = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}
# What the network and the server at its other end can do to an exchange; anything else is a fault of ours.
# uvloop raises RuntimeError where something is written to a connection that the other side has reset.
FAULTS = (RedisError, OSError, BadReply, NameTaken, TimeoutError, ValueError, RuntimeError)


@dataclass(slots=True)
class ServerClock:
    """Unix time in microseconds by Redis' clock, so that all replicas charge the same windows.

    In between it goes by the machine's monotonic clock: a step of its wall clock must move no window.
    """

    offset_us: int = field(default_factory=lambda: time.time_ns() // 1000 - ticks_us())
    is_known: bool = False

    def now_us(self) -> int:
        """The server's time now, as far as it is known."""
        return ticks_us() + self.offset_us

    def learn(self, server_ms: int, sent_us: int) -> None:
        """Take the server's time out of the answer to what was sent then, if it was not long under way or the first."""
        took_us = ticks_us() - sent_us
        if took_us < TRUSTED_US or not self.is_known:
            self.offset_us, self.is_known = server_ms * 1000 - (sent_us + took_us // 2), True

    async def ask(self, client: "Redis") -> None:
        """Learn the server's time before anything is charged by it; where it cannot be asked, ours must do."""
        sent_us = ticks_us()
        with suppress(*FAULTS):
            seconds, micros = await client.time()
            self.learn(seconds * 1000 + micros // 1000, sent_us)


async def keeps_all(client: "Redis") -> bool:
    """Whether a Redis loses nothing that it has acknowledged; one that does not say is taken not to.

    Raises BadReply where it may evict what was spent.
    """
    async with client.pipeline(transaction=False) as pipeline:
        pipeline.info("memory")
        pipeline.info("replication")
        pipeline.config_get("*append*")
        memory, replication, said = await pipeline.execute(raise_on_error=False)
    for answer in (memory, replication):
        if isinstance(answer, Exception):
            raise answer
    if memory.get("maxmemory", 0) and memory.get("maxmemory_policy") != "noeviction":
        raise BadReply("Redis may evict counters, and what was spent on them: set its maxmemory-policy noeviction")
    if isinstance(said, ResponseError):
        return False
    facts = {text(key): text(value) for key, value in said.items()}
    return SYNCED.items() <= facts.items() and _stands_alone(replication)


class _Patient(AbstractConnection):
    """A connection on which an answer that came while this process was held up is not late."""

    async def read_response(
        self,
        disable_decoding: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109 it is the library's
        *,
        disconnect_on_error: bool = True,
        push_request: bool | None = False,
    ) -> Any:
        """The next answer; TimeoutError where it does not come within `socket_timeout`."""
        own_s = self.socket_timeout if timeout is None else None
        reading = super().read_response(
            disable_decoding,
            timeout if own_s is None else math.inf,
            disconnect_on_error=disconnect_on_error,
            push_request=push_request,
        )
        if own_s is None:
            return await reading
        try:
            return await within(own_s, reading)
        except (TimeoutError, asyncio.CancelledError):
            # What was read just then is lost with it, and the next to read here would take what follows for its own.
            if disconnect_on_error:
                await self.disconnect(nowait=True)
            raise


class _PatientConnection(_Patient, Connection):
    pass


class _PatientTls(_Patient, SSLConnection):
    pass


def connect(url: str, timeout_ms: int, password: str | None) -> tuple["Redis", "Redis"]:
    """A client that asks and one that listens; they try nothing twice, as repeating is the keeper's to decide."""
    timeout_s = timeout_ms / 1000

    def client(answer_s: float | None) -> "Redis":
        pool = ConnectionPool.from_url(
            url,
            password=password,
            # The library's own clock counts here, also while this process is held up.
            socket_connect_timeout=max(timeout_s, CONNECT_S),
            socket_timeout=answer_s,
            retry=Retry(NoBackoff(), 0),
            max_connections=CONNECTIONS_MAX,
        )
        pool.connection_class = _PatientTls if issubclass(pool.connection_class, SSLConnection) else _PatientConnection
        return Redis.from_pool(pool)

    return client(timeout_s), client(None)


def _stands_alone(replication: Mapping[str, Any]) -> bool:
    """Whether no copy of this Redis could take its place with less than it has acknowledged, and it is none itself."""
    is_copied = int(replication.get("connected_slaves", 1)) > 0
    return (
        replication.get("role") == "master"
        and not is_copied
        and not text(replication.get("master_replid2", "")).strip("0")
    )


def ticks_us() -> int:
    """Microseconds of a clock that only ever goes forward."""
    return time.monotonic_ns() // 1000
