"""The settings with which Bursar starts a vLLM server: a set of the catalogue's knobs that can be used together."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from runtime.vllm.catalogue import KNOBS, KnobValue
from runtime.vllm.couplings import EngineFacts, require

# What suits a small model on two CPU cores that it shares. Not `bfloat16`: on a CPU with AMX vLLM 0.32 then dies of an
# illegal instruction when the first prompt it serves is short.
CPU_DEFAULTS: Mapping[str, KnobValue] = MappingProxyType(
    {
        "max_model_len": 4096,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 2048,
        "block_size": 32,
        "kv_cache_memory_bytes": 1 << 30,
        "enforce_eager": True,
        "scheduling_policy": "priority",
        "enable_prefix_caching": True,
        "dtype": "float32",
        "seed": 0,
    }
)
CPU = EngineFacts(device="cpu")


class VllmKnobs:
    """What a vLLM server is told at start: vLLM's own names for its knobs, over the defaults for a small CPU.

    `facts` say what the values are checked against. A prompt longer than `max_num_batched_tokens` is prefilled in
    chunks. One server does one task: `generate` has no `/v1/embeddings`, and `runner="pooling", convert="embed"` has
    nothing else. Never changes; raises KnobError, a ValueError, for what vLLM would refuse after a long start.
    """

    __slots__ = ("facts", "values")

    def __init__(self, facts: EngineFacts = CPU, **values: KnobValue) -> None:
        together = {**CPU_DEFAULTS, **values}
        require(together, facts)
        self.facts = facts
        self.values: Mapping[str, KnobValue] = MappingProxyType(together)

    def changed(self, **values: KnobValue) -> VllmKnobs:
        """The same set with other values for some knobs; raises KnobError when they do not go together."""
        return VllmKnobs(self.facts, **{**self.values, **values})

    def argv(self) -> list[str]:
        """Return the server's options that say these settings."""
        return [word for name, value in self.values.items() for word in KNOBS[name].argv(value)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VllmKnobs) and (self.values, self.facts) == (other.values, other.facts)

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.values)))

    def __repr__(self) -> str:
        return f"VllmKnobs({', '.join(f'{name}={value!r}' for name, value in self.values.items())})"
