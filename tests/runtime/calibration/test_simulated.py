"""A calibration's deployment is the engine as it was, with the changes that go together and that are modelled."""

from __future__ import annotations

from dataclasses import replace

import pytest

from runtime.calibration.engine import CalibratedEngine
from runtime.calibration.simulated import MODELLED, deployment_of
from runtime.calibration.stored import Calibration
from runtime.vllm.catalogue import KNOBS
from runtime.vllm.couplings import KnobError
from tests.runtime.calibration.test_stored import MADE

TOLD = {
    "max_model_len": 1024,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 256,
    "scheduling_policy": "fcfs",
    "watermark": 0.01,
    "kv_cache_memory_bytes": 1 << 24,
    "async_scheduling": None,
    "dtype": "float32",
}


def calibration(knobs: dict[str, object] | None = None) -> Calibration:
    engine = CalibratedEngine("vllm 0.32.0", "m", 32, 255, 2, {**TOLD, **(knobs or {})}, "cpu")
    return replace(MADE, engine=engine)


def test_the_engine_is_simulated_as_it_was() -> None:
    made = deployment_of(calibration())
    assert (made.engine.block_size, made.engine.num_blocks) == (32, 255)
    assert (made.engine.max_model_len, made.engine.max_num_seqs, made.engine.max_num_batched_tokens) == (1024, 4, 256)
    assert (made.engine.scheduling_policy, made.engine.watermark) == ("fcfs", 0.01)
    assert not made.engine.async_scheduling
    assert (made.step_time, made.overhead, made.accelerators) == (MADE.step_time, MADE.overhead, 2)


def test_changes_are_taken_over() -> None:
    made = deployment_of(calibration(), {"max_num_seqs": 64, "enable_prefix_caching": False})
    assert (made.engine.max_num_seqs, made.engine.enable_prefix_caching) == (64, False)


@pytest.mark.parametrize(
    ("change", "size", "blocks"),
    [
        ({"num_gpu_blocks_override": 101}, 32, 100),
        ({"kv_cache_memory_bytes": 1 << 23}, 32, 127),
        ({"block_size": 64}, 64, 127),
        ({"block_size": 64, "kv_cache_memory_bytes": 1 << 25}, 64, 255),
    ],
)
def test_the_cache_has_as_many_blocks_as_vllm_would_give_it(change: dict[str, int], size: int, blocks: int) -> None:
    """One of vLLM's blocks is never used; blocks of another size hold the same tokens."""
    made = deployment_of(calibration(), change)
    assert (made.engine.block_size, made.engine.num_blocks) == (size, blocks)


def test_knobs_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(KnobError, match="max_num_batched_tokens"):
        deployment_of(calibration(), {"max_num_seqs": 300})
    with pytest.raises(KnobError, match="not one request of it would fit"):
        deployment_of(calibration({"watermark": 0.0}), {"num_gpu_blocks_override": 20})


def test_what_is_not_modelled_is_refused() -> None:
    with pytest.raises(KnobError, match="does not model dtype, stream_interval"):
        deployment_of(calibration(), {"dtype": "float16", "stream_interval": 4})


def test_memory_that_was_not_set_cannot_be_scaled() -> None:
    with pytest.raises(KnobError, match="set num_gpu_blocks_override"):
        deployment_of(calibration({"kv_cache_memory_bytes": None}), {"kv_cache_memory_bytes": 1 << 24})


def test_what_is_modelled_are_knobs_of_vllm() -> None:
    assert set(MODELLED) <= set(KNOBS)


def test_without_a_calibration_the_simulators_own_engine_is_taken() -> None:
    made = deployment_of(None, {"max_num_seqs": 7, "num_gpu_blocks_override": 4_001})
    assert (made.engine.max_num_seqs, made.engine.num_blocks) == (7, 4_000)


def test_without_a_calibration_knobs_are_judged_over_the_simulators_own() -> None:
    """The cache holds 99 blocks of 16 tokens, for one is vLLM's own; and what was not set is what the engine has."""
    with pytest.raises(
        KnobError, match=r"holds 1584 tokens.* 1600: .*num_gpu_blocks_override \(100\) counts one block"
    ):
        deployment_of(None, {"num_gpu_blocks_override": 100, "max_model_len": 1600})
    with pytest.raises(KnobError, match=r"max_num_batched_tokens \(8192\) must be at least max_model_len \(32768\)"):
        deployment_of(None, {"enable_chunked_prefill": False})
    assert deployment_of(None, {"num_gpu_blocks_override": 101, "max_model_len": 1600}).engine.num_blocks == 100


def test_without_a_calibration_memory_says_nothing_of_blocks() -> None:
    with pytest.raises(KnobError, match="set num_gpu_blocks_override"):
        deployment_of(None, {"kv_cache_memory_bytes": 1 << 24})


def test_a_knob_that_is_left_to_vllm_is_as_it_was() -> None:
    assert deployment_of(calibration(), {"max_num_seqs": None}).engine.max_num_seqs == 4
