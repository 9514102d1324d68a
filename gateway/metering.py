"""Metering: from what was seen of a runtime's answer to the usage that is charged.

What was not seen is never refunded: an answer that stopped before its first usage report is charged its input bound and
the output it produced, one that stopped after it is charged the report and the steps in flight.
"""

from typing import NamedTuple

from domain.amounts import Amounts
from domain.prices import GpuRate, Prices
from domain.usage import NOTHING, Usage
from runtime.openai.usage import Report

# Output tokens per choice that a runtime may have computed beyond its last report when the connection ends: vLLM
# schedules the next step while it streams the last one.
STEPS_IN_FLIGHT = 1


class Observed(NamedTuple):
    """What was seen of one call: `sent` is False while nothing reached the runtime.

    `is_complete` says that the answer came to its own end, `is_error` that it was an error response, and `produced` how
    many bytes of output were seen without a report.
    """

    sent: bool
    is_complete: bool = False
    is_error: bool = False
    streamed: bool = False
    report: Report | None = None
    produced: int = 0


def usage_of(seen: Observed, input_bound: int, output_bound: int, choices: int, rate: GpuRate) -> Usage:
    """The usage to charge, never more unsure than what was seen; `output_bound` is the cap held over all choices."""
    report = seen.report
    if not seen.sent or (seen.is_complete and seen.is_error and report is None):
        return NOTHING
    if report is not None:
        if seen.is_complete:
            return _usage(report, rate, "exact")
        if choices > 1:
            # Choices of several prompts report each its own prompt, and some may not have reported yet.
            report = report._replace(input_tokens=max(report.input_tokens, input_bound), cached_input_tokens=0)
        more = min(report.output_tokens + STEPS_IN_FLIGHT * choices, max(output_bound, report.output_tokens))
        return _usage(report._replace(output_tokens=more), rate, "at_least")
    produced = min(output_bound, seen.produced) if seen.is_complete or seen.streamed else output_bound
    return _usage(Report(input_bound, 0, produced, 0), rate, "at_most")


def _usage(report: Report, rate: GpuRate, certainty: str) -> Usage:
    return Usage(
        input_tokens=report.input_tokens,
        cached_input_tokens=report.cached_input_tokens,
        output_tokens=report.output_tokens,
        reasoning_tokens=report.reasoning_tokens,
        gpu_us=rate.gpu_us(report.input_tokens - report.cached_input_tokens, report.output_tokens),
        certainty=certainty,  # type: ignore[arg-type]  # the two callers pass members of Certainty
    )


def charged(usage: Usage, prices: Prices, rate: GpuRate) -> Amounts:
    """The amounts that a usage takes from budgets; one that used nothing is not counted as a request either."""
    if usage is NOTHING:
        return Amounts()
    return Amounts(
        usage.input_tokens + usage.output_tokens,
        usage.input_tokens,
        usage.output_tokens,
        prices.list_cost_nusd(usage),
        rate.gpu_cost_nusd(usage.gpu_us),
        usage.gpu_us,
        usage.kv_block_us,
        usage.energy_uj,
        1,
        0,
    )
