"""How long one engine step takes."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepTime:
    """A linear model of a step's duration, in the manner of BLIS.

    duration = base + prefill_token x prefill tokens + decode_sequence x decoding sequences + kv_token x KV tokens read

    The defaults are worked out, not measured, for an 8-billion-parameter model with grouped-query attention on one
    accelerator of 400 effective TFLOP/s and 2.5 TB/s: reading 16 GB of weights takes 6.4 ms, 16 GFLOP of prefill
    40 us a token, 128 KiB of KV 52 ns a token; 20 us per sequence is a guess at sampling and output.
    """

    base_us: int = 6_400
    prefill_token_ns: int = 40_000
    decode_sequence_ns: int = 20_000
    kv_token_ns: int = 52

    def __post_init__(self) -> None:
        if self.base_us < 1:
            raise ValueError("base_us must be at least 1: a step that takes no time would never let the clock advance")
        if min(self.prefill_token_ns, self.decode_sequence_ns, self.kv_token_ns) < 0:
            raise ValueError("step-time coefficients cannot be negative")

    def duration_us(self, prefill_tokens: int, decode_sequences: int, kv_tokens: int) -> int:
        """The duration of a step in microseconds, rounded up."""
        variable_ns = (
            self.prefill_token_ns * prefill_tokens
            + self.decode_sequence_ns * decode_sequences
            + self.kv_token_ns * kv_tokens
        )
        return self.base_us - (-variable_ns // 1000)
