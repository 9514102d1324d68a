"""Reads an engine's raw answer strictly into a Decision, so that nothing misspelt in a policy is silently ignored."""

from collections.abc import Callable
from typing import Any

from domain.decision import Obligations, Reason
from policy.checks.port import NAMES
from policy.port import MalformedDecision

_FIELDS = frozenset({"allow", "reasons", "obligations"})
_CACHE_DOMAINS = frozenset({"app", "team", "org", "shared"})
_INT_MAX = 2**53 - 1
_LIST_MAX = 512
_TEXT_MAX = 1024


def parse(raw: object) -> tuple[bool, tuple[Reason, ...], Obligations]:
    """Whether to admit, why not, and the obligations; raises MalformedDecision at the first thing out of form."""
    if not isinstance(raw, dict) or raw.keys() != _FIELDS:
        raise MalformedDecision(f"a decision has exactly {sorted(_FIELDS)}")
    return (
        _boolean("allow", raw["allow"]),
        tuple(_reason(item) for item in _list("reasons", raw["reasons"])),
        _obligations(raw["obligations"]),
    )


def _reason(item: object) -> Reason:
    if not isinstance(item, dict) or item.keys() != {"code", "message"}:
        raise MalformedDecision("a reason has exactly a code and a message")
    return Reason(_text("code", item["code"]), _text("message", item["message"]))


def _obligations(raw: object) -> Obligations:
    if not isinstance(raw, dict):
        raise MalformedDecision("obligations must be an object")
    fields: dict[str, Any] = {}
    for name, value in raw.items():
        reader = _READERS.get(name)
        if reader is None:
            raise MalformedDecision(f"unknown obligation {name!r:.80}")
        fields[name] = reader(name, value)
    obligations = Obligations(**fields)
    cap = obligations.max_output_tokens
    if cap is not None and cap < obligations.min_output_tokens:
        raise MalformedDecision("max_output_tokens is under min_output_tokens")
    return obligations


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise MalformedDecision(f"{name} must be a boolean")
    return value


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _INT_MAX:
        raise MalformedDecision(f"{name} must be an integer from 0 on")
    return value


def _fraction(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise MalformedDecision(f"{name} must be a number from 0 to 1")
    return float(value)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _TEXT_MAX:
        raise MalformedDecision(f"{name} must be a text of 1 to {_TEXT_MAX} characters")
    return value


def _list(name: str, value: object) -> list[object]:
    if not isinstance(value, list) or len(value) > _LIST_MAX:
        raise MalformedDecision(f"{name} must be a list of at most {_LIST_MAX}")
    return value


def _texts(name: str, value: object) -> tuple[str, ...]:
    return tuple(_text(name, item) for item in _list(name, value))


def _checks(name: str, value: object) -> tuple[str, ...]:
    texts = _texts(name, value)
    unknown = sorted(set(texts) - set(NAMES))
    if unknown:
        raise MalformedDecision(f"{name} names no check {unknown[0]!r:.80}; there are {', '.join(NAMES)}")
    return texts


def _cache_domain(name: str, value: object) -> str:
    if not isinstance(value, str) or value not in _CACHE_DOMAINS:
        raise MalformedDecision(f"{name} must be one of {sorted(_CACHE_DOMAINS)}")
    return value


_READERS: dict[str, Callable[[str, object], object]] = {
    "max_input_tokens": _count,
    "max_output_tokens": _count,
    "min_output_tokens": _count,
    "shrink_to_fit": _boolean,
    "fallback_models": _texts,
    "priority": _count,
    "blocked_tools": _texts,
    "verify": _checks,
    "cache_domain": _cache_domain,
    "queue_ms_max": _count,
    "sample_trace": _fraction,
}
