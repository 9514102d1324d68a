"""How long one engine step takes: the model that calibration fits, the simulator runs and attribution weighs by."""

from dataclasses import dataclass
from typing import NamedTuple


class StepWork(NamedTuple):
    """What one step computes.

    `prefill_context` is the sum over prefill chunks of tokens x (context before the chunk + half the chunk), in
    token pairs; `decode_context` the sum of the contexts (in tokens) that decoding requests read.
    """

    prefill_requests: int = 0
    prefill_tokens: int = 0
    prefill_context: int = 0
    decode_requests: int = 0
    decode_context: int = 0


def prefill_pairs(tokens: int, context: int) -> int:
    """The token pairs of one prefill chunk of `tokens` after `context`: its part of `prefill_context`."""
    return tokens * context + tokens * tokens // 2


@dataclass(frozen=True, slots=True)
class StepTime:
    """A linear model of a step's duration, in the manner of BLIS: a base, and a price for each unit of work.

    The defaults are worked out, not measured, for an 8-billion-parameter model with grouped-query attention on one
    accelerator of 400 effective TFLOP/s and 2.5 TB/s: reading 16 GB of weights takes 6.4 ms, 16 GFLOP of prefill
    40 us a token, 128 KiB of KV 52 ns a token; 20 us per sequence is a guess at sampling and output.
    """

    base_us: int = 6_400
    prefill_request_ns: int = 0
    prefill_token_ns: int = 40_000
    prefill_context_ps: int = 0
    decode_request_ns: int = 20_000
    decode_context_ps: int = 52_000

    def __post_init__(self) -> None:
        if self.base_us < 1:
            raise ValueError("base_us must be at least 1: a step that takes no time would never let the clock advance")
        if min(self.variable_ps()) < 0:
            raise ValueError("step-time coefficients cannot be negative")

    def variable_ps(self) -> tuple[int, int, int, int, int]:
        """The prices of the fields of StepWork, in their order, in picoseconds a unit."""
        return (
            self.prefill_request_ns * 1_000,
            self.prefill_token_ns * 1_000,
            self.prefill_context_ps,
            self.decode_request_ns * 1_000,
            self.decode_context_ps,
        )

    def duration_us(self, work: StepWork) -> int:
        """The duration of a step in microseconds, its variable part rounded up."""
        requests_ps, tokens_ps, context_ps, decode_ps, decode_context_ps = self.variable_ps()
        variable_ps = (
            work.prefill_requests * requests_ps
            + work.prefill_tokens * tokens_ps
            + work.prefill_context * context_ps
            + work.decode_requests * decode_ps
            + work.decode_context * decode_context_ps
        )
        return self.base_us - (-variable_ps // 1_000_000)

    def decode_duration_us(self, requests: int, context: int) -> int:
        """The duration of a step that only decodes: as `duration_us`."""
        return self.base_us - (
            -(requests * self.decode_request_ns * 1_000 + context * self.decode_context_ps) // 1_000_000
        )
