"""What a run comes to: latencies, throughput, goodput, hits and accelerator time, with intervals."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Final

import numpy as np

from runtime.sim.durations import IntArray
from runtime.sim.estimates import Estimate, Resamples, Spread, weighted_spread
from runtime.sim.run import Mask, Run

RESAMPLES: Final = 200
US_PER_S: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request must keep to be good; None does not matter. `tpot_us` is its mean time between tokens."""

    ttft_us: int | None = None
    tpot_us: int | None = None
    e2e_us: int | None = None


@dataclass(frozen=True, slots=True)
class Latencies:
    """Of finished requests, as the client sees them; None where none has any. `itl_us` is of tokens, not of requests.

    `tpot_us` is a request's mean time between tokens, `queue_us` its wait in the engine's queue.
    """

    ttft_us: Spread | None
    itl_us: Spread | None
    tpot_us: Spread | None
    e2e_us: Spread | None
    queue_us: Spread | None


@dataclass(frozen=True, slots=True)
class Rates:
    """Per second from the first arrival to the last end, or per token; None where no SLO is given.

    Good requests are those that kept the SLO; `good_share` is of all that were offered. `gpu_us_per_token` is busy
    accelerator time over all tokens of finished requests, those found in the prefix cache included. A single run has no
    interval for `requests_per_s`, since when requests come is given, and there is no `hit_rate`, None, where the
    workload does not say how prompts begin.
    """

    requests_per_s: Estimate
    output_tokens_per_s: Estimate
    goodput_per_s: Estimate | None
    good_share: Estimate | None
    hit_rate: Estimate | None
    gpu_us_per_token: Estimate


@dataclass(frozen=True, slots=True)
class Usage:
    """Means over the time that the engines were busy, of one engine, and the most of the KV cache that one held."""

    running_mean: float
    waiting_mean: float
    kv_usage_mean: float
    kv_usage_max: float


@dataclass(frozen=True, slots=True)
class Report:
    """A run in numbers; `idle_gpu_us` is what the accelerators were not busy from the first arrival to the last end.

    `refusals` says how many were refused by reason: those of `runtime.sim.request.Submission`, and `not_routed`.
    """

    workload: str
    digest: str
    requests: int
    finished: int
    refused: int
    refusals: Mapping[str, int]
    preemptions: int
    steps: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    duration_us: int
    busy_gpu_us: int
    idle_gpu_us: int
    latencies: Latencies
    rates: Rates | None
    usage: Usage | None


def report(run: Run, slo: Slo | None = None, *, seed: int = 0, resamples: int = RESAMPLES) -> Report:
    """A run in numbers, their intervals from so many resamples of its requests."""
    columns, finished = run.requests, run.finished
    ended = {name: column[finished] for name, column in columns.items()}
    duration_us = _duration_us(run)
    accelerators = run.deployment.accelerators
    busy_us = int(run.steps["busy_us"].sum()) * accelerators
    return Report(
        workload=run.workload,
        digest=run.digest(),
        requests=len(finished),
        finished=int(finished.sum()),
        refused=int(run.refused.sum()),
        refusals=dict(sorted(run.refusals.items())),
        preemptions=int(columns["preemptions"].sum()),
        steps=int(run.steps["steps"].sum()),
        prompt_tokens=int(ended["prompt_tokens"].sum()),
        cached_tokens=int(ended["cached_tokens"].sum()),
        output_tokens=int(ended["output_tokens"].sum()),
        duration_us=duration_us,
        busy_gpu_us=busy_us,
        idle_gpu_us=duration_us * accelerators * run.deployment.replicas - busy_us,
        latencies=_latencies(run, ended, seed, resamples),
        rates=_rates(run, slo, duration_us, busy_us, Resamples(len(finished), resamples, seed)),
        usage=_usage(run),
    )


def over_seeds(reports: Sequence[Report]) -> Report:
    """Reports of runs that differ in their seed, as one: counts summed, numbers averaged, intervals over the runs.

    Raises ValueError for less than two.
    """
    merged: Report = _merge(list(reports))
    return merged


