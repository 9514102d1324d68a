"""The catalogue: which models are offered, what they cost and which runtimes serve them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from domain.intent import Intent
from domain.prices import Prices
from gateway.affinity import Affinity
from gateway.bounds import Measure
from runtime.client import RuntimeClient
from runtime.routing.port import RoutingPolicy


@dataclass(frozen=True, slots=True)
class Offer:
    """One model as offered; `prices_at` gives the prices in force at a Unix second.

    With several runtimes `routing` chooses among them, for what `affinity` says the request begins with.
    """

    model: str
    upstream_model: str
    endpoints: frozenset[str]
    runtimes: tuple[RuntimeClient, ...]
    measure: Measure
    max_output_tokens: int
    prices_at: Callable[[int], Prices]
    routing: RoutingPolicy | None = None
    affinity: Affinity | None = None

    def pick_runtime(self, intent: Intent, body: dict[str, Any] | None) -> RuntimeClient | None:
        """The healthy runtime that is to serve a request, or None when none is healthy."""
        if self.routing is None:
            return next((client for client in self.runtimes if client.is_healthy), None)
        loads = [client.in_flight if client.is_healthy else -1 for client in self.runtimes]
        prefix = () if self.affinity is None or body is None else self.affinity.prefix(intent, body)
        chosen = self.routing.choose(loads, prefix)
        return None if chosen < 0 else self.runtimes[chosen]

    def output_cap(self, asked: int | None, input_bound: int) -> int:
        """The output cap per choice: what was asked, else the model's own default within what the context leaves.

        The input bound may be far above the input, so a default never falls under a quarter of the context.
        """
        if asked is not None:
            return asked
        context = self.measure.context_tokens
        return min(self.max_output_tokens, max(context - input_bound, context // 4))


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Every offer by model, and every runtime by id, of one configuration revision."""

    offers: Mapping[str, Offer]
    runtimes: Mapping[str, RuntimeClient]
    env_name: str
    freeze: bool
