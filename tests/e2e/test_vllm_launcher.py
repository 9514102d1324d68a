"""A real vLLM is started, described, changed, and put back on its last good knobs when the new ones kill it."""

from __future__ import annotations

import os
import signal
import time
from urllib.request import urlopen

import pytest

from runtime.vllm.control import VllmControl
from runtime.vllm.launcher import VllmServerError
from tests.e2e.vllm_changes import TINY_CACHE

pytestmark = pytest.mark.timeout(600)
# Passes every check that can be made without the model, and leaves room for less than one request.
TOO_LITTLE = {"kv_cache_memory_bytes": 1 << 20, "num_gpu_blocks_override": None}


def test_a_vllm_is_changed_by_a_restart_and_says_what_it_runs_on(vllm_control: VllmControl) -> None:
    applied = vllm_control.apply(TINY_CACHE)
    assert applied.outcome == "applied", applied
    # By this very call, or for the tests before these.
    assert vllm_control.happenings[-1].stage == "verified"
    description = vllm_control.describe()
    assert description.versions == {"vllm": "0.32.0"}
    assert (description.model, description.device) == ("tiny-qwen3", "cpu")
    assert {name: description.value(name) for name in TINY_CACHE} == TINY_CACHE
    blocks = TINY_CACHE["num_gpu_blocks_override"]
    assert description.capacity.num_blocks == blocks - 1
    assert description.capacity.cache_tokens == (blocks - 1) * 32
    assert description.capacity.model_len_tokens == TINY_CACHE["max_model_len"]
    assert description.telemetry.status == "on"
    assert [coupling for coupling in description.couplings if coupling.violated] == []
    assert {component.name for component in description.components} == {
        "front end",
        "scheduler",
        "kv cache",
        "executor",
    }


def test_a_set_that_contradicts_itself_is_refused_and_nothing_is_restarted(vllm_control: VllmControl) -> None:
    vllm_control.apply(TINY_CACHE)
    pid = vllm_control.pid
    applied = vllm_control.apply({"max_model_len": 1 << 15})
    assert (applied.outcome, vllm_control.pid) == ("refused", pid)
    assert "not one request of it would fit" in applied.reason


def test_a_set_that_kills_vllm_is_rolled_back_and_the_record_says_why(vllm_control: VllmControl) -> None:
    vllm_control.apply(TINY_CACHE)
    url = vllm_control.base_url
    applied = vllm_control.apply(TOO_LITTLE)
    assert applied.outcome == "rolled back", applied
    stages = [happening.stage for happening in applied.happenings]
    assert stages == ["drained", "stopped", "failed", "started", "verified", "rolled back"]
    assert "KV cache is needed" in applied.reason
    assert applied.knobs["kv_cache_memory_bytes"] == 1 << 30
    assert vllm_control.describe().value("num_gpu_blocks_override") == TINY_CACHE["num_gpu_blocks_override"]
    with urlopen(f"{url}/health", timeout=10) as response:  # noqa: S310 loopback
        assert response.status == 200, "it is where it was"


def test_an_engine_that_dies_is_noticed_and_revived(vllm_control: VllmControl) -> None:
    vllm_control.apply(TINY_CACHE)
    assert vllm_control.pid is not None
    os.kill(vllm_control.pid, signal.SIGKILL)
    deadline_s = time.monotonic() + 30
    while vllm_control.is_alive() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    with pytest.raises(VllmServerError, match="did not answer"):
        vllm_control.describe()
    assert vllm_control.happenings[-1].stage == "died"
    assert vllm_control.revive()
    assert vllm_control.describe().telemetry.status == "on"
