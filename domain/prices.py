"""Prices: what tokens cost by the price table, and what accelerator time costs by the runtime's rate."""

from dataclasses import dataclass

from domain.amounts import MILLION, ceil_div
from domain.usage import Usage

US_PER_HOUR = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Prices:
    """List prices of one model in nano-USD per million tokens; `version` names the dated row they came from."""

    version: str
    input_nusd_per_mtok: int = 0
    cached_input_nusd_per_mtok: int = 0
    output_nusd_per_mtok: int = 0

    def list_cost_nusd(self, usage: Usage) -> int:
        """The list cost of a finished request, rounded up once over the whole."""
        fresh = usage.input_tokens - usage.cached_input_tokens
        total = (
            fresh * self.input_nusd_per_mtok
            + usage.cached_input_tokens * self.cached_input_nusd_per_mtok
            + usage.output_tokens * self.output_nusd_per_mtok
        )
        return ceil_div(total, MILLION)

    def saved_cost_nusd(self, usage: Usage) -> int:
        """What the cache hits of a request saved against the full input price, rounded down."""
        saved = usage.cached_input_tokens * (self.input_nusd_per_mtok - self.cached_input_nusd_per_mtok)
        return max(0, saved // MILLION)

    def input_bound_nusd_per_mtok(self) -> int:
        """The dearest way one input token can be billed, which a hold must assume."""
        return max(self.input_nusd_per_mtok, self.cached_input_nusd_per_mtok)


@dataclass(frozen=True, slots=True)
class GpuRate:
    """What a runtime's accelerator time costs and how much of it tokens take, both declared by its owner.

    The two coefficients are accelerator microseconds per million tokens; they estimate what attribution measures.
    """

    nusd_per_hour: int = 0
    input_us_per_mtok: int = 0
    output_us_per_mtok: int = 0

    def gpu_us(self, input_tokens: int, output_tokens: int) -> int:
        """Estimated accelerator time of that many computed input and output tokens, rounded up."""
        return ceil_div(input_tokens * self.input_us_per_mtok + output_tokens * self.output_us_per_mtok, MILLION)

    def gpu_cost_nusd(self, gpu_us: int) -> int:
        """What that accelerator time costs at the runtime's rate, rounded up."""
        return ceil_div(gpu_us * self.nusd_per_hour, US_PER_HOUR)
