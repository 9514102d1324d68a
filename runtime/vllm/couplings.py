"""What vLLM's knobs ask of each other and of the machine: a set of values is checked before an engine is started on it.

KnobError      a knob set that an engine would refuse, die of, or be unsafe with; its message has every reason
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from runtime.vllm.catalogue import EXACT_CACHE_DTYPES, KNOBS, KnobValue

CPU_BLOCK_MULTIPLE = 32
GPU_BLOCK_MULTIPLE = 16
NULL_BLOCKS = 1  # of the pool, never given to a request
# `vllm.config.vllm` of 0.32: the methods whose drafts need nothing from the step before.
ASYNC_DRAFTS = frozenset(
    {"eagle", "eagle3", "extract_hidden_states", "mtp", "dflash", "dspark", "ngram_gpu", "draft_model"}
)
# What decides how many tokens the cache holds: as long as none of them changes, it holds as many as before.
SIZING = (
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "num_gpu_blocks_override",
    "kv_cache_dtype",
    "dtype",
    "tensor_parallel_size",
    "pipeline_parallel_size",
)


class KnobError(ValueError):
    """A set of knobs that cannot be used; its message names each reason."""


class Violation(NamedTuple):
    """A knob, or the first of those that contradict each other, and why the set is refused."""

    knob: str
    reason: str


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What a check needs to know of the machine and of the engine that runs now, where one does.

    `model_len_tokens` is the model's own maximum, `cache_tokens` what the cache of the running engine holds, both None
    when unknown; `knobs` what that engine was started with.
    """

    device: str = "cuda"
    tenants: bool = True
    model_len_tokens: int | None = None
    cache_tokens: int | None = None
    knobs: Mapping[str, KnobValue] | None = None


Values = Mapping[str, KnobValue]
Check = Callable[[Values, EngineFacts], str | None]


@dataclass(frozen=True, slots=True)
class Coupling:
    """A condition over several knobs, under a name, with what is said when it does not hold."""

    name: str
    knobs: tuple[str, ...]
    objection: Check


def check(knobs: Mapping[str, object], facts: EngineFacts | None = None) -> list[Violation]:
    """Every reason against starting an engine with these knobs; none when it may be started.

    Knobs that are not named have vLLM's defaults. Couplings are judged once each knob is possible by itself.
    """
    known = facts or EngineFacts()
    found = []
    values: dict[str, KnobValue] = {name: knob.default for name, knob in KNOBS.items()}
    for name, value in knobs.items():
        reason = KNOBS[name].objection(value) if name in KNOBS else f"vLLM 0.32 has no knob {name} in the catalogue"
        if reason is not None:
            found.append(Violation(name, reason))
        elif value is None or isinstance(value, bool | int | float | str):
            values[name] = value
    if found:
        return found
    if values["max_model_len"] is None:
        values["max_model_len"] = known.model_len_tokens
    objections = [(coupling, coupling.objection(values, known)) for coupling in COUPLINGS]
    return [Violation(coupling.knobs[0], reason) for coupling, reason in objections if reason is not None]


def require(knobs: Mapping[str, object], facts: EngineFacts | None = None) -> None:
    """Raise KnobError with every reason when these knobs cannot be used."""
    found = check(knobs, facts)
    if found:
        raise KnobError("; ".join(violation.reason for violation in found))


def _over(first: KnobValue, second: KnobValue) -> bool:
    """Whether both are known and the first is more than the second."""
    numbers = isinstance(first, int | float) and isinstance(second, int | float)
    return numbers and first > second  # type: ignore[operator]


def _tokens_for_sequences(values: Values, _: EngineFacts) -> str | None:
    if not _over(values["max_num_seqs"], values["max_num_batched_tokens"]):
        return None
    return (
        f"max_num_batched_tokens ({values['max_num_batched_tokens']}) must be at least max_num_seqs "
        f"({values['max_num_seqs']}): a step gives each request a token"
    )


def _active_sequences(values: Values, _: EngineFacts) -> str | None:
    if not _over(values["max_num_active_seqs"], values["max_num_seqs"]):
        return None
    return f"max_num_active_seqs ({values['max_num_active_seqs']}) must be at most max_num_seqs"


