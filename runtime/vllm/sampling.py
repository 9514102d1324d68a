"""Reads vLLM's own counters out of the Prometheus text that it serves at `/metrics`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import fsum, isfinite

from prometheus_client.parser import text_string_to_metric_families

PREFIX = "vllm:"
UNSUCCESSFUL = frozenset({"abort", "error"})  # reasons that vLLM files under request_success all the same


class MetricsError(ValueError):
    """The text is not a vLLM's metrics: it cannot be parsed, or lacks what every vLLM serves."""


@dataclass(frozen=True, slots=True)
class VllmCounters:
    """A vLLM's totals since it started and its state now, summed over its engines and models.

    `prompt_tokens_total` grows by a request's whole prompt, cached part included, when its first token is sampled, once
    for each of its `n` choices; `generation_tokens_total` grows each step. Both include requests that were aborted
    later, which `requests_success` never counts. `prefix_cache_queries` and `prefix_cache_hits` are prompt tokens,
    counted when a request leaves the queue. `kv_cache_usage` is that of the fullest engine, from 0 to 1.
    """

    prompt_tokens_total: int
    generation_tokens_total: int
    requests_success: int
    prefix_cache_queries: int
    prefix_cache_hits: int
    running: int
    waiting: int
    kv_cache_usage: float


def parse_metrics(text: str, model: str | None = None) -> VllmCounters:
    """Return the counters in Prometheus text, of all models or only of the one served under the name `model`.

    Raises MetricsError when the text is malformed or any counter is absent: a missing total is never taken for zero.
    """
    samples = samples_by_name(text, model)
    return VllmCounters(
        prompt_tokens_total=total(samples, "prompt_tokens_total"),
        generation_tokens_total=total(samples, "generation_tokens_total"),
        requests_success=total(samples, "request_success_total"),
        prefix_cache_queries=total(samples, "prefix_cache_queries_total"),
        prefix_cache_hits=total(samples, "prefix_cache_hits_total"),
        running=total(samples, "num_requests_running"),
        waiting=total(samples, "num_requests_waiting"),
        kv_cache_usage=max(values(samples, "kv_cache_usage_perc")),
    )


def samples_by_name(text: str, model: str | None) -> Mapping[str, list[float]]:
    """Return the values of vLLM's samples by sample name, its prefix left out, of one model or of all."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.labels.get("finished_reason") in UNSUCCESSFUL:
                    continue
                if sample.name.startswith(PREFIX) and model in (None, sample.labels.get("model_name")):
                    found[sample.name.removeprefix(PREFIX)].append(sample.value)
    except (ValueError, KeyError, IndexError) as error:
        raise MetricsError(f"not Prometheus text: {error}") from error
    return found


def values(samples: Mapping[str, Iterable[float]], name: str) -> list[float]:
    """Return the values of one name, or raise MetricsError when there is none or one is not a number."""
    present = list(samples.get(name, ()))
    if not present:
        raise MetricsError(f"no sample of {PREFIX}{name}")
    if not all(map(isfinite, present)):
        raise MetricsError(f"{PREFIX}{name} is not a finite number")
    return present


def total(samples: Mapping[str, Iterable[float]], name: str) -> int:
    """Return the sum of the values of one name, which must be whole."""
    summed = fsum(values(samples, name))
    if not summed.is_integer():
        raise MetricsError(f"{PREFIX}{name} is {summed}, not a whole number")
    return int(summed)
