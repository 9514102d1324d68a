"""What vLLM's own scheduler does with random requests, without a model: run in `.venv-vllm`, a JSON line a scenario.

`python vllm_schedules.py MODEL COUNT [ahead]`; with `ahead` as `step_with_batch_queue` does with two.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from random import Random
from typing import Any

import torch
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

MAX_MODEL_LEN = 64
STEPS_MAX = 5_000


def scenario(seed: int) -> dict[str, Any]:
    """Knobs, and requests as [step of arrival, prompt, output, priority]."""
    random = Random(seed)
    block_size = random.choice([2, 4, 8])
    knobs = {
        "block_size": block_size,
        "num_blocks": MAX_MODEL_LEN // block_size + random.choice([0, 1, 3, 10, 40]),
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": random.choice([1, 2, 5, 12]),
        "max_num_batched_tokens": random.choice([12, 20, 64]),
        "long_prefill_token_threshold": random.choice([0, 0, 5, 16]),
        "watermark": random.choice([0.0, 0.0, 0.15]),
        "scheduler_reserve_full_isl": random.random() < 0.5,
        "scheduling_policy": random.choice(["fcfs", "priority"]),
        "enable_prefix_caching": random.random() < 0.6,
    }
    requests, at_step = [], 0
    for index in range(random.randint(1, 25)):
        at_step += random.choice([0, 0, 1, 3, 15])
        length, output, family = random.randint(1, 44), random.randint(1, 20), random.randrange(4)
        shared = random.randint(0, length)
        prompt = [1 + family] * shared + [10 + index] * (length - shared)
        requests.append(
            (at_step, prompt, [500 + (index * 37 + at) % 400 for at in range(output)], random.randint(0, 2))
        )
    return {"seed": seed, "knobs": knobs, "requests": requests}


def scheduler_of(model: ModelConfig, knobs: dict[str, Any], *, ahead: bool) -> Scheduler:
    """vLLM's scheduler with these knobs; on a CPU it would not schedule ahead, which here needs no device."""
    scheduling = SchedulerConfig(
        max_num_seqs=knobs["max_num_seqs"],
        max_num_batched_tokens=knobs["max_num_batched_tokens"],
        max_model_len=MAX_MODEL_LEN,
        long_prefill_token_threshold=knobs["long_prefill_token_threshold"],
        enable_chunked_prefill=True,
        is_encoder_decoder=False,
        watermark=knobs["watermark"],
        scheduler_reserve_full_isl=knobs["scheduler_reserve_full_isl"],
        policy=knobs["scheduling_policy"],
    )
    cache = CacheConfig(block_size=knobs["block_size"], enable_prefix_caching=knobs["enable_prefix_caching"])
    config = VllmConfig(model_config=model, scheduler_config=scheduling, cache_config=cache)
    scheduling.async_scheduling = ahead
    cache.num_gpu_blocks = knobs["num_blocks"] + 1  # one is vLLM's null block
    spec = FullAttentionSpec(block_size=knobs["block_size"], num_kv_heads=1, head_size=1, dtype=torch.float32)
    blocks = KVCacheConfig(
        num_blocks=cache.num_gpu_blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
    )
    made = AsyncScheduler if ahead else Scheduler
    return made(
        vllm_config=config,
        kv_cache_config=blocks,
        structured_output_manager=StructuredOutputManager(config),
        block_size=knobs["block_size"],
        log_stats=True,
    )


class Engine:
    """Steps the scheduler, with tokens that are known in advance in the model's place."""

    def __init__(self, model: ModelConfig, asked: dict[str, Any], *, ahead: bool) -> None:
        self.steps: list[dict[int, int]] = []
        self._scheduler = scheduler_of(model, asked["knobs"], ahead=ahead)
        self._hasher = get_request_block_hasher(asked["knobs"]["block_size"], sha256)
        self._coming = list(enumerate(asked["requests"]))
        self._outputs: dict[str, list[int]] = {}
        self._requests: dict[str, Request] = {}
        self._emitted: dict[str, int] = defaultdict(int)
        self._batches: list[tuple[Any, set[str]]] = []
        self._depth = 2 if ahead else 1
        self._done = 0

    def run(self) -> dict[int, int]:
        """All of it; returns how often each request was preempted."""
        while self._coming or self._scheduler.has_unfinished_requests() or self._batches:
            assert len(self.steps) < STEPS_MAX
            self._arrive()
            if not self._scheduler.has_unfinished_requests() and not self._batches:
                self._done = self._coming[0][1][0]
                continue
            if self._scheduler.has_unfinished_requests() and self._schedule() and len(self._batches) < self._depth:
                continue
            if self._batches:
                self._update(*self._batches.pop(0))
                self._done += 1
        return {int(name): request.num_preemptions for name, request in self._requests.items()}

    def _arrive(self) -> None:
        while self._coming and self._coming[0][1][0] <= self._done:
            index, (_, prompt, output, priority) = self._coming.pop(0)
            name = f"{index:04d}"
            self._outputs[name] = output
            self._requests[name] = Request(
                request_id=name,
                prompt_token_ids=prompt,
                sampling_params=SamplingParams(max_tokens=len(output), ignore_eos=True),
                pooling_params=None,
                block_hasher=self._hasher,
                priority=priority,
                arrival_time=float(index),
            )
            self._scheduler.add_request(self._requests[name])

    def _schedule(self) -> bool:
        batch = self._scheduler.schedule()
        chunks = batch.num_scheduled_tokens
        emitting = {
            name for name in chunks if self._requests[name].num_computed_tokens >= self._requests[name].num_tokens
        }
        if chunks:
            self.steps.append({int(name): tokens for name, tokens in chunks.items()})
            self._batches.append((batch, emitting))
        elif not self._batches:
            self._update(batch, emitting)
        return bool(chunks)

    def _update(self, batch: Any, emitting: set[str]) -> None:
        names = list(batch.num_scheduled_tokens)
        tokens = []
        for name in names:
            tokens.append([self._outputs[name][self._emitted[name]]] if name in emitting else [])
            self._emitted[name] += name in emitting
        output = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: at for at, name in enumerate(names)},
            sampled_token_ids=tokens,
            logprobs=None,
            prompt_logprobs_dict={},
            pooler_output=[],
        )
        self._scheduler.update_from_output(batch, output)


def main(folder: str, count: str, *options: str) -> None:
    """Print the scenarios, and for each what was scheduled in each step, and how often each request gave way."""
    init_none_hash(sha256)
    model = ModelConfig(model=folder, dtype="float32", seed=0, max_model_len=MAX_MODEL_LEN)
    for seed in range(int(count)):
        asked = scenario(seed)
        engine = Engine(model, asked, ahead="ahead" in options)
        preemptions = engine.run()
        sys.stdout.write("SCHEDULE " + json.dumps({**asked, "steps": engine.steps, "preemptions": preemptions}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
