"""The simulator's batches are vLLM's: the same tokens for the same requests in the same steps, preemptions included."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from runtime.sim.config import EngineConfig
from runtime.sim.engine import Engine
from runtime.sim.hashing import chain_hashes, root_hash
from runtime.sim.request import SimRequest
from tests.e2e.vllm_environment import MODEL, PYTHON

SCENARIOS = 100
ALIKE_MIN = 0.95
TIMEOUT_S = 300
SCRIPT = Path(__file__).with_name("vllm_schedules.py")


def vllm_schedules(*options: str) -> list[dict[str, Any]]:
    """What vLLM's scheduler did with each scenario."""
    command = [str(PYTHON), str(SCRIPT), str(MODEL), str(SCENARIOS), *options]
    done = subprocess.run(
        command, env={**os.environ, "VLLM_LOGGING_LEVEL": "ERROR"}, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    lines = [line.removeprefix("SCHEDULE ") for line in done.stdout.splitlines() if line.startswith("SCHEDULE ")]
    return [json.loads(line) for line in lines]


def simulated(asked: dict[str, Any], *, ahead: bool) -> tuple[list[dict[str, int]], dict[str, int]]:
    """What the simulator's engine does with it: tokens by request in each step, and preemptions by request."""
    config = EngineConfig(**asked["knobs"], async_scheduling=ahead)
    engine = Engine(config)
    coming = list(enumerate(asked["requests"]))
    steps: list[dict[str, int]] = []
    preemptions: dict[str, int] = {}
    done = 0
    while coming or engine.has_work:
        if not engine.has_work:
            done = max(done, coming[0][1][0])
        while coming and coming[0][1][0] <= done:
            index, (_, prompt, output, priority) = coming.pop(0)
            hashes = chain_hashes(root_hash(""), prompt + output, config.block_size)
            engine.submit(SimRequest(str(index), len(prompt), len(output), hashes, priority=priority))
        step = engine.step(engine.busy_until_us)
        done += 1
        tokens = {str(job.request.request_id): 1 for job in step.emitting}
        steps.append(tokens | {str(job.request.request_id): take for job, take in step.chunks})
        preemptions |= {str(job.request.request_id): job.preemptions for job in step.finished}
    return steps, preemptions


@pytest.mark.timeout(TIMEOUT_S + 60)
@pytest.mark.parametrize("ahead", [False, True])
def test_batches_are_those_of_vllms_own_scheduler(ahead: bool) -> None:
    """All of them without the prefix cache; with it nearly all, for vLLM keeps two blocks of the same content."""
    alike = {True: 0, False: 0}
    asked = vllm_schedules(*(["ahead"] if ahead else []))
    for one in asked:
        is_alike = simulated(one, ahead=ahead) == (one["steps"], one["preemptions"])
        is_cached = one["knobs"]["enable_prefix_caching"]
        assert is_alike or is_cached, one["seed"]
        alike[is_cached] += is_alike
    assert len(asked) == SCENARIOS
    assert sum(sum(one["preemptions"].values()) for one in asked) > SCENARIOS
    cached = sum(one["knobs"]["enable_prefix_caching"] for one in asked)
    assert alike[True] >= ALIKE_MIN * cached, f"{alike[True]} of {cached}"
