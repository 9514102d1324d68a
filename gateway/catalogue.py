"""The catalogue: which models are offered, what they cost and which runtimes serve them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from domain.prices import Prices
from gateway.bounds import Measure
from runtime.client import RuntimeClient


@dataclass(frozen=True, slots=True)
class Offer:
    """One model as offered; `prices_at` gives the prices in force at a Unix second."""

    model: str
    upstream_model: str
    endpoints: frozenset[str]
    runtimes: tuple[RuntimeClient, ...]
    measure: Measure
    max_output_tokens: int
    prices_at: Callable[[int], Prices]

    def pick_runtime(self) -> RuntimeClient | None:
        """The healthy runtime with the fewest requests in flight, or None when none is healthy."""
        healthy = [client for client in self.runtimes if client.is_healthy]
        if len(healthy) < 2:
            return healthy[0] if healthy else None
        return min(healthy, key=lambda client: client.in_flight)

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