def _whole_prompts(values: Values, _: EngineFacts) -> str | None:
    if values["enable_chunked_prefill"] is not False:
        return None
    if values["long_prefill_token_threshold"]:
        return "long_prefill_token_threshold does nothing without enable_chunked_prefill: set it to 0"
    if not _over(values["max_model_len"], values["max_num_batched_tokens"]):
        return None
    return (
        f"without enable_chunked_prefill max_num_batched_tokens ({values['max_num_batched_tokens']}) must be at least "
        f"max_model_len ({values['max_model_len']}): a prompt is computed in one step"
    )


def _long_prefill(values: Values, _: EngineFacts) -> str | None:
    if _over(values["long_prefill_token_threshold"], values["max_model_len"]):
        return "long_prefill_token_threshold must be at most max_model_len: no prompt is longer"
    if values["long_prefill_token_threshold_adaptive"] and not values["long_prefill_token_threshold"]:
        return "long_prefill_token_threshold_adaptive does nothing while long_prefill_token_threshold is 0"
    return None


def _model_length(values: Values, facts: EngineFacts) -> str | None:
    if not _over(values["max_model_len"], facts.model_len_tokens):
        return None
    return f"max_model_len must be at most the model's own {facts.model_len_tokens} tokens"


def _block_size(values: Values, facts: EngineFacts) -> str | None:
    size = values["block_size"]
    multiple = CPU_BLOCK_MULTIPLE if facts.device == "cpu" else GPU_BLOCK_MULTIPLE
    if not isinstance(size, int) or size % multiple == 0:
        return None
    return f"block_size must be a multiple of {multiple} on {facts.device}, not {size}"


def _one_request_fits(values: Values, facts: EngineFacts) -> str | None:
    longest, size, blocks = values["max_model_len"], values["block_size"], values["num_gpu_blocks_override"]
    held = facts.cache_tokens if _is_sized_as_before(values, facts) else None
    blamed = ""
    if isinstance(blocks, int) and isinstance(size, int):
        held = (blocks - NULL_BLOCKS) * size
        blamed = f"; num_gpu_blocks_override ({blocks}) counts one block that vLLM never uses, of block_size ({size})"
    if not _over(longest, held):
        return None
    return (
        f"the KV cache holds {held} tokens, and max_model_len asks for {longest}: not one request of it would fit"
        f"{blamed}"
    )


def _is_sized_as_before(values: Values, facts: EngineFacts) -> bool:
    now = facts.knobs or {}
    return all(values[name] == now.get(name, KNOBS[name].default) for name in SIZING)


def _watermark(values: Values, _: EngineFacts) -> str | None:
    share, blocks = values["watermark"], values["num_gpu_blocks_override"]
    if not isinstance(share, int | float) or not share or not isinstance(blocks, int) or int(blocks * share):
        return None
    return f"a watermark of {share:g} of {blocks} blocks is none: raise it, or set it to 0"


def _cache_size_said_once(values: Values, _: EngineFacts) -> str | None:
    said = values["gpu_memory_utilization"] != KNOBS["gpu_memory_utilization"].default
    if not said or values["kv_cache_memory_bytes"] is None:
        return None
    return "kv_cache_memory_bytes makes vLLM ignore gpu_memory_utilization: set one of them"


def _cache_precision(values: Values, facts: EngineFacts) -> str | None:
    wanted = values["kv_cache_dtype"]
    if facts.device == "cpu" and wanted in ("float16", "bfloat16"):
        return f"kv_cache_dtype {wanted} does not exist on cpu: auto is the model's own precision, fp8 is less"
    return None


def _tenants_apart(values: Values, facts: EngineFacts) -> str | None:
    weak = str(values["prefix_caching_hash_algo"]).startswith("xxhash")
    if not weak or values["enable_prefix_caching"] is False or not facts.tenants:
        return None
    return (
        f"prefix_caching_hash_algo {values['prefix_caching_hash_algo']} is not cryptographic: tenants could be made to "
        "share blocks; use sha256"
    )


