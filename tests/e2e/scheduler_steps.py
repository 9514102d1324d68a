"""Drives vLLM's own scheduler without a model, plain or metered, one step or two at a time; runs in `.venv-vllm`.

`scheduler_steps.py MODEL ahead|stepwise drive` prints as JSON what it scheduled, to compare with the telemetry;
`… cost` prints the microseconds of processor time that one step costs each kind of scheduler.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter, deque
from random import Random
from typing import Any

import torch
from bursar_vllm.scheduler import MeteredScheduler
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

BLOCK = 16
STEPS_OF_COST = 2_000


def config_of(model: str, ahead: bool, blocks: int, seats: int) -> Any:
    """A configuration whose scheduling is ahead of the engine or not, as a CPU's never is."""
    arguments = EngineArgs(model=model, max_model_len=4096, max_num_seqs=seats, block_size=BLOCK, enforce_eager=True)
    arguments.max_num_batched_tokens = 512
    config = arguments.create_engine_config()
    config.scheduler_config.async_scheduling = ahead
    config.cache_config.num_gpu_blocks = blocks
    return config


def scheduler_of(kind: Any, config: Any) -> Any:
    """A scheduler over one group of layers."""
    spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
    caches = KVCacheConfig(config.cache_config.num_gpu_blocks, [], [KVCacheGroupSpec(["layer"], spec)])
    return kind(
        vllm_config=config,
        kv_cache_config=caches,
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
        log_stats=True,
    )


def request_of(number: int, prompt: list[int], tokens: int) -> Request:
    """A request that answers with so many tokens, named as vLLM's front end names one."""
    return Request(
        request_id=f"chatcmpl-R{number}-0123abcd",
        prompt_token_ids=prompt,
        sampling_params=SamplingParams(max_tokens=tokens, ignore_eos=True),
        pooling_params=None,
        block_hasher=get_request_block_hasher(BLOCK, sha256),
    )


class Engine:
    """The engine core's loop around a scheduler, with a model that computes nothing."""

    def __init__(self, scheduler: Any, ahead: bool) -> None:
        self.scheduler = scheduler
        self.batches_max = 2 if ahead else 1
        self.on_their_way: deque[Any] = deque()
        self.computed: Counter[str] = Counter()
        self.steps = 0

    def step(self, between: Any = None) -> None:
        """Schedule as far ahead as may be, then take in the oldest batch."""
        while len(self.on_their_way) < self.batches_max and self.scheduler.has_requests():
            output = self.scheduler.schedule()
            self.on_their_way.append(output)
            self.computed.update(output.num_scheduled_tokens)
            if not output.total_num_scheduled_tokens:
                break
        if not self.on_their_way:
            return
        if between is not None:
            between()
        output = self.on_their_way.popleft()
        self.steps += bool(output.total_num_scheduled_tokens)
        self.scheduler.update_from_output(output, self._result(output))

    def _result(self, output: Any) -> ModelRunnerOutput:
        ids = list(output.num_scheduled_tokens)
        requests = self.scheduler.requests
        sampled = [[] if request is None or self._is_in_prompt(request) else [7] for request in map(requests.get, ids)]
        return ModelRunnerOutput(ids, {each: index for index, each in enumerate(ids)}, sampled)

    def _is_in_prompt(self, request: Request) -> bool:
        """Whether the batch taken in now leaves some of the prompt; later ones on their way count as computed."""
        later = sum(batch.num_scheduled_tokens.get(request.request_id, 0) for batch in self.on_their_way)
        return bool(request.num_computed_tokens - later < request.num_tokens)


def drive(model: str, ahead: bool) -> dict[str, Any]:
    """A seeded mix of prompts that share beginnings, preemptions for want of blocks, and aborts in mid-step."""
    random = Random(5)
    engine = Engine(scheduler_of(MeteredScheduler, config_of(model, ahead, blocks=48, seats=8)), ahead)
    head = [random.randrange(1000) for _ in range(70)]
    names = []
    for number in range(60):
        own = [random.randrange(1000) for _ in range(random.randrange(1, 200))]
        request = request_of(number, head[: random.randrange(70)] + own, random.randrange(1, 60))
        names.append(request.request_id)
        engine.scheduler.add_request(request)
        for _ in range(random.randrange(8)):
            engine.step(lambda: abort_one(engine.scheduler, names, random))
    engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    while engine.scheduler.has_requests() or engine.on_their_way:
        engine.step()
    engine.scheduler.shutdown()
    return {"computed": engine.computed, "steps": engine.steps}


def abort_one(scheduler: Any, names: list[str], random: Random) -> None:
    """Now and then a client leaves while its step computes."""
    if random.random() < 0.05:
        scheduler.finish_requests(random.choice(names), RequestStatus.FINISHED_ABORTED)


def cost_us(model: str, ahead: bool, kind: Any, seats: int) -> float:
    """The processor time of a step with every seat decoding."""
    engine = Engine(scheduler_of(kind, config_of(model, ahead, blocks=seats * 256, seats=seats)), ahead)
    for number in range(seats):
        engine.scheduler.add_request(request_of(number, [number] * 8, 4000))
    for _ in range(50):
        engine.step()
    began_s = time.process_time()
    for _ in range(STEPS_OF_COST):
        engine.step()
    return (time.process_time() - began_s) / STEPS_OF_COST * 1e6


def main() -> int:
    """Do what the command line asks."""
    model, ahead, task = sys.argv[1], sys.argv[2] == "ahead", sys.argv[3]
    init_none_hash(sha256)
    if task == "drive":
        sys.stdout.write(json.dumps(drive(model, ahead)) + "\n")
        return 0
    plain = AsyncScheduler if ahead else Scheduler
    telemetry = os.environ.pop("BURSAR_TELEMETRY")
    for seats in (16, 256):
        costs = []
        for _ in range(3):
            os.environ.pop("BURSAR_TELEMETRY", None)
            without = cost_us(model, ahead, plain, seats)
            os.environ["BURSAR_TELEMETRY"] = telemetry
            costs.append((without, cost_us(model, ahead, MeteredScheduler, seats)))
        without, metered = (min(column) for column in zip(*costs, strict=True))
        sys.stdout.write(json.dumps({"seats": seats, "plain_us": without, "metered_us": metered}) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
