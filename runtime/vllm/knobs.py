"""The settings with which Bursar starts a vLLM server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CPU_BLOCK_MULTIPLE = 32


@dataclass(frozen=True, slots=True)
class VllmKnobs:
    """What a vLLM server is told at start; the defaults suit a small model on two CPU cores that it shares.

    `omp_threads_bind` takes vLLM's own syntax: `nobind` leaves the threads to the operating system, which is right
    where other processes need the same cores; `0-1` pins them, which is right on cores of its own. A prompt longer than
    `max_num_batched_tokens` is prefilled in chunks. One server does one `task`: `generate` has no `/v1/embeddings`, and
    `embed` has nothing else. `dtype` is not `bfloat16` by default, for on a CPU with AMX vLLM 0.32 then dies of an
    illegal instruction when the first prompt it serves is short. Raises ValueError for what vLLM would refuse after a
    long start.
    """

    max_model_len_tokens: int = 4096
    max_num_seqs: int = 16
    max_num_batched_tokens: int = 2048
    block_size_tokens: int = 32
    kv_cache_gib: int = 1
    omp_threads: int = 1
    omp_threads_bind: str = "nobind"
    seed: int = 0
    scheduling_policy: Literal["fcfs", "priority"] = "priority"
    prefix_caching: bool = True
    per_request_metrics: bool = False
    task: Literal["generate", "embed"] = "generate"
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "float32"

    def __post_init__(self) -> None:
        counts = {
            "max_model_len_tokens": self.max_model_len_tokens,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "block_size_tokens": self.block_size_tokens,
            "kv_cache_gib": self.kv_cache_gib,
            "omp_threads": self.omp_threads,
        }
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if self.block_size_tokens % CPU_BLOCK_MULTIPLE:
            raise ValueError(
                f"block_size_tokens must be a multiple of {CPU_BLOCK_MULTIPLE} on CPU, not {self.block_size_tokens}"
            )
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError("max_num_batched_tokens must be at least max_num_seqs: a step gives each sequence a token")

    def argv(self) -> list[str]:
        """Return the server's options that say these settings."""
        options = [
            "--enforce-eager",
            *("--max-model-len", str(self.max_model_len_tokens)),
            *("--max-num-seqs", str(self.max_num_seqs)),
            *("--max-num-batched-tokens", str(self.max_num_batched_tokens)),
            *("--block-size", str(self.block_size_tokens)),
            *("--scheduling-policy", self.scheduling_policy),
            *("--seed", str(self.seed)),
            *("--dtype", self.dtype),
            "--enable-prefix-caching" if self.prefix_caching else "--no-enable-prefix-caching",
        ]
        if self.per_request_metrics:
            options.append("--enable-per-request-metrics")
        if self.task == "embed":
            options += ["--runner", "pooling", "--convert", "embed"]
        return options

    def environment(self) -> dict[str, str]:
        """Return the environment variables that say the settings vLLM takes no option for."""
        return {
            "VLLM_CPU_KVCACHE_SPACE": str(self.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": self.omp_threads_bind,
            "OMP_NUM_THREADS": str(self.omp_threads),
        }