def _drafts(values: Values, _: EngineFacts) -> str | None:
    text = values["speculative_config"]
    if text is None:
        return None
    try:
        asked = json.loads(str(text))
    except ValueError:
        return "speculative_config must be a JSON object"
    if not isinstance(asked, dict):
        return "speculative_config must be a JSON object"
    method = asked.get("method", "draft_model" if "model" in asked else None)
    if values["async_scheduling"] and method not in ASYNC_DRAFTS:
        return f"async_scheduling does not go with speculative decoding by {method}: leave it out, or set it to false"
    return None


def _async_on_cpu(values: Values, facts: EngineFacts) -> str | None:
    if facts.device == "cpu" and values["async_scheduling"]:
        return "async_scheduling has no effect on cpu: vLLM switches it off there"
    return None


def _offload(values: Values, facts: EngineFacts) -> str | None:
    if values["kv_offloading_size"] is None:
        return None
    if facts.device == "cpu":
        return "kv_offloading_size needs a device with memory of its own: on cpu the cache is in the host's already"
    if values["enable_prefix_caching"] is False:
        return "kv_offloading_size is of no use without enable_prefix_caching: nothing would be found again"
    return None


def _mode(values: Values, _: EngineFacts) -> str | None:
    mode = values["performance_mode"]
    sizes = (values["max_num_seqs"], values["max_num_batched_tokens"])
    if mode == "throughput" and None not in sizes:
        return "performance_mode throughput only doubles defaults: with both sizes of the batch set it changes nothing"
    if mode == "interactivity" and values["enforce_eager"]:
        return "performance_mode interactivity is about graphs, and enforce_eager has none"
    return None


def _task(values: Values, _: EngineFacts) -> str | None:
    if values["convert"] in ("embed", "classify") and values["runner"] in ("generate", "draft"):
        return f"convert {values['convert']} needs the runner pooling, not {values['runner']}"
    return None


def changes_outputs(knobs: Values, now: Values) -> list[str]:
    """The knobs that differ from those of now in a way that changes what the model answers."""
    differing = [name for name, value in knobs.items() if value != now.get(name, KNOBS[name].default)]
    exact = {"kv_cache_dtype": EXACT_CACHE_DTYPES}
    return [
        name
        for name in differing
        if KNOBS[name].changes_outputs
        and not (knobs[name] in exact.get(name, ()) and now.get(name, KNOBS[name].default) in exact.get(name, ()))
    ]


COUPLINGS: tuple[Coupling, ...] = (
    Coupling("a token for each request", ("max_num_batched_tokens", "max_num_seqs"), _tokens_for_sequences),
    Coupling("active within seats", ("max_num_active_seqs", "max_num_seqs"), _active_sequences),
    Coupling(
        "whole prompts in one step",
        ("max_num_batched_tokens", "enable_chunked_prefill", "max_model_len", "long_prefill_token_threshold"),
        _whole_prompts,
    ),
    Coupling(
        "long prompts are shorter than the longest",
        ("long_prefill_token_threshold", "long_prefill_token_threshold_adaptive", "max_model_len"),
        _long_prefill,
    ),
    Coupling("within the model's length", ("max_model_len",), _model_length),
    Coupling("blocks that the kernels take", ("block_size",), _block_size),
    Coupling(
        "the cache holds one longest request",
        ("max_model_len", "num_gpu_blocks_override", "block_size", "kv_cache_memory_bytes", "gpu_memory_utilization"),
        _one_request_fits,
    ),
    Coupling("a watermark of a block at least", ("watermark", "num_gpu_blocks_override"), _watermark),
    Coupling("one size of the cache", ("gpu_memory_utilization", "kv_cache_memory_bytes"), _cache_size_said_once),
    Coupling("precision of the cache", ("kv_cache_dtype",), _cache_precision),
    Coupling("tenants apart", ("prefix_caching_hash_algo", "enable_prefix_caching"), _tenants_apart),
    Coupling("drafts that can be scheduled ahead", ("speculative_config", "async_scheduling"), _drafts),
    Coupling("ahead of a device", ("async_scheduling",), _async_on_cpu),
    Coupling("a tier to offload to", ("kv_offloading_size", "enable_prefix_caching"), _offload),
    Coupling(
        "a mode that does something",
        ("performance_mode", "max_num_seqs", "max_num_batched_tokens", "enforce_eager"),
        _mode,
    ),
    Coupling("one task a server", ("convert", "runner"), _task),
)
