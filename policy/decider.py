"""Decides requests: the cache of decisions in front of an engine, failing closed."""

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from domain.decision import Decision
from domain.ids import uuid7
from policy.decision import parse
from policy.port import (
    ADMISSION,
    Document,
    Engine,
    EngineAway,
    EvaluationError,
    PolicyInput,
    PolicyUnavailable,
    canonical,
)

CACHE_MAX = 10_000
# Of inputs; a decision takes about four times as much memory as its input has bytes where these are many.
CACHE_BYTES_MAX = 32 * 1024 * 1024
SHADOWED_MAX = 100
# An engine far away names addresses and libraries when it cannot be asked, which are no caller's business.
AWAY = "the policy engine cannot be asked now"


class Recorded(NamedTuple):
    """One evaluation as it is recorded: at which entry point, and whether it was only a shadow of the one in force."""

    decision: Decision
    entry: str = ADMISSION
    is_shadow: bool = False


class Failure(NamedTuple):
    """No decision on one input, in force or only of the shadow: why, in full; an input without a JSON form is empty."""

    reason: str
    entry: str
    input_json: bytes
    is_shadow: bool = False


Record = Callable[[Recorded], None]


class _Decided:
    """The decisions of one revision by their inputs: at most so many, of inputs of so many bytes; the oldest leave."""

    def __init__(self, revision: str, count_max: int, bytes_max: int) -> None:
        self.revision = revision
        self.by_input: dict[PolicyInput, Decision] = {}
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._bytes = 0

    def keep(self, given: PolicyInput, decision: Decision) -> None:
        """Keep a decision in place of the one that there may be."""
        kept = self.by_input
        size = len(decision.input_json)
        if given in kept:
            self._drop(given)
        while kept and (len(kept) >= self._count_max or self._bytes + size > self._bytes_max):
            self._drop(next(iter(kept)))
        kept[given] = decision
        self._bytes += size

    def _drop(self, given: PolicyInput) -> None:
        self._bytes -= len(self.by_input.pop(given).input_json)


class _Serving:
    """An engine and the decisions made under one revision of it; replaced together, never mixed."""

    def __init__(self, engine: Engine, decided: _Decided) -> None:
        self.engine = engine
        self.decided = decided
        # The same again, because each request looks here.
        self.revision = decided.revision
        self.cache = decided.by_input
        # What those wait for who ask what is being asked already: nothing comes where whoever asked it has left.
        self.flights: dict[PolicyInput, asyncio.Future[Decision | EvaluationError | None]] = {}


