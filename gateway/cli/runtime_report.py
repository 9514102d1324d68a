"""A simulation's report as people read it."""

from collections.abc import Mapping
from functools import partial
from typing import Final

from gateway.cli.output import complain, console, print_rows
from runtime.sim.config import EngineConfig
from runtime.sim.deployment import Deployment
from runtime.sim.estimates import Estimate, Spread
from runtime.sim.recorder import NOT_ROUTED
from runtime.sim.report import Report, Usage
from runtime.sim.request import Submission

_SPREAD: Final = ("mean", "p50", "p90", "p95", "p99")
_TIMES: Final = (
    ("ttft_us", "first token"),
    ("itl_us", "between tokens"),
    ("tpot_us", "between tokens, a request"),
    ("e2e_us", "whole answer"),
    ("queue_us", "in the queue"),
)
_RATES: Final = (
    ("requests_per_s", "requests / s"),
    ("output_tokens_per_s", "output tokens / s"),
    ("goodput_per_s", "good requests / s"),
    ("good_share", "good share"),
    ("hit_rate", "hit rate"),
    ("gpu_us_per_token", "accelerator us / token"),
)
_REFUSALS: Final[Mapping[str, str]] = {
    Submission.CONTEXT_EXCEEDED: "prompt and answer longer than max_model_len ({engine.max_model_len:,} tokens)",
    Submission.QUEUE_FULL: "the queue was full ({engine.max_waiting:,} requests)",
    NOT_ROUTED: "the routing policy chose no replica",
}
_IN_SECONDS_US: Final = 10_000_000
"""From here on a time is told in seconds."""
_NO_BLOCKS: Final = (
    "{workload} does not say which prompts begin alike, so nothing can be found in a cache: an own trace says it where "
    "ledger.prompt_blocks was on"
)


def print_simulation(found: Report, deployment: Deployment) -> None:
    """Print a run: what came of the requests and on which engine, its times and rates, and how full it was."""
    out = partial(console().print, markup=False)
    out(
        f"{found.workload}: {found.finished:,} of {found.requests:,} requests in {found.duration_us / 1e6:,.1f} s, "
        f"{found.refused:,} refused, {found.preemptions:,} preemptions; digest {found.digest[:16]}"
    )
    for reason, count in found.refusals.items():
        out(f"{count:,} refused: {_REFUSALS[reason].format(engine=deployment.engine)}")
    out(_engine(deployment.engine, deployment.replicas))
    _print_times(found)
    if found.rates is not None:
        rates = [(label, getattr(found.rates, name)) for name, label in _RATES]
        rows = [
            {"rate": label, "value": "-" if estimate is None else shown(estimate)}
            for label, estimate in rates
            if estimate is not None or label == "hit rate"
        ]
        print_rows("Rates, with the interval of 95 %", rows, ("rate", "value"), as_json=False)
        if found.rates.hit_rate is None:
            complain(_NO_BLOCKS.format(workload=found.workload))
    if found.usage is not None:
        out(_usage(found.usage))


def shown(estimate: Estimate, unit: float = 1.0) -> str:
    """A number in so many units with its interval, where it has one."""
    value = _digits(estimate.value / unit)
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ({_digits(estimate.low / unit)} to {_digits(estimate.high / unit)})"


def _digits(value: float) -> str:
    """Four digits, or all of those before the point; never with an exponent."""
    if abs(value) >= 1_000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if abs(value) >= 0.001 or not value else f"{value:.6f}"


def _engine(engine: EngineConfig, replicas: int) -> str:
    many = f"{replicas:,} engines, each of " if replicas > 1 else "engine of "
    return (
        f"{many}{engine.max_num_seqs:,} seats, {engine.max_num_batched_tokens:,} tokens a step, context of "
        f"{engine.max_model_len:,} tokens, KV cache of {engine.num_blocks * engine.block_size:,} tokens in blocks of "
        f"{engine.block_size:,}"
    )


def _print_times(found: Report) -> None:
    spreads = [(label, getattr(found.latencies, name)) for name, label in _TIMES]
    rows = [_time_row(label, spread) for label, spread in spreads if spread is not None]
    print_rows("Latency, with the interval of 95 %", rows, ("time", *_SPREAD), as_json=False)


def _time_row(label: str, spread: Spread) -> dict[str, str]:
    name, unit = ("s", 1e6) if spread.p99.value >= _IN_SECONDS_US else ("ms", 1e3)
    return {"time": f"{label}, {name}", **{part: shown(getattr(spread, part), unit) for part in _SPREAD}}


def _usage(usage: Usage) -> str:
    return (
        f"batch {usage.running_mean:.1f}, queue {usage.waiting_mean:.1f}, KV cache {usage.kv_usage_mean:.1%} on "
        f"average and {usage.kv_usage_max:.1%} at most"
    )
