"""Decides requests: the cache of decisions in front of an engine, failing closed."""

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from domain.decision import Decision
from domain.ids import uuid7
from policy.bundle import load
from policy.child import try_out
from policy.decision import parse
from policy.embedded import EmbeddedEngine
from policy.port import ADMISSION, Engine, EvaluationError, PolicyInput, PolicyUnavailable, canonical

CACHE_MAX = 10_000


class _Serving(NamedTuple):
    """An engine and the decisions made under its revision; replaced together, never mixed."""

    engine: Engine
    cache: dict[PolicyInput, Decision]


class Decider:
    """Answers each distinct input once per bundle revision; a repeated one costs a dictionary lookup.

    Threads may share it. `on_new_decision` is called once per evaluation, before the decision is cached or returned;
    it must not call back, and what it raises reaches the caller and leaves nothing cached.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        cache_max: int = CACHE_MAX,
        on_new_decision: Callable[[Decision], None] | None = None,
    ) -> None:
        if cache_max < 1:
            raise ValueError("cache_max must be at least 1")
        self._serving = _Serving(engine, {})
        self._cache_max = cache_max
        self._turn = threading.Lock()
        self.on_new_decision = on_new_decision
        self.hits = 0
        self.misses = 0

    @property
    def revision(self) -> str:
        """The revision that decides now."""
        return self._serving.engine.revision

    @property
    def cached(self) -> int:
        """How many decisions are cached."""
        return len(self._serving.cache)

    def decide(self, given: PolicyInput) -> Decision:
        """The decision for one input; raises PolicyUnavailable where none could be made, and the caller must deny."""
        decision = self._serving.cache.get(given)
        if decision is None:
            return self._decide_anew(given)
        self.hits += 1
        return decision

    def swap(self, engine: Engine) -> None:
        """Puts another engine in place and forgets what the old one decided; decisions under way end under the old."""
        self._serving = _Serving(engine, {})

    def reload(self, root: Path | str) -> str:
        """Serves the bundle in a folder and returns its revision; one that cannot serve raises BundleError, and the
        last good one stays. Takes some 0.2 s, so not on an event loop."""
        engine = load_engine(root)
        if engine.revision != self.revision:
            self.swap(engine)
        return engine.revision

    def _decide_anew(self, given: PolicyInput) -> Decision:
        with self._turn:
            engine, cache = self._serving
            decision = cache.get(given)
            if decision is not None:
                self.hits += 1
                return decision
            self.misses += 1
            decision = _evaluate(engine, given)
            if self.on_new_decision is not None:
                self.on_new_decision(decision)
            while len(cache) >= self._cache_max:
                del cache[next(iter(cache))]
            cache[given] = decision
            return decision


def load_engine(root: Path | str) -> EmbeddedEngine:
    """The embedded engine over the bundle in a folder, once another process has survived it; raises BundleError."""
    bundle = load(root)
    try_out(bundle.modules, bundle.data, (ADMISSION,))
    return EmbeddedEngine(bundle)


def _evaluate(engine: Engine, given: PolicyInput) -> Decision:
    try:
        document = given.document()
        input_json = canonical(document)
        allow, reasons, obligations = parse(engine.evaluate(document))
    except EvaluationError as error:
        raise PolicyUnavailable(f"{type(error).__name__}: {error}") from error
    return Decision(
        decision_id=uuid7(),
        allow=allow,
        reasons=reasons,
        obligations=obligations,
        revision=engine.revision,
        input_digest=hashlib.sha256(input_json).hexdigest(),
        input_json=input_json,
    )
