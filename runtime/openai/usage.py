"""Usage reports: the `usage` object of an OpenAI response."""

from typing import Any, NamedTuple

import orjson

TOKENS_MAX = 1 << 40


class Report(NamedTuple):
    """The token counts that a runtime reported for one request."""

    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int


def read_report(usage: Any) -> Report | None:
    """The report in a `usage` object, or None when it is missing or not believable."""
    if not isinstance(usage, dict):
        return None
    details = usage.get("prompt_tokens_details")
    output_details = usage.get("completion_tokens_details")
    counts = (
        usage.get("prompt_tokens"),
        (details.get("cached_tokens") if isinstance(details, dict) else 0) or 0,
        usage.get("completion_tokens", 0) or 0,
        (output_details.get("reasoning_tokens") if isinstance(output_details, dict) else 0) or 0,
    )
    believable = [count for count in counts if type(count) is int and 0 <= count <= TOKENS_MAX]
    if len(believable) != len(counts):
        return None
    report = Report(*believable)
    if report.cached_input_tokens > report.input_tokens or report.reasoning_tokens > report.output_tokens:
        return None
    return report


def produced_bytes(choice: Any) -> int:
    """How many UTF-8 bytes of output a choice carries: no token of output is shorter than one of them."""
    if not isinstance(choice, dict):
        return 0
    message = choice.get("delta") or choice.get("message") or choice.get("text")
    if isinstance(message, str):
        return len(message.encode(errors="replace"))
    if not isinstance(message, dict):
        return 0
    total = 0
    for name, value in message.items():
        if name == "role" or value is None:
            continue
        total += len(value.encode(errors="replace")) if isinstance(value, str) else len(orjson.dumps(value))
    return total
