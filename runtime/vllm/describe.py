"""Describes a running engine: from what it says of itself over HTTP, and from the facts of its telemetry.

DescribeError   the server does not answer, or is not one that can be described
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from runtime.description import (
    Capacity,
    Component,
    CouplingState,
    Description,
    KnobState,
    KnobValue,
    TelemetryState,
)
from runtime.telemetry.writer import VERSION, segments
from runtime.vllm.catalogue import KNOBS, Knob
from runtime.vllm.couplings import COUPLINGS, NULL_BLOCKS, EngineFacts
from runtime.vllm.exchange import HttpError, get

SOURCE = "engine-0"
FACTS_BYTES_MAX = 1 << 20
ENDED = "the engine has ended"
_ENGINE = re.compile(r"engine-\d{1,4}")
# A last line that says that the engine ends is no longer.
_CLOSE_BYTES_MAX = 64
SIMULATOR = "sim"
CACHE_INFO = "vllm:cache_config_info"
CACHE_CONFIG = "cache_config."

COMPONENTS: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...]], ...] = (
    (
        "front end",
        "takes requests over HTTP, makes tokens of text and text of tokens, and streams answers",
        ("stream_interval", "max_num_queued_reqs", "max_num_queued_tokens", "enable_per_request_metrics"),
        ("scheduler",),
    ),
    (
        "scheduler",
        "chooses for each step who computes how many tokens, and who is preempted when the cache is full",
        (
            "max_num_seqs",
            "max_num_active_seqs",
            "max_num_batched_tokens",
            "enable_chunked_prefill",
            "long_prefill_token_threshold",
            "long_prefill_token_threshold_adaptive",
            "scheduling_policy",
            "scheduler_reserve_full_isl",
            "watermark",
            "async_scheduling",
        ),
        ("kv cache", "executor"),
    ),
    (
        "kv cache",
        "keeps in blocks what was computed, shares blocks of equal prefixes, and gives up the least recently used",
        (
            "block_size",
            "gpu_memory_utilization",
            "kv_cache_memory_bytes",
            "num_gpu_blocks_override",
            "kv_cache_dtype",
            "enable_prefix_caching",
            "prefix_caching_hash_algo",
            "max_model_len",
        ),
        ("offload tier",),
    ),
    (
        "executor",
        "runs the model over the batch, and samples",
        (
            "dtype",
            "seed",
            "runner",
            "convert",
            "enforce_eager",
            "performance_mode",
            "tensor_parallel_size",
            "pipeline_parallel_size",
            "speculative_config",
        ),
        ("scheduler",),
    ),
    (
        "offload tier",
        "keeps in the host's memory what the cache gave up, while kv_offloading_size gives it room",
        ("kv_offloading_size", "kv_offloading_backend"),
        ("kv cache",),
    ),
)


class DescribeError(Exception):
    """An engine cannot be described; the message says what it lacks."""


@dataclass(frozen=True, slots=True)
class Said:
    """What an engine said of itself when its telemetry began."""

    facts: Mapping[str, Any] = field(default_factory=dict)
    telemetry: TelemetryState = field(default_factory=lambda: TelemetryState("unknown"))


def said_in(folder: Path | None, source: str = SOURCE) -> Said:
    """What the newest segment of a telemetry folder begins with; nothing raises, for the engine may not have begun."""
    if folder is None:
        return Said()
    present = segments(folder, source)
    if not present:
        return Said(telemetry=TelemetryState("off", f"{folder} has no segment of {source}: the plugin did not start"))
    try:
        with (folder / f"{source}.{present[-1]}.jsonl").open("rb") as file:
            line = json.loads(file.readline(FACTS_BYTES_MAX))
            told_us = os.fstat(file.fileno()).st_mtime_ns // 1_000
            if line[1] != VERSION:
                why = f"version {line[1]!r:.40}, and this Bursar reads {VERSION}: install its plugin"
                return Said(telemetry=TelemetryState("off", why, told_us=told_us))
            _, _, _, session, _, unix_us, facts = line
            file.seek(-min(_CLOSE_BYTES_MAX, file.seek(0, os.SEEK_END)), os.SEEK_END)
            has_ended = file.read().splitlines()[-1].startswith(b'["close",')
        reason, lost = str(facts.get("off", "")) or (ENDED if has_ended else ""), int(facts.get("lost", 0))
        state = TelemetryState("off" if reason else "on", reason, str(session), int(unix_us), lost, told_us)
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        return Said(telemetry=TelemetryState("off", f"the newest segment of {source} cannot be read: {error}"))
    return Said(facts, state)


def engines_in(folder: Path | None) -> dict[str, Said]:
    """What each engine of a telemetry folder said of itself, by its source; none where nothing can be read."""
    try:
        names = [] if folder is None else os.listdir(folder)
    except OSError:
        return {}
    sources = {source for source, _, _ in (name.partition(".") for name in names) if _ENGINE.fullmatch(source)}
    return {source: said_in(folder, source) for source in sorted(sources)}


def described(said: Said, info: Mapping[str, str] | None = None, version: str = "", model: str = "") -> Description:
    """The description that the facts of an engine's telemetry make, a simulated one's too, with what HTTP adds.

    `info` are the labels of `vllm:cache_config_info`; they fill in what an engine without telemetry does not say.
    """
    labels = info or {}
    facts = said.facts
    knobs: dict[str, KnobValue] = {name: _plain(value) for name, value in dict(facts.get("knobs", {})).items()}
    for name, knob in KNOBS.items():
        label = knob.config.removeprefix(CACHE_CONFIG)
        if name not in knobs and knob.config.startswith(CACHE_CONFIG) and label in labels:
            knobs[name] = _read(knob, labels[label])
    blocks = facts.get("num_blocks") or _count(labels.get("num_gpu_blocks", ""), less=NULL_BLOCKS)
    size = facts.get("block_size") or _count(labels.get("block_size", ""))
    device = str(facts.get("device", ""))
    engine, _, of_facts = str(facts.get("engine", "vllm")).partition(" ")
    tokens = blocks * size if blocks and size else None
    if engine == SIMULATOR and blocks and size:
        # It tells the two beside its knobs, one under a name of its own.
        knobs |= {"block_size": size, "num_gpu_blocks_override": blocks + NULL_BLOCKS}
    return Description(
        engine=engine,
        model=str(facts.get("model", "")) or model,
        device=device,
        versions={engine: version or of_facts},
        components=_components(knobs),
        knobs=tuple(_knob_state(name, value, knobs) for name, value in sorted(knobs.items())),
        couplings=_couplings(knobs, EngineFacts(device or "cuda", cache_tokens=tokens, knobs=knobs)),
        capacity=Capacity(
            num_blocks=blocks or None,
            block_size_tokens=size or None,
            cache_tokens=tokens,
            model_len_tokens=_whole(knobs.get("max_model_len")),
            seats=_whole(knobs.get("max_num_seqs")),
            accelerators=int(facts.get("accelerators", 1)),
        ),
        telemetry=said.telemetry,
    )


def describe(base_url: str, telemetry: Path | None = None) -> Description:
    """Describe the vLLM at an address (without `/v1`), with the folder of its telemetry where Bursar knows it.

    Raises DescribeError when the server does not answer as vLLM does.
    """
    try:
        version = str(json.loads(get(base_url, "/version"))["version"])
        models = json.loads(get(base_url, "/v1/models"))["data"]
        info = cache_info(get(base_url, "/metrics").decode())
        card = models[0]
        said = said_in(telemetry)
        if "knobs" not in said.facts:
            said = Said({**said.facts, "knobs": {"max_model_len": card.get("max_model_len")}}, said.telemetry)
        return described(said, info, version, str(card["id"]))
    except HttpError as error:
        raise DescribeError(str(error)) from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise DescribeError(f"{base_url} does not answer as vLLM does: {error!r}") from error


def cache_info(text: str) -> dict[str, str]:
    """The labels of vLLM's cache configuration in its Prometheus text; none when it has no such sample."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == CACHE_INFO:
                return dict(sample.labels)
    return {}


