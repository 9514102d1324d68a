"""The knobs of vLLM 0.32: one row each, read out of its own configuration; the plugin carries this file too.

Nothing but Python's own library is imported here. What knobs ask of each other is in `runtime.vllm.couplings`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

KnobValue = int | float | str | bool | None
Kind = Literal["integer", "number", "flag", "choice", "text"]

VERSION = "0.32"
TOKENS_MAX = 1 << 20
BYTES_MAX = 1 << 44
# A cache of content that was stored with fewer bits than the model computes with answers differently.
CACHE_DTYPES = ("auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2")
EXACT_CACHE_DTYPES = ("auto", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting of a vLLM server.

    `name` is vLLM's own; its option is derived from it. A `default` of None means that vLLM works it out from the model
    and the machine; only such a knob may be set to None. `low` and `high` bound what Bursar lets anyone set, which is
    less than what vLLM takes where more has never been of use. `config` is where the running engine keeps the value,
    empty where it does not. `live` says that it can be changed without a restart: in 0.32 none can.
    """

    name: str
    kind: Kind
    why: str
    config: str
    default: KnobValue = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    unit: str = ""
    couples: tuple[str, ...] = ()
    changes_outputs: bool = False
    live: bool = False

    @property
    def option(self) -> str:
        """The command-line option that sets it."""
        return "--" + self.name.replace("_", "-")

    def argv(self, value: KnobValue) -> list[str]:
        """The arguments that set it to a value; none where vLLM is to work it out."""
        if value is None:
            return []
        if self.kind == "flag":
            return [self.option if value else "--no-" + self.option.removeprefix("--")]
        return [self.option, str(value)]

    def objection(self, value: object) -> str | None:
        """Why the knob cannot have this value, whatever the others say; None when it can."""
        if value is None:
            return None if self.default is None else f"{self.name} needs a value: vLLM's own default is {self.default}"
        if not self._is_of_kind(value):
            return f"{self.name} must be {PHRASES[self.kind]}, not {value!r}"
        if self.choices and value not in self.choices:
            return f"{self.name} must be one of {', '.join(self.choices)}, not {value!r}"
        if isinstance(value, int | float) and not self._is_within(value):
            return f"{self.name} must be {self._range()}, not {value}: {self.why}"
        return None

    def _is_of_kind(self, value: object) -> bool:
        if self.kind == "flag":
            return isinstance(value, bool)
        if isinstance(value, bool):
            return False
        if self.kind == "integer":
            return isinstance(value, int)
        if self.kind == "number":
            return isinstance(value, int | float)
        return isinstance(value, str)

    def _is_within(self, value: float) -> bool:
        # In this form what is not a number is within nothing.
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def _range(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        low, high = (f"{each:g}" if isinstance(each, float) else each for each in (self.low, self.high))
        return f"at least {low}{unit}" if high is None else f"from {low} to {high}{unit}"


PHRASES: Mapping[Kind, str] = {
    "integer": "a whole number",
    "number": "a number",
    "flag": "true or false",
    "choice": "a word",
    "text": "text",
}


def _rows() -> Iterator[Knob]:
    for rows in (_batch, _chunks, _admission, _cache, _content, _offload, _execution):
        yield from rows()


def _batch() -> Iterator[Knob]:
    """What one step of the scheduler may hold."""
    at = "scheduler_config."
    yield Knob(
        "max_num_seqs",
        "integer",
        "requests that share a step; more of them raise throughput, latency between tokens, and preemptions",
        at + "max_num_seqs",
        low=1,
        high=4096,
        unit="requests",
        couples=("max_num_batched_tokens", "max_num_active_seqs"),
    )
    yield Knob(
        "max_num_active_seqs",
        "integer",
        "fewer requests at once than max_num_seqs, without smaller buffers and graphs",
        at + "max_num_active_seqs",
        low=1,
        high=4096,
        unit="requests",
        couples=("max_num_seqs",),
    )
    yield Knob(
        "max_num_batched_tokens",
        "integer",
        "tokens that one step computes; more of them finish prompts sooner and hold up those that decode beside them",
        at + "max_num_batched_tokens",
        low=1,
        high=TOKENS_MAX,
        unit="tokens",
        couples=("max_num_seqs", "enable_chunked_prefill", "max_model_len"),
    )


def _chunks() -> Iterator[Knob]:
    """How a step is cut, and when it is made."""
    at = "scheduler_config."
    yield Knob(
        "enable_chunked_prefill",
        "flag",
        "a long prompt is computed over several steps, beside requests that decode",
        at + "enable_chunked_prefill",
        couples=("max_num_batched_tokens", "max_model_len", "long_prefill_token_threshold"),
    )
    yield Knob(
        "long_prefill_token_threshold",
        "integer",
        "the most that one prompt may have of a step while others wait; 0 is no such limit",
        at + "long_prefill_token_threshold",
        default=0,
        low=0,
        high=TOKENS_MAX,
        unit="tokens",
        couples=("max_model_len", "enable_chunked_prefill"),
    )
    yield Knob(
        "long_prefill_token_threshold_adaptive",
        "flag",
        "raises that limit to a fair share of the step when few requests want it",
        at + "long_prefill_token_threshold_adaptive",
        default=False,
        couples=("long_prefill_token_threshold",),
    )
    yield Knob(
        "async_scheduling",
        "flag",
        "the next step is scheduled while one computes; a request that ends may then compute one token in vain",
        at + "async_scheduling",
        couples=("speculative_config",),
    )
    yield Knob(
        "stream_interval",
        "integer",
        "tokens between two chunks of a stream; what a client that leaves had not seen grows by as many",
        at + "stream_interval",
        default=1,
        low=1,
        high=64,
        unit="tokens",
    )


def _admission() -> Iterator[Knob]:
    """Who gets into the batch, and in which order."""
    at = "scheduler_config."
    yield Knob(
        "scheduling_policy",
        "choice",
        "priority serves Bursar's priorities; fcfs ignores them",
        at + "policy",
        default="fcfs",
        choices=("fcfs", "priority"),
    )
    yield Knob(
        "scheduler_reserve_full_isl",
        "flag",
        "a prompt enters only when the cache has room for the whole of it",
        at + "scheduler_reserve_full_isl",
        default=True,
        couples=("watermark",),
    )
    yield Knob(
        "watermark",
        "number",
        "the share of the cache that stays free when requests enter: fewer preemptions, fewer at once",
        at + "watermark",
        default=0.0,
        low=0.0,
        high=0.5,
        couples=("num_gpu_blocks_override",),
    )
    yield Knob(
        "max_num_queued_reqs",
        "integer",
        "requests in flight over which vLLM answers 503",
        at + "max_num_queued_reqs",
        low=1,
        high=1 << 20,
        unit="requests",
        couples=("max_num_seqs",),
    )
    yield Knob(
        "max_num_queued_tokens",
        "integer",
        "prompt tokens in flight over which vLLM answers 503",
        at + "max_num_queued_tokens",
        low=1,
        high=1 << 30,
        unit="tokens",
        couples=("max_model_len",),
    )


def _cache() -> Iterator[Knob]:
    """The size of the KV cache and of its blocks."""
    at = "cache_config."
    yield Knob(
        "block_size",
        "integer",
        "tokens in a block of the cache: prefixes are shared by whole blocks, and the last one is wasted in part",
        at + "block_size",
        low=8,
        high=1024,
        unit="tokens",
        couples=("num_gpu_blocks_override", "max_model_len"),
    )
    yield Knob(
        "gpu_memory_utilization",
        "number",
        "the share of the device that vLLM takes; what is left must hold its peaks and whatever else runs there",
        at + "gpu_memory_utilization",
        default=0.92,
        low=0.1,
        high=0.98,
        couples=("kv_cache_memory_bytes",),
    )
    yield Knob(
        "kv_cache_memory_bytes",
        "integer",
        "the size of the cache itself, in place of a share of the device",
        at + "kv_cache_memory_bytes",
        low=1 << 20,
        high=BYTES_MAX,
        unit="bytes",
        couples=("gpu_memory_utilization", "num_gpu_blocks_override", "max_model_len"),
    )
    yield Knob(
        "num_gpu_blocks_override",
        "integer",
        "blocks in place of what memory holds, for experiments; one of them is never used",
        at + "num_gpu_blocks_override",
        low=2,
        high=1 << 26,
        unit="blocks",
        couples=("block_size", "max_model_len", "watermark"),
    )


def _content() -> Iterator[Knob]:
    """What the KV cache keeps, and for whom."""
    at = "cache_config."
    yield Knob(
        "kv_cache_dtype",
        "choice",
        "fewer bits hold more tokens in the same memory, and change what the model answers",
        at + "cache_dtype",
        default="auto",
        choices=CACHE_DTYPES,
        couples=("dtype",),
        changes_outputs=True,
    )
    yield Knob(
        "enable_prefix_caching",
        "flag",
        "prompts that begin alike share what was computed, within one cache_salt",
        at + "enable_prefix_caching",
        couples=("prefix_caching_hash_algo",),
    )
    yield Knob(
        "prefix_caching_hash_algo",
        "choice",
        "xxhash is not cryptographic: blocks of two tenants could be made to collide, and one would read the other's",
        at + "prefix_caching_hash_algo",
        default="sha256",
        choices=("sha256", "sha256_cbor", "xxhash", "xxhash_cbor"),
        couples=("enable_prefix_caching",),
    )


def _offload() -> Iterator[Knob]:
    """The second tier of the cache, in the host's memory."""
    at = "cache_config."
    yield Knob(
        "kv_offloading_size",
        "number",
        "room in the host's memory for what the cache gives up",
        at + "kv_offloading_size",
        low=0.01,
        high=4096,
        unit="GiB",
        couples=("kv_offloading_backend", "enable_prefix_caching"),
    )
    yield Knob(
        "kv_offloading_backend",
        "choice",
        "lmcache keeps it in a server of its own, which must run; the engine is then not metered",
        at + "kv_offloading_backend",
        default="native",
        choices=("native", "lmcache"),
        couples=("kv_offloading_size",),
    )


def _execution() -> Iterator[Knob]:
    """The model and how it is run."""
    yield Knob(
        "max_model_len",
        "integer",
        "the longest prompt and answer together; the cache must hold one such request",
        "model_config.max_model_len",
        low=16,
        high=1 << 24,
        unit="tokens",
        couples=("max_num_batched_tokens", "enable_chunked_prefill", "long_prefill_token_threshold", "block_size"),
    )
    dtypes = ("auto", "bfloat16", "float16", "float32")
    why = "the precision that the model computes in"
    yield Knob("dtype", "choice", why, "model_config.dtype", default="auto", choices=dtypes, changes_outputs=True)
    why = "the seed of sampling that names none of its own"
    yield Knob("seed", "integer", why, "model_config.seed", default=0, low=0, high=(1 << 63) - 1, changes_outputs=True)
    why = "generate answers, pooling embeds; one server does one of them"
    runners = ("auto", "generate", "pooling", "draft")
    yield Knob("runner", "choice", why, "model_config.runner", default="auto", choices=runners, couples=("convert",))
    why = "what a model that generates is made into"
    converts = ("auto", "none", "embed", "classify")
    yield Knob("convert", "choice", why, "model_config.convert", default="auto", choices=converts, couples=("runner",))
    why = "no graphs and no compilation: a quick start, slower steps"
    yield Knob("enforce_eager", "flag", why, "model_config.enforce_eager", default=False, couples=("performance_mode",))
    yield Knob(
        "performance_mode",
        "choice",
        "interactivity captures more graphs of small batches; throughput doubles the default sizes of the batch",
        "performance_mode",
        default="balanced",
        choices=("balanced", "interactivity", "throughput"),
        couples=("max_num_batched_tokens", "max_num_seqs", "enforce_eager"),
    )
    at = "parallel_config."
    why = "devices that share each layer"
    name = "tensor_parallel_size"
    yield Knob(name, "integer", why, at + name, default=1, low=1, high=64, unit="devices")
    why = "devices that each have some of the layers"
    name = "pipeline_parallel_size"
    yield Knob(
        name, "integer", why, at + name, default=1, low=1, high=64, unit="devices", couples=("async_scheduling",)
    )
    yield Knob(
        "speculative_config",
        "text",
        "JSON: drafts several tokens a step; the plugin cannot tell such steps, so the engine is then not metered",
        "",
        couples=("async_scheduling",),
    )
    why = "each answer says what its request waited for"
    yield Knob("enable_per_request_metrics", "flag", why, "", default=False)


KNOBS: Mapping[str, Knob] = MappingProxyType({knob.name: knob for knob in _rows()})
