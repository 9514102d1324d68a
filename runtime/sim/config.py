"""The engine's knobs."""

from dataclasses import dataclass
from typing import Literal

_AT_LEAST_ONE = (
    "block_size",
    "num_blocks",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_waiting",
)


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The engine's knobs, under vLLM's names where it has them; raises ValueError where they do not fit together.

    `num_blocks` are those that requests can use: vLLM's `num_gpu_blocks` less its null block. `max_waiting` bounds the
    queue, as vLLM's `max_num_queued_reqs` does with those that run counted in. The policy is `priority` by default, as
    Bursar starts vLLM.
    """

    block_size: int = 16
    num_blocks: int = 16_384
    max_model_len: int = 32_768
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8_192
    max_waiting: int = 4_096
    long_prefill_token_threshold: int = 0
    watermark: float = 0.0
    scheduler_reserve_full_isl: bool = True
    enable_chunked_prefill: bool = True
    enable_prefix_caching: bool = True
    async_scheduling: bool = False
    scheduling_policy: Literal["fcfs", "priority"] = "priority"

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.long_prefill_token_threshold < 0:
            raise ValueError("long_prefill_token_threshold cannot be negative; 0 sets no threshold")
        if not 0 <= self.watermark < 1:
            raise ValueError("watermark must be at least 0 and below 1")
        if self.scheduling_policy not in {"fcfs", "priority"}:
            raise ValueError("scheduling_policy must be fcfs or priority")
        if self.num_blocks * self.block_size < self.max_model_len:
            raise ValueError("num_blocks x block_size must hold one request of max_model_len tokens")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError("max_num_batched_tokens must be at least max_num_seqs")
        if not self.enable_chunked_prefill and self.max_num_batched_tokens < self.max_model_len:
            raise ValueError("without enable_chunked_prefill, max_num_batched_tokens must be at least max_model_len")

    @property
    def watermark_blocks(self) -> int:
        """How many blocks an admission leaves free, unless nothing runs; vLLM counts its null block in."""
        return int(self.watermark * (self.num_blocks + 1))