class Decider:
    """Answers each distinct input once per bundle revision; a repeated one costs a dictionary lookup.

    At most `cache_max` decisions are cached, of inputs of `cache_bytes_max` bytes together, and as many kept of before.
    For one event loop. `record` is called once per evaluation, before its decision is cached or returned; what it
    raises reaches the caller and leaves nothing cached. While the engine is away, what it decided before may serve for
    `last_known_good_s` seconds, marked as such; with 0 nothing is decided meanwhile. A `shadow` decides each distinct
    input too, after the fact, and is only recorded. `on_failure` is told each time that nothing could be decided.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        cache_max: int = CACHE_MAX,
        cache_bytes_max: int = CACHE_BYTES_MAX,
        record: Record | None = None,
        last_known_good_s: float = 0,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        if cache_max < 1:
            raise ValueError("cache_max must be at least 1")
        self._cache_max = cache_max
        self._cache_bytes_max = cache_bytes_max
        self._before = self._nothing("")
        self._serving = _Serving(engine, self._nothing(engine.revision))
        self._changed_at_s = 0.0
        self._shadowing: set[asyncio.Task[None]] = set()
        self._now_s = now_s
        self.record = record
        self.on_failure: Callable[[Failure], None] | None = None
        self.shadow: Engine | None = None
        self.last_known_good_s = last_known_good_s
        self.hits = 0
        self.misses = 0
        self.bridged = 0
        self.shadow_failures = 0

    @property
    def revision(self) -> str:
        """The revision that decides now."""
        return self._serving.engine.revision

    @property
    def engine(self) -> Engine:
        """The engine that decides now."""
        return self._serving.engine

    @property
    def cached_decisions(self) -> int:
        """How many decisions are cached."""
        return len(self._serving.cache)

    def decisions(self) -> list[Decision]:
        """The newest decision that is known for each input of those made under the revision that decides now."""
        before, serving = self._before, self._serving
        earlier = before.by_input.items() if before.revision == serving.revision else ()
        return [*(known for given, known in earlier if given not in serving.cache), *serving.cache.values()]

    def cached(self, given: PolicyInput) -> Decision | None:
        """The decision that is known to be in force for one input; None where the engine has to be asked."""
        serving = self._serving
        decision = serving.cache.get(given)
        if decision is None or serving.engine.away_since_s is not None:
            return None
        if serving.engine.revision != serving.revision:
            return None
        self.hits += 1
        return decision

    async def decide(self, given: PolicyInput) -> Decision:
        """The decision for one input; raises PolicyUnavailable where none could be made, and the caller must deny."""
        while True:
            decision = self.cached(given)
            if decision is not None:
                return decision
            serving = self._current()
            flight = serving.flights.get(given)
            found = await (self._fly(serving, given) if flight is None else asyncio.shield(flight))
            if isinstance(found, Decision):
                return found
            if isinstance(found, EngineAway):
                return self._bridge(given, found)
            if found is not None:
                raise self._unavailable(found, ADMISSION, given.document()) from found

    async def ask(self, entry: str, document: Document) -> Decision:
        """What another entry point decides; raises PolicyUnavailable where it decides nothing. It is not cached."""
        serving = self._current()
        try:
            decision = await _evaluated(serving.engine, entry, canonical(document))
        except EvaluationError as failed:
            raise self._unavailable(failed, entry, document) from failed
        if self.record is not None:
            self.record(Recorded(decision, entry))
        return decision

    def swap(self, engine: Engine) -> Engine:
        """Put another engine in place and return the old one, for its owner to close; decisions under way end under it.

        What was decided before is in force no more; of the same revision it may still bridge.
        """
        old = self._serving.engine
        self._begin(engine, engine.revision)
        if self._before.revision != self._serving.revision:
            self._before = self._nothing("")
        return old

    def forget(self) -> None:
        """Decide everything anew; what was decided before may still bridge."""
        self._begin(self._serving.engine, self._serving.revision)

    def _current(self) -> _Serving:
        """What serves now; an engine whose bundle has changed begins with nothing decided."""
        serving = self._serving
        revision = serving.engine.revision
        if revision != serving.revision:
            self._changed_at_s = self._now_s()
            self._begin(serving.engine, revision)
        return self._serving

    def _begin(self, engine: Engine, revision: str) -> None:
        """Let an engine serve with nothing decided; what was decided joins what the same revision decided before."""
        decided = self._serving.decided
        if self._before.revision == decided.revision:
            for given, decision in decided.by_input.items():
                self._before.keep(given, decision)
        else:
            self._before = decided
        self._serving = _Serving(engine, self._nothing(revision))

    def _nothing(self, revision: str) -> _Decided:
        return _Decided(revision, self._cache_max, self._cache_bytes_max)

    async def _fly(self, serving: _Serving, given: PolicyInput) -> Decision | EvaluationError:
        """Ask the engine, for all who want to know meanwhile."""
        flight = serving.flights[given] = asyncio.get_running_loop().create_future()
        found: Decision | EvaluationError | None = None
        try:
            found = await self._decide_anew(serving, given)
        except EvaluationError as failed:
            found = failed
        finally:
            del serving.flights[given]
            flight.set_result(found)
        return found

    async def _decide_anew(self, serving: _Serving, given: PolicyInput) -> Decision:
        self.misses += 1
        decision = await _evaluated(serving.engine, ADMISSION, canonical(given.document()))
        if self.record is not None:
            self.record(Recorded(decision))
        if decision.revision != serving.revision:
            # The bundle changed while it was asked, or had not been heard of: what serves is made anew of that.
            serving = self._current()
        if decision.revision == serving.revision:
            serving.decided.keep(given, decision)
        if self.shadow is not None:
            self._cast_shadow(self.shadow, decision)
        return decision

    def _bridge(self, given: PolicyInput, away: EngineAway) -> Decision:
        """What was decided before the engine went away, marked as such, as long as that may serve."""
        serving, now_s = self._serving, self._now_s()
        since_s = serving.engine.away_since_s
        known = serving.cache.get(given) or self._before.by_input.get(given)
        if known is not None and known.revision != serving.revision:
            # What another bundle has taken back long ago must not come back with an outage.
            since_s = None if since_s is None else min(since_s, self._changed_at_s)
        if known is None or since_s is None or now_s - since_s >= self.last_known_good_s:
            raise self._unavailable(away, ADMISSION, given.document()) from away
        self.bridged += 1
        return replace(known, is_last_known_good=True)

    def _cast_shadow(self, shadow: Engine, decision: Decision) -> None:
        if len(self._shadowing) >= SHADOWED_MAX:
            self._unshadowed(f"{SHADOWED_MAX} evaluations of the shadow are under way", decision)
            return
        task = asyncio.get_running_loop().create_task(self._decide_in_shadow(shadow, decision))
        self._shadowing.add(task)
        task.add_done_callback(lambda done: self._shadowed(done, decision))

    async def _decide_in_shadow(self, shadow: Engine, decision: Decision) -> None:
        other = await _evaluated(shadow, ADMISSION, decision.input_json)
        if self.record is not None:
            self.record(Recorded(replace(other, decision_id=decision.decision_id), is_shadow=True))

    def _shadowed(self, task: "asyncio.Task[None]", decision: Decision) -> None:
        self._shadowing.discard(task)
        failed = None if task.cancelled() else task.exception()
        if failed is not None:
            self._unshadowed(_reason(failed), decision)

    def _unshadowed(self, reason: str, decision: Decision) -> None:
        """What goes wrong with a shadow is counted and told, and reaches no request."""
        self.shadow_failures += 1
        if self.on_failure is not None:
            self.on_failure(Failure(reason, ADMISSION, decision.input_json, is_shadow=True))

    def _unavailable(self, failed: EvaluationError, entry: str, document: Document) -> PolicyUnavailable:
        if self.on_failure is not None:
            self.on_failure(Failure(_reason(failed), entry, _json_of(document)))
        return PolicyUnavailable(_reason(failed), AWAY if isinstance(failed, EngineAway) else str(failed))


async def _evaluated(engine: Engine, entry: str, input_json: bytes) -> Decision:
    answer = await engine.evaluate(entry, input_json)
    allow, reasons, obligations = parse(answer.value)
    return Decision(
        decision_id=uuid7(),
        allow=allow,
        reasons=reasons,
        obligations=obligations,
        revision=answer.revision,
        input_digest=hashlib.sha256(input_json).hexdigest(),
        input_json=input_json,
        engine_decision_id=answer.engine_decision_id,
    )


def _reason(failed: BaseException) -> str:
    return f"{type(failed).__name__}: {failed}"


def _json_of(document: Document) -> bytes:
    try:
        return canonical(document)
    except EvaluationError:
        return b""
