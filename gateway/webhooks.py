"""Webhooks: events told to other systems, beside the request path and never in its way."""

import asyncio
import hashlib
import hmac
import os
import random
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

import aiohttp
import orjson
import structlog

log = structlog.get_logger(__name__)

QUEUE_MAX = 1_000
RETRIES_MAX = 3
BACKOFF_S = 0.5
BACKOFF_S_MAX = 10.0
DRAIN_S = 5.0
RETRIED = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS})


class WebhookConfig(Protocol):
    """What a webhook needs of its configuration entry."""

    @property
    def id(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def secret_env(self) -> str | None: ...
    @property
    def timeout_s(self) -> float: ...
    @property
    def events(self) -> Iterable[str]: ...


class SecretMissing(ValueError):
    """A webhook names an environment variable for its secret that is not set; safe to show."""


@dataclass(slots=True)
class Tally:
    """What became of the events of one webhook."""

    delivered: int = 0
    failed: int = 0
    dropped: int = 0


class _Hook:
    """One receiver with its own queue, so that a dead one delays no other."""

    def __init__(self, config: WebhookConfig, secret: bytes | None, backoff_s: float, queue_max: int) -> None:
        self.id = config.id
        self.events = frozenset(config.events)
        self.tally = Tally()
        self.queue: asyncio.Queue[bytes] = asyncio.Queue(queue_max)
        self._url = str(config.url)
        self._timeout = aiohttp.ClientTimeout(total=config.timeout_s)
        self._secret = secret
        self._backoff_s = backoff_s

    def offer(self, body: bytes) -> None:
        try:
            self.queue.put_nowait(body)
        except asyncio.QueueFull:
            self.tally.dropped += 1

    async def work(self, session: aiohttp.ClientSession) -> None:
        """Deliver one event after another until cancelled."""
        while True:
            body = await self.queue.get()
            arrived = None
            try:
                arrived = await self._deliver(session, body)
            finally:
                self._count(arrived)
                self.queue.task_done()

    def drop_queued(self) -> None:
        """Count what is still queued as dropped."""
        with suppress(asyncio.QueueEmpty):
            while True:
                self.queue.get_nowait()
                self.tally.dropped += 1

    def _count(self, arrived: bool | None) -> None:
        """Count one event; None says that closing cut its delivery off."""
        if arrived is None:
            self.tally.dropped += 1
        elif arrived:
            self.tally.delivered += 1
        else:
            self.tally.failed += 1

    async def _deliver(self, session: aiohttp.ClientSession, body: bytes) -> bool:
        headers = {"content-type": "application/json"}
        if self._secret is not None:
            headers["x-bursar-signature"] = "sha256=" + hmac.new(self._secret, body, hashlib.sha256).hexdigest()
        for attempt in range(1 + RETRIES_MAX):
            if attempt:
                longest_s = min(BACKOFF_S_MAX, self._backoff_s * 2 ** (attempt - 1))
                await asyncio.sleep(random.uniform(longest_s / 2, longest_s))  # noqa: S311 jitter is no secret
            outcome = await self._post(session, body, headers)
            if isinstance(outcome, int):
                if outcome < HTTPStatus.MULTIPLE_CHOICES:
                    return True
                if outcome < HTTPStatus.INTERNAL_SERVER_ERROR and outcome not in RETRIED:
                    break
        log.warning("webhook_failed", webhook=self.id, outcome=outcome, attempts=attempt + 1)
        return False

    async def _post(self, session: aiohttp.ClientSession, body: bytes, headers: dict[str, str]) -> int | str:
        """The status answered, or the name of what prevented an answer."""
        try:
            # A redirect could carry the event to a host that nobody configured.
            async with session.post(
                self._url, data=body, headers=headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                return response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return type(error).__name__


class Webhooks:
    """Delivers each event to every webhook that asked for its name, with a few retries and no promise beyond them.

    A receiver recognises a repeat by the event's `event_id`. Raises SecretMissing where a configured secret is not set.
    """

    def __init__(
        self,
        configs: Iterable[WebhookConfig],
        session_factory: Callable[[], aiohttp.ClientSession],
        *,
        environment: Mapping[str, str] = os.environ,
        backoff_s: float = BACKOFF_S,
        queue_max: int = QUEUE_MAX,
    ) -> None:
        self._hooks = [_Hook(config, _secret(config, environment), backoff_s, queue_max) for config in configs]
        self._session_factory = session_factory
        self._workers: list[asyncio.Task[None]] = []
        self._closed = False
        self.malformed = 0

    @property
    def tallies(self) -> dict[str, Tally]:
        """What became of the events so far, by webhook id."""
        return {hook.id: hook.tally for hook in self._hooks}

    def publish(self, event: dict[str, Any]) -> None:
        """Queue an event for the webhooks that asked for its `name`, without waiting or raising; drops are counted."""
        name = str(event.get("name"))
        hooks = [hook for hook in self._hooks if name in hook.events]
        if not hooks:
            return
        try:
            body = orjson.dumps(event)
        except TypeError:  # orjson's errors are of this kind
            self.malformed += 1
            log.exception("webhook_event_malformed", event_name=name)
            return
        for hook in hooks:
            if self._closed:
                hook.tally.dropped += 1
            else:
                hook.offer(body)

    async def run(self) -> None:
        """Deliver until `close`, which may come first."""
        if self._closed:
            return
        async with self._session_factory() as session, asyncio.TaskGroup() as group:
            self._workers = [group.create_task(hook.work(session)) for hook in self._hooks]

    async def close(self, timeout_s: float = DRAIN_S) -> None:
        """Take no more events, deliver what is queued for at most `timeout_s`, count the rest as dropped and stop."""
        self._closed = True
        if self._workers:
            drained = [asyncio.create_task(hook.queue.join()) for hook in self._hooks]
            _, late = await asyncio.wait(drained, timeout=timeout_s)
            for task in (*late, *self._workers):
                task.cancel()
            await asyncio.gather(*late, *self._workers, return_exceptions=True)
        for hook in self._hooks:
            hook.drop_queued()


def _secret(config: WebhookConfig, environment: Mapping[str, str]) -> bytes | None:
    if config.secret_env is None:
        return None
    secret = environment.get(config.secret_env)
    if not secret:
        raise SecretMissing(f"webhook {config.id}: the environment variable {config.secret_env} is not set")
    return secret.encode("utf-8")
