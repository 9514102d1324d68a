"""Bursar's eviction policies decide over what a real vLLM offloads."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

from tests.e2e.vllm_environment import MODEL, PYTHON, ROOT

OPERATIONS = ROOT / "tests" / "e2e" / "offload_operations.py"
GENERATION = ROOT / "tests" / "e2e" / "offloaded_generation.py"
POLICIES = ("BursarLru", "BursarArc", "BursarReuse")


def run(*command: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    """A script in vLLM's environment."""
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        [str(PYTHON), *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode == 0) is (status == 0), done.stderr[-3000:]
    return done


def told(*command: object) -> Any:
    """What such a script prints last."""
    return json.loads(run(*command).stdout.splitlines()[-1])


def test_least_recent_use_is_vllms_own() -> None:
    """Of 1,500 requests, one after the other, each finds, stores and pushes out the same as under vLLM's `lru`."""
    ours, theirs = (told(OPERATIONS, "one-by-one", policy) for policy in ("BursarLru", "lru"))
    assert sum(len(evicted) for _, _, evicted in theirs) > 1000
    assert ours == theirs


@pytest.mark.parametrize("policy", POLICIES)
def test_with_several_under_way_nothing_pinned_is_given_up(policy: str) -> None:
    """The script asserts it of each eviction, while transfers end late, in any order, or fail."""
    counts = told(OPERATIONS, "at-once", policy)
    assert min(counts["loaded"], counts["stored"], counts["evicted"]) > 1000


def test_an_engine_that_offloads_under_a_policy_generates_the_same_and_finds_more() -> None:
    """Twelve users of a vLLM with room for little more than one of their conversations, with and without offloading."""
    without, offloading = told(GENERATION, MODEL, "none"), told(GENERATION, MODEL, "BursarReuse")
    assert offloading["generated"] == without["generated"]
    assert offloading["cached"] > 1.5 * without["cached"]
    assert offloading["counts"]["BursarReuse"] > 0, "loads were made under this policy"
    assert min(offloading["counts"]["loaded"], offloading["counts"]["evicted"]) > 0


def test_vllms_own_worker_refuses_a_cpu() -> None:
    """The only part of the offloading that cannot run here is what copies; the day it can, use that one."""
    refused = run(GENERATION, MODEL, "refused", status=1)
    assert "CPU Offloading is currently only supported on CUDA-alike and XPU GPUs" in refused.stderr
