"""Secrets in text, found line by line by the plugins of detect-secrets and by what it does not know yet.

Of its plugins two are left out: `IPPublicDetector`, for an address is no secret (`pii` finds addresses), and
`HexHighEntropyString`, which takes every quoted digest and commit for a secret; a hexadecimal key that is named as one
is found by its name. Its filters for files and for lines marked as allowed are not applied: a model could write the
mark. Nothing is verified with the service that a secret would belong to.
"""

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class
from detect_secrets.filters import heuristic
from detect_secrets.plugins.base import BasePlugin
from detect_secrets.plugins.high_entropy_strings import HighEntropyStringsPlugin
from detect_secrets.plugins.keyword import KeywordDetector

from policy.checks.port import Finding, Text

LEFT_OUT = frozenset({"IPPublicDetector", "HexHighEntropyString"})
FINDINGS_MAX = 32
# A longer line is looked at in windows that overlap by what a secret may be long.
WINDOW_CHARS = 8192
OVERLAP_CHARS = 1024

# Keys that detect-secrets 1.5 does not know: Bursar's own, and today's of model providers.
_OWN = {
    "Bursar Key": re.compile(r"\bbs[kal]-[A-Za-z0-9_-]{40,}"),
    "OpenAI Token": re.compile(r"\bsk-(?:proj|svcacct|admin)-[A-Za-z0-9_-]{20,}"),
    "Anthropic Token": re.compile(r"\bsk-ant-[A-Za-z0-9_-]{20,}"),
    "Google API Key": re.compile(r"\bAIza[A-Za-z0-9_-]{35}"),
}
# `api_key: 4f7c…` and `PASSWORD=hunter2x` without quotes, which prose has too: the value must look made up.
_NAMED = re.compile(
    r"(?i)\b[\w-]{0,40}(?:api_?key|apikey|auth_?key|access_?key|secret_?key|private_?key|password|passwd|pwd|secret|"
    r"(?:auth|access|api|bearer|refresh)_?token)[\"']?\s{0,4}(?:=|:|:=|=>)\s{0,4}[\"']?([^\s\"',;)}\]]{8,256})"
)
_GUESSES = (KeywordDetector, HighEntropyStringsPlugin)
_GUESS_FILTERS: tuple[Callable[[str], bool], ...] = (
    heuristic.is_sequential_string,
    heuristic.is_potential_uuid,
    heuristic.is_templated_secret,
    heuristic.is_prefixed_with_dollar_sign,
    heuristic.is_not_alphanumeric_string,
)


def find(texts: list[Text]) -> list[Finding]:
    """What looks like a secret in these texts, each kind once a line; at most `FINDINGS_MAX`."""
    found: list[Finding] = []
    for text in texts:
        for number, line in enumerate(text.text.splitlines(), start=text.first_line):
            found += [Finding(kind, f"{text.where} line {number}") for kind in sorted(_kinds(line))]
            if len(found) >= FINDINGS_MAX:
                return found[:FINDINGS_MAX]
    return found


def _kinds(line: str) -> set[str]:
    kinds: set[str] = set()
    for start in range(0, max(1, len(line) - OVERLAP_CHARS), WINDOW_CHARS - OVERLAP_CHARS):
        kinds.update(_kinds_in(line[start : start + WINDOW_CHARS]))
    return kinds


def _kinds_in(window: str) -> Iterator[str]:
    for kind, pattern in _OWN.items():
        if pattern.search(window):
            yield kind
    for match in _NAMED.finditer(window):
        if _looks_made_up(match[1]):
            yield KeywordDetector.secret_type
    for plugin in _plugins():
        secrets = plugin.analyze_line(filename="", line=window, line_number=0)
        if isinstance(plugin, _GUESSES):
            secrets = {each for each in secrets if not _is_harmless(each.secret_value or "")}
        if secrets:
            yield plugin.secret_type


@cache
def _plugins() -> tuple[BasePlugin, ...]:
    known: dict[str, Any] = dict(get_mapping_from_secret_type_to_class())
    return tuple(known[kind]() for kind in sorted(known) if known[kind].__name__ not in LEFT_OUT)


def _looks_made_up(value: str) -> bool:
    """Whether a value without quotes is letters and digits in a mix that words and calls do not have."""
    has_both = any(each.isdigit() for each in value) and any(each.isalpha() for each in value)
    return has_both and not any(each in value for each in "(<[{$") and not _is_harmless(value)


def _is_harmless(value: str) -> bool:
    return any(is_harmless(value) for is_harmless in _GUESS_FILTERS)