def _components(knobs: Mapping[str, KnobValue]) -> tuple[Component, ...]:
    found = []
    for name, does, of_it, feeds in COMPONENTS:
        if name == "offload tier" and knobs.get("kv_offloading_size") is None:
            continue
        found.append(Component(name, does, tuple(knob for knob in of_it if knob in knobs), feeds))
    names = {component.name for component in found}
    return tuple(Component(c.name, c.does, c.knobs, tuple(f for f in c.feeds if f in names)) for c in found)


def _knob_state(name: str, value: KnobValue, others: Mapping[str, KnobValue]) -> KnobState:
    """A knob as it is now; it couples to those only that the engine has."""
    # The simulator has knobs of its own, the coefficients of its step time.
    knob = KNOBS.get(name) or Knob(name, "text", "a setting of this engine alone", "")
    return KnobState(
        name,
        value,
        knob.default,
        knob.unit,
        knob.live,
        knob.low,
        knob.high,
        knob.choices,
        tuple(each for each in knob.couples if each in others),
        knob.changes_outputs,
        knob.why,
    )


def _couplings(knobs: Mapping[str, KnobValue], facts: EngineFacts) -> tuple[CouplingState, ...]:
    """Each coupling judged over the values of now; where a knob has none, over vLLM's default."""
    values = {name: knobs.get(name, knob.default) for name, knob in KNOBS.items()}
    return tuple(CouplingState(each.name, each.knobs, each.objection(values, facts)) for each in COUPLINGS)


def _read(knob: Knob, text: str) -> KnobValue:
    """The value that a label says; vLLM writes what Python's `str` makes of it."""
    if text == "None":
        return None
    if knob.kind == "flag":
        return text == "True"
    if knob.kind == "integer":
        return int(text)
    return float(text) if knob.kind == "number" else text


def _plain(value: Any) -> KnobValue:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _count(text: str, less: int = 0) -> int:
    return max(0, int(text) - less) if text.isdecimal() else 0


def _whole(value: KnobValue) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
