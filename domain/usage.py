"""Usage: what one request consumed, and how surely that is known."""

from typing import Literal, NamedTuple

Certainty = Literal["exact", "at_least", "at_most"]
CERTAINTIES: tuple[Certainty, ...] = ("exact", "at_least", "at_most")


class Usage(NamedTuple):
    """Consumption of one request: tokens, accelerator microseconds, KV-block microseconds and microjoules.

    `cached_input_tokens` and `cache_write_tokens` are parts of `input_tokens`; `reasoning_tokens` is part of
    `output_tokens`.
    """

    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    gpu_us: int = 0
    kv_block_us: int = 0
    energy_uj: int = 0
    queue_us: int = 0
    certainty: Certainty = "exact"


NOTHING = Usage()
