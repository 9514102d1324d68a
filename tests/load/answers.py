"""Answers: what each kind of request may be answered with, and what is wrong with any other answer."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

SERVED = frozenset({200, 429})
"""A proper request is served, or told that a budget is full."""
DONE = "[DONE]"


def fault(allowed: frozenset[int], status: int, headers: Mapping[str, str], body: bytes) -> str | None:
    """What is wrong with a whole answer, or None; `headers` are looked up without regard to case."""
    if status not in allowed:
        return f"status {status} is not one of {sorted(allowed)}: {body[:200]!r}"
    if "x-request-id" not in headers:
        return "the answer has no x-request-id"
    try:
        content = json.loads(body)
    except ValueError:
        return f"the body is no JSON: {body[:200]!r}"
    return None if status == 200 else _error_fault(status, headers, content)


def stream_fault(lines: Iterable[str]) -> str | None:
    """What is wrong with a stream of server-sent events that ended, or None."""
    chunks = 0
    for line in lines:
        if not line:
            continue
        if not line.startswith("data: "):
            return f"not an event: {line[:200]!r}"
        data = line.removeprefix("data: ")
        if data == DONE:
            return None if chunks else "the stream carries no chunk"
        try:
            chunk = json.loads(data)
        except ValueError:
            return f"not JSON: {data[:200]!r}"
        if "error" in chunk:
            return f"the stream failed: {data[:200]!r}"
        if chunk.get("usage"):
            return "usage was not asked for"
        chunks += 1
    return f"the stream ended after {chunks} chunks without [DONE]"


def usage_fault(body: bytes, output_tokens_max: int) -> str | None:
    """What is wrong with the usage that a served answer reports, or None."""
    usage = json.loads(body).get("usage")
    if not usage:
        return "the answer reports no usage"
    output_tokens = usage.get("completion_tokens", 0)
    if output_tokens > output_tokens_max:
        return f"{output_tokens} tokens were produced where {output_tokens_max} were allowed"
    if usage["total_tokens"] != usage["prompt_tokens"] + output_tokens:
        return f"usage does not add up: {usage}"
    return None


def _error_fault(status: int, headers: Mapping[str, str], content: Any) -> str | None:
    error = content.get("error") if isinstance(content, dict) else None
    if not isinstance(error, dict) or not error.get("message") or not error.get("type") or not error.get("code"):
        return f"not an error in OpenAI's shape: {content}"
    if status != 429:
        return None
    if error["code"] == "rate_limit_exceeded" and "retry-after" not in headers:
        return "rate_limit_exceeded without Retry-After"
    if error["code"] == "insufficient_quota" and "retry-after" in headers:
        return "insufficient_quota with Retry-After"
    return None
