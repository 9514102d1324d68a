"""Engines: the policy engines of one worker, opened before they serve, followed while they do, and closed after."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from gateway.composition import Unready, bundle_of
from gateway.config import Policy
from gateway.config_file import LoadedConfig
from observability import names
from observability.metrics import Metrics
from policy.decider import Decider, Failure
from policy.embedded import WAIT_S_MAX, Counts, EmbeddedEngine
from policy.opa import OpaEngine, OpaServer, OpaState
from policy.port import Engine

log = structlog.get_logger("gateway")
EMBEDDED = "embedded:"
FOLLOW_AGAIN_S = 1.0
SAID_AGAIN_S = 60.0
SAID_MAX = 100
SAID_CHARACTERS_MAX = 1000


class Deciding(NamedTuple):
    """Engines that can serve: the one that decides, and the one that decides in its shadow."""

    engine: Engine
    shadow: Engine | None


class Failures:
    """Logs why nothing could be decided: each reason once a minute, and at most SAID_MAX of them in one."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        # When each was said, the oldest first.
        self._said_at: dict[tuple[bool, str], float] = {}

    def say(self, failure: Failure) -> None:
        """Log one, with the beginning of its input, which no ledger has; or not, if that has just been said."""
        reason = failure.reason[:SAID_CHARACTERS_MAX]
        if not self._is_news((failure.is_shadow, reason)):
            return
        log.error(
            "the shadow bundle gave no decision" if failure.is_shadow else "policy gave no decision",
            reason=reason,
            entry=failure.entry,
            input_digest=hashlib.sha256(failure.input_json).hexdigest(),
            input=failure.input_json[:SAID_CHARACTERS_MAX].decode(errors="replace"),
        )

    def _is_news(self, what: tuple[bool, str]) -> bool:
        said_at, now_s = self._said_at, self._now_s()
        while said_at and now_s - said_at[first := next(iter(said_at))] >= SAID_AGAIN_S:
            del said_at[first]
        if what in said_at or len(said_at) >= SAID_MAX:
            return False
        said_at[what] = now_s
        return True


class Engines:
    """What a worker does with its policy engines; `environ` holds the token of an OPA server."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        # Of all that are opened, so that nothing is counted anew when a reload brings others.
        self._counts = Counts()
        self._failures = Failures()
        self._following: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    def watch(self, metrics: Metrics) -> None:
        """Let the metrics read what happens to the processes of embedded engines."""
        metrics.watch(names.POLICY_ENGINE_RESTARTS, lambda: self._counts.restarts)
        metrics.watch(names.POLICY_INPUTS_REFUSED, lambda: self._counts.refused)

    async def open(self, loaded: LoadedConfig, serving: Deciding | None = None) -> Deciding:
        """The engines of a configuration; those that serve already go on where nothing about them changed.

        Raises BundleError where a bundle cannot serve, Unready where a secret is missing. An OPA server may be away.
        """
        engine = await self._open(loaded, serving.engine if serving else None)
        try:
            shadow = await self._open_shadow(loaded, serving.shadow if serving else None)
        except BaseException:
            await self.discard(Deciding(engine, None), serving)
            raise
        return Deciding(engine, shadow)

    async def discard(self, opened: Deciding, serving: Deciding | None) -> None:
        """Close what was opened and is not to serve."""
        for each in opened:
            if each is not None and (serving is None or each not in serving):
                await each.close()

    def serve(self, decider: Decider, opened: Deciding) -> None:
        """Let these engines decide from now on; those that did are closed once nothing can wait for them any more."""
        before = Deciding(decider.engine, decider.shadow)
        if opened.engine is not decider.engine:
            decider.swap(opened.engine)
        if opened.shadow is not None and opened.shadow is not decider.shadow:
            decider.forget()  # so that it is cast on what is asked again, too
        decider.shadow = opened.shadow
        decider.on_failure = self._failures.say
        self.follow(opened.engine)
        for each in before:
            if each is not None and each not in opened:
                self._finish(_close_after_waits(each))

    def follow(self, engine: Engine) -> None:
        """Look after an engine that is far away, so that what happens to it is known."""
        if self._following is not None:
            self._following.cancel()
            self._following = None
        if isinstance(engine, OpaEngine):
            self._following = asyncio.get_running_loop().create_task(engine.run(_say))
            self._following.add_done_callback(partial(self._follow_again, engine))

    async def close(self, decider: Decider) -> None:
        """Close all."""
        tasks = [*self._retiring, *([self._following] if self._following is not None else [])]
        self._following = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for each in (decider.engine, decider.shadow):
            if each is not None:
                await each.close()

    async def _open(self, loaded: LoadedConfig, serving: Engine | None) -> Engine:
        policy = loaded.config.policy
        if not policy.is_remote:
            return await self._embedded(bundle_of(loaded), policy.timeout_ms, serving)
        server = server_of(policy, self._environ)
        if isinstance(serving, OpaEngine) and serving.server == server:
            return serving
        engine = OpaEngine(server)
        try:
            await engine.poll()
        except BaseException:
            await engine.close()
            raise
        return engine

    async def _open_shadow(self, loaded: LoadedConfig, serving: Engine | None) -> Engine | None:
        policy = loaded.config.policy
        if policy.shadow is None:
            return None
        folder = loaded.path.parent / policy.shadow.removeprefix(EMBEDDED)
        return await self._embedded(folder, policy.timeout_ms, serving)

    async def _embedded(self, folder: Path, timeout_ms: int, serving: Engine | None) -> Engine:
        opened = await EmbeddedEngine.open(folder, timeout_ms, self._counts)
        known = (opened.revision, timeout_ms)
        if isinstance(serving, EmbeddedEngine) and (serving.revision, serving.timeout_ms) == known:
            await opened.close()
            return serving
        opened.on_loss = _say_lost
        return opened

    def _follow_again(self, engine: OpaEngine, task: "asyncio.Task[None]") -> None:
        """Go on after a fault of ours: an engine that is not looked after could change its bundle unnoticed."""
        if task.cancelled() or task is not self._following:
            return
        log.error("the OPA server is looked after anew", exc_info=task.exception())

        def again() -> None:
            if task is self._following:
                self.follow(engine)

        asyncio.get_running_loop().call_later(FOLLOW_AGAIN_S, again)

    def _finish(self, closing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(closing)
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)


def server_of(policy: Policy, environ: Mapping[str, str]) -> OpaServer:
    """The OPA server that a configuration names; raises Unready where its token is missing."""
    token = environ.get(policy.token_env, "") if policy.token_env else ""
    if policy.token_env and not token:
        raise Unready(f"the token of the OPA server is taken from {policy.token_env}, which is not set")
    return OpaServer(policy.url, policy.timeout_ms, float(policy.poll_s), token=token)


async def _close_after_waits(engine: Engine) -> None:
    try:
        await asyncio.sleep(WAIT_S_MAX)
    finally:
        await engine.close()


def _say_lost(why: str) -> None:
    log.error("a new process evaluates policies", reason=why)


def _say(state: OpaState) -> None:
    if state.is_away:
        log.error("the OPA server cannot be asked", reason=state.problem)
    elif state.problem:
        log.error("the OPA server keeps its last good bundle", revision=state.revision, reason=state.problem)
    else:
        log.info("the OPA server decides", revision=state.revision)
