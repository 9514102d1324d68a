"""Reads vLLM's own counters out of the Prometheus text that it serves at `/metrics`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import fsum, isfinite
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

PREFIX = "vllm:"
UNSUCCESSFUL = frozenset({"abort", "error"})  # reasons that vLLM files under request_success all the same
GENERATED = "generation_tokens_total"
GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")


class MetricsError(ValueError):
    """The text is not a vLLM's metrics: it cannot be parsed, or lacks what every vLLM serves."""


class Sample(NamedTuple):
    """A value, and the engine that it is of: the name of its model, and its index among those that serve this model."""

    engine: tuple[str, str]
    value: float


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

    Raises MetricsError as `counters_of` does, and when the text is malformed.
    """
    return counters_of(samples_by_name(text, model))


def counters_of(samples: Mapping[str, Iterable[Sample]]) -> VllmCounters:
    """Return the counters that samples make; MetricsError where one is absent, which is never taken for zero.

    But several API servers leave out a gauge that none of them has set yet; before the first token it counts as zero.
    """
    prompts, generated = total(samples, "prompt_tokens_total"), total(samples, GENERATED)
    if not generated:
        samples = {**dict.fromkeys(GAUGES, (Sample(("", ""), 0.0),)), **samples}
    return VllmCounters(
        prompt_tokens_total=prompts,
        generation_tokens_total=generated,
        requests_success=total(samples, "request_success_total"),
        prefix_cache_queries=total(samples, "prefix_cache_queries_total"),
        prefix_cache_hits=total(samples, "prefix_cache_hits_total"),
        running=total(samples, "num_requests_running"),
        waiting=total(samples, "num_requests_waiting"),
        kv_cache_usage=max(values(samples, "kv_cache_usage_perc")),
    )


def engines_shown(samples: Mapping[str, Iterable[Sample]]) -> int:
    """Return of how many engines there are samples; MetricsError where of none.

    They are told by a counter, of which each engine has a sample from the start: gauges are there only of those that
    have computed something, where several API servers serve the page.
    """
    values(samples, GENERATED)
    return len({sample.engine for sample in samples[GENERATED]})


def samples_by_name(text: str, model: str | None) -> Mapping[str, list[Sample]]:
    """Return vLLM's samples by their name, its prefix left out, of one model or of all."""
    found: defaultdict[str, list[Sample]] = defaultdict(list)
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.labels.get("finished_reason") in UNSUCCESSFUL:
                    continue
                engine = sample.labels.get("model_name", ""), sample.labels.get("engine", "")
                if sample.name.startswith(PREFIX) and model in (None, engine[0]):
                    found[sample.name.removeprefix(PREFIX)].append(Sample(engine, sample.value))
    except (ValueError, KeyError, IndexError) as error:
        raise MetricsError(f"not Prometheus text: {error}") from error
    return found


def values(samples: Mapping[str, Iterable[Sample]], name: str) -> list[float]:
    """Return the values of one name, or raise MetricsError when there is none or one is not a number."""
    present = [sample.value for sample in samples.get(name, ())]
    if not present:
        raise MetricsError(f"no sample of {PREFIX}{name}")
    if not all(map(isfinite, present)):
        raise MetricsError(f"{PREFIX}{name} is not a finite number")
    return present


def total(samples: Mapping[str, Iterable[Sample]], name: str) -> int:
    """Return the sum of the values of one name, which must be whole."""
    summed = fsum(values(samples, name))
    if not summed.is_integer():
        raise MetricsError(f"{PREFIX}{name} is {summed}, not a whole number")
    return int(summed)