def _merge(values: list[Any]) -> Any:
    first = values[0]
    if first is None or any(value is None for value in values):
        return None
    if isinstance(first, Estimate):
        return Estimate.of_runs([value.value for value in values])
    if is_dataclass(first):
        names = [field.name for field in fields(first)]
        return replace(values[0], **{name: _merge([getattr(value, name) for value in values]) for name in names})
    if isinstance(first, dict):
        return dict(sorted(sum(map(Counter, values), Counter()).items()))
    if isinstance(first, str):
        return first if len(set(values)) == 1 else ",".join(values)
    return sum(values) if isinstance(first, int) else float(np.mean(values))


def _duration_us(run: Run) -> int:
    """From the first arrival to the last end as a client sees it."""
    columns = run.requests
    if not len(columns["arrival_us"]):
        return 0
    return int(max(columns["end_us"].max(), columns["arrival_us"].max()) - columns["arrival_us"].min())


def _latencies(run: Run, ended: dict[str, IntArray], seed: int, resamples: int) -> Latencies:
    several = ended["output_tokens"] > 1
    decode_us = (ended["end_us"] - ended["first_us"])[several]
    gaps = run.gaps
    finished, spoken = Resamples(len(several), resamples, seed), Resamples(len(decode_us), resamples, seed)
    return Latencies(
        ttft_us=finished.spread(ended["first_us"] - ended["arrival_us"]),
        itl_us=weighted_spread(gaps["gap_us"], gaps["tokens"], resamples, seed),
        tpot_us=spoken.spread(decode_us / (ended["output_tokens"][several] - 1)),
        e2e_us=finished.spread(ended["end_us"] - ended["arrival_us"]),
        queue_us=finished.spread(ended["scheduled_us"] - ended["queued_us"]),
    )


def _rates(run: Run, slo: Slo | None, duration_us: int, busy_us: int, drawn: Resamples) -> Rates | None:
    finished = run.finished
    if duration_us == 0 or not finished.any():
        return None
    prompt, output, cached = (
        np.where(finished, run.requests[name], 0) for name in ("prompt_tokens", "output_tokens", "cached_tokens")
    )
    seconds = duration_us / US_PER_S
    good = None if slo is None else good_requests(run, slo)
    return Rates(
        requests_per_s=Estimate(float(finished.sum() / seconds)),
        output_tokens_per_s=drawn.estimate(lambda at: output[at].sum() / seconds),
        goodput_per_s=None if good is None else drawn.estimate(lambda at: good[at].sum() / seconds),
        good_share=None if good is None else drawn.estimate(lambda at: good[at].mean()),
        hit_rate=drawn.estimate(lambda at: cached[at].sum() / max(1, prompt[at].sum())) if run.has_blocks else None,
        gpu_us_per_token=drawn.estimate(lambda at: busy_us / max(1, prompt[at].sum() + output[at].sum())),
    )


def good_requests(run: Run, slo: Slo) -> Mask:
    """Which requests finished and kept the SLO; those with one token or none have no time between tokens to keep."""
    columns = run.requests
    good = run.finished.copy()
    if slo.ttft_us is not None:
        good &= columns["first_us"] - columns["arrival_us"] <= slo.ttft_us
    if slo.e2e_us is not None:
        good &= columns["end_us"] - columns["arrival_us"] <= slo.e2e_us
    if slo.tpot_us is not None:
        gaps = np.maximum(columns["output_tokens"] - 1, 0)
        good &= columns["end_us"] - columns["first_us"] <= slo.tpot_us * np.maximum(gaps, 1)
    return good


def _usage(run: Run) -> Usage | None:
    steps = run.steps
    busy_us = int(steps["busy_us"].sum())
    if not busy_us:
        return None
    blocks = run.deployment.engine.num_blocks
    running, waiting, used = (
        float(steps[name] @ steps["busy_us"] / busy_us) for name in ("running", "waiting", "used_blocks")
    )
    return Usage(running, waiting, used / blocks, float(steps["used_blocks"].max() / blocks))
