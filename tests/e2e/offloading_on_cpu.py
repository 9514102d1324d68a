"""A place for vLLM's CPU offloading to offload to where there is no accelerator; of `.venv-vllm`.

vLLM's own worker moves KV blocks with CUDA or XPU streams, and its spec refuses any other platform. This spec is
vLLM's, manager and all, with a worker that copies from one part of the same memory to another.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.kv_offload.base import CanonicalKVCaches, OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec


class CopyingWorker(OffloadingWorker):
    """Copies blocks at once, one block a chunk."""

    def __init__(self, kv_caches: CanonicalKVCaches, chunks: int) -> None:
        self._engine = [each.tensor for each in kv_caches.tensors]
        self._offloaded = [torch.empty((chunks, each.shape[1]), dtype=each.dtype) for each in self._engine]
        self._done: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        for engine, offloaded in zip(self._engine, self._offloaded, strict=True):
            offloaded[torch.as_tensor(dst_spec.block_ids)] = engine[torch.as_tensor(src_spec.block_ids)]
        return self._did(job_id)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        for engine, offloaded in zip(self._engine, self._offloaded, strict=True):
            engine[torch.as_tensor(dst_spec.block_ids)] = offloaded[torch.as_tensor(src_spec.block_ids)]
        return self._did(job_id)

    def get_finished(self) -> list[TransferResult]:
        done, self._done = self._done, []
        return done

    def wait(self, job_ids: set[int]) -> None:
        """Nothing to wait for."""

    def _did(self, job_id: int) -> bool:
        self._done.append(TransferResult(job_id=job_id, success=True))
        return True


class OffloadingOnCpu(CPUOffloadingSpec):
    """vLLM's spec, but for who copies."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        assert self.blocks_per_chunk == 1
        if self._worker is None:
            self._worker = CopyingWorker(kv_caches, self.num_chunks)
        return self._worker
