"""The knobs that the tests change a vLLM to."""

from __future__ import annotations

# So few blocks that requests preempt one another: 39 usable ones hold 1,248 tokens.
TINY_CACHE = {
    "max_num_seqs": 8,
    "max_num_batched_tokens": 256,
    "max_model_len": 1024,
    "num_gpu_blocks_override": 40,
}
