"""What the catalogue knows of vLLM's knobs, and which sets of them are refused with which reason."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.vllm.catalogue import KNOBS
from runtime.vllm.couplings import COUPLINGS, EngineFacts, KnobError, changes_outputs, check, require

CPU = EngineFacts(device="cpu")
GPU = EngineFacts(device="cuda")
ALONE = EngineFacts(device="cuda", tenants=False)
DRAFTS = '{"method": "%s", "num_speculative_tokens": 3}'


def reasons(facts: EngineFacts, **knobs: Any) -> str:
    """Every reason against a set, in one line."""
    return "; ".join(violation.reason for violation in check(knobs, facts))


def test_vllms_own_defaults_are_a_set_that_can_be_used() -> None:
    for facts in (CPU, GPU, ALONE):
        assert check({}, facts) == []
        assert check({name: knob.default for name, knob in KNOBS.items()}, facts) == []


@pytest.mark.parametrize("name", KNOBS)
def test_every_knob_says_what_it_is_for_and_couples_to_knobs_that_exist(name: str) -> None:
    knob = KNOBS[name]
    assert knob.name == name
    assert knob.why
    assert knob.couples == tuple(other for other in knob.couples if other in KNOBS and other != name)
    assert knob.objection(knob.default) is None
    assert bool(knob.choices) == (knob.kind == "choice")
    if knob.kind in ("integer", "number"):
        assert knob.low is not None
        assert knob.objection(knob.low) is None
        assert knob.high is None or knob.objection(knob.high) is None


def test_couplings_have_names_of_their_own_and_speak_of_knobs_that_exist() -> None:
    assert len({coupling.name for coupling in COUPLINGS}) == len(COUPLINGS)
    assert {name for coupling in COUPLINGS for name in coupling.knobs} <= KNOBS.keys()


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"max_num_sequences": 4}, "vLLM 0.32 has no knob max_num_sequences in the catalogue"),
        ({"max_num_seqs": "8"}, "max_num_seqs must be a whole number, not '8'"),
        ({"max_num_seqs": 8.0}, "max_num_seqs must be a whole number, not 8.0"),
        ({"max_num_seqs": True}, "max_num_seqs must be a whole number, not True"),
        ({"enforce_eager": 1}, "enforce_eager must be true or false, not 1"),
        ({"watermark": "much"}, "watermark must be a number, not 'much'"),
        ({"watermark": 0.9}, "watermark must be from 0 to 0.5, not 0.9"),
        ({"watermark": float("nan")}, "watermark must be from 0 to 0.5, not nan"),
        ({"max_num_seqs": 0}, "max_num_seqs must be from 1 to 4096 requests, not 0"),
        ({"gpu_memory_utilization": 1.0}, "gpu_memory_utilization must be from 0.1 to 0.98, not 1.0"),
        ({"kv_cache_dtype": "fp4"}, "kv_cache_dtype must be one of auto, bfloat16, float16, fp8"),
        ({"scheduling_policy": 3}, "scheduling_policy must be a word, not 3"),
        ({"speculative_config": {"method": "eagle"}}, "speculative_config must be text"),
        ({"watermark": None}, "watermark needs a value: vLLM's own default is 0.0"),
        ({"max_num_seqs": [8]}, "max_num_seqs must be a whole number, not [8]"),
    ],
)
def test_a_value_that_a_knob_cannot_have_is_refused_by_name(knobs: dict[str, Any], reason: str) -> None:
    assert reason in reasons(GPU, **knobs)


SETS: list[tuple[str, dict[str, Any], EngineFacts, str, dict[str, Any]]] = [
    (
        "a token for each request",
        {"max_num_seqs": 64, "max_num_batched_tokens": 32},
        GPU,
        "max_num_batched_tokens (32) must be at least max_num_seqs (64)",
        {"max_num_batched_tokens": 64},
    ),
    (
        "active within seats",
        {"max_num_seqs": 8, "max_num_active_seqs": 9},
        GPU,
        "max_num_active_seqs (9) must be at most max_num_seqs",
        {"max_num_active_seqs": 8},
    ),
    (
        "whole prompts in one step",
        {"enable_chunked_prefill": False, "max_num_batched_tokens": 2048, "max_model_len": 4096},
        GPU,
        "max_num_batched_tokens (2048) must be at least max_model_len (4096)",
        {"enable_chunked_prefill": True},
    ),
    (
        "whole prompts in one step",
        {"enable_chunked_prefill": False, "long_prefill_token_threshold": 100},
        GPU,
        "long_prefill_token_threshold does nothing without enable_chunked_prefill",
        {"long_prefill_token_threshold": 0},
    ),
    (
        "long prompts are shorter than the longest",
        {"long_prefill_token_threshold": 5000, "max_model_len": 4096},
        GPU,
        "long_prefill_token_threshold must be at most max_model_len",
        {"long_prefill_token_threshold": 4096},
    ),
    (
        "long prompts are shorter than the longest",
        {"long_prefill_token_threshold_adaptive": True},
        GPU,
        "does nothing while long_prefill_token_threshold is 0",
        {"long_prefill_token_threshold": 512},
    ),
    (
        "within the model's length",
        {"max_model_len": 5000},
        EngineFacts(model_len_tokens=4096),
        "at most the model's own 4096 tokens",
        {"max_model_len": 4096},
    ),
    ("blocks that the kernels take", {"block_size": 16}, CPU, "multiple of 32 on cpu, not 16", {"block_size": 64}),
    ("blocks that the kernels take", {"block_size": 24}, GPU, "multiple of 16 on cuda, not 24", {"block_size": 16}),
    (
        "the cache holds one longest request",
        {"num_gpu_blocks_override": 32, "block_size": 32, "max_model_len": 1024},
        CPU,
        "the KV cache holds 992 tokens, and max_model_len asks for 1024",
        {"num_gpu_blocks_override": 33},
    ),
    (
        "the cache holds one longest request",
        {"max_model_len": 9000},
        EngineFacts(cache_tokens=8192, knobs={}),
        "the KV cache holds 8192 tokens",
        {"kv_cache_memory_bytes": 1 << 40},  # another size: what it holds is not known before it runs
    ),
    (
        "a watermark of a block at least",
        {"watermark": 0.01, "num_gpu_blocks_override": 99},
        GPU,
        "a watermark of 0.01 of 99 blocks is none",
        {"watermark": 0.02},
    ),
    (
        "one size of the cache",
        {"gpu_memory_utilization": 0.8, "kv_cache_memory_bytes": 1 << 30},
        GPU,
        "makes vLLM ignore gpu_memory_utilization",
        {"kv_cache_memory_bytes": None},
    ),
    ("precision of the cache", {"kv_cache_dtype": "float16"}, CPU, "does not exist on cpu", {"kv_cache_dtype": "fp8"}),
    (
        "tenants apart",
        {"prefix_caching_hash_algo": "xxhash"},
        GPU,
        "tenants could be made to share blocks",
        {"enable_prefix_caching": False},
    ),
    (
        "drafts that can be scheduled ahead",
        {"speculative_config": DRAFTS % "ngram", "async_scheduling": True},
        GPU,
        "async_scheduling does not go with speculative decoding by ngram",
        {"speculative_config": DRAFTS % "eagle3"},
    ),
    (
        "drafts that can be scheduled ahead",
        {"speculative_config": "eagle"},
        GPU,
        "speculative_config must be a JSON object",
        {"speculative_config": '{"model": "small"}'},
    ),
    ("ahead of a device", {"async_scheduling": True}, CPU, "switches it off there", {"async_scheduling": None}),
    (
        "a tier to offload to",
        {"kv_offloading_size": 4.0},
        CPU,
        "on cpu the cache is in the host's already",
        {"kv_offloading_size": None},
    ),
    (
        "a tier to offload to",
        {"kv_offloading_size": 4, "enable_prefix_caching": False},
        GPU,
        "of no use without enable_prefix_caching",
        {"enable_prefix_caching": True},
    ),
    (
        "a mode that does something",
        {"performance_mode": "throughput", "max_num_seqs": 8, "max_num_batched_tokens": 64},
        GPU,
        "with both sizes of the batch set it changes nothing",
        {"max_num_seqs": None},
    ),
    (
        "a mode that does something",
        {"performance_mode": "interactivity", "enforce_eager": True},
        GPU,
        "enforce_eager has none",
        {"enforce_eager": False},
    ),
    (
        "one task a server",
        {"convert": "embed", "runner": "generate"},
        GPU,
        "needs the runner pooling",
        {"runner": "pooling"},
    ),
]


@pytest.mark.parametrize(("name", "knobs", "facts", "reason", "mend"), SETS)
def test_a_set_that_contradicts_itself_is_refused_with_the_reason_and_can_be_mended(
    name: str, knobs: dict[str, Any], facts: EngineFacts, reason: str, mend: dict[str, Any]
) -> None:
    [violation] = check(knobs, facts)
    assert reason in violation.reason
    assert violation.knob in next(coupling for coupling in COUPLINGS if coupling.name == name).knobs
    assert check({**knobs, **mend}, facts) == []


def test_every_coupling_is_among_the_sets_that_are_tried() -> None:
    assert {coupling.name for coupling in COUPLINGS} == {name for name, *_ in SETS}


def test_one_tenant_may_hash_fast() -> None:
    assert check({"prefix_caching_hash_algo": "xxhash"}, ALONE) == []


def test_an_error_has_every_reason() -> None:
    with pytest.raises(KnobError, match=r"max_num_seqs must be .*; watermark must be "):
        require({"max_num_seqs": 0, "watermark": 2})
    require({"max_num_seqs": 8})


def test_what_changes_answers_is_told_apart() -> None:
    assert changes_outputs({"kv_cache_dtype": "fp8", "max_num_seqs": 4}, {}) == ["kv_cache_dtype"]
    assert changes_outputs({"kv_cache_dtype": "auto"}, {"kv_cache_dtype": "bfloat16"}) == []
    assert changes_outputs({"kv_cache_dtype": "auto"}, {"kv_cache_dtype": "fp8"}) == ["kv_cache_dtype"]
    assert changes_outputs({"dtype": "float16"}, {"dtype": "float32"}) == ["dtype"]
    assert changes_outputs({"block_size": 32}, {"block_size": 64}) == []
