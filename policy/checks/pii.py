"""Personal data in text, found by Presidio's pattern recognisers: no language model, no network, no context words.

A finding counts from a score on. Presidio scores a pattern by how much it says alone, and 1.0 where a checksum holds;
the words around it, for which it needs a language model, are not looked at.
"""

from collections.abc import Iterator
from functools import cache
from ipaddress import ip_address
from typing import Any

from presidio_analyzer import EntityRecognizer, predefined_recognizers
from presidio_analyzer.predefined_recognizers import EmailRecognizer
from tldextract import TLDExtract

from policy.checks.pii_entities import RECOGNIZERS
from policy.checks.port import Finding, Text

FINDINGS_MAX = 32
# Numbers with a checksum are told from columns of numbers even where a line ends within them.
_CHECKED = frozenset({"CREDIT_CARD", "IBAN_CODE"})
_AS_ONE_LINE = str.maketrans("\r\n", "  ")
# What a language model would make of the text: recognisers by pattern do without it, whatever their types say.
_NO_WORDS: Any = None


class OfflineEmailRecognizer(EmailRecognizer):
    """Presidio's own asks the network for the list of public suffixes; this one has the list that is installed."""

    def __init__(self) -> None:
        super().__init__()
        self._suffixes = TLDExtract(cache_dir=None, suffix_list_urls=())

    def validate_result(self, pattern_text: str) -> bool:
        """Whether the address ends in a public suffix."""
        return bool(self._suffixes(pattern_text).fqdn)


def find(texts: list[Text], entities: tuple[str, ...], score_min: float) -> list[Finding]:
    """The personal data of these kinds in these texts, each kind once a line; at most `FINDINGS_MAX`."""
    found: dict[Finding, None] = {}
    for text in texts:
        written = text.text.replace("\r\n", "\n")  # for one character at most stands between groups of digits
        for entity in entities:
            for start in _starts(written, entity, score_min):
                line = text.first_line + written.count("\n", 0, start)
                found[Finding(entity, f"{text.where} line {line}")] = None
        if len(found) >= FINDINGS_MAX:
            break
    return list(found)[:FINDINGS_MAX]


def _starts(text: str, entity: str, score_min: float) -> Iterator[int]:
    """Where there is something of this kind, also where a line ends in the middle of it."""
    for result in _recognizer(entity).analyze(text, [entity], _NO_WORDS):
        if result.score >= score_min and not (entity == "IP_ADDRESS" and _is_nobodys(text[result.start : result.end])):
            yield result.start
    if entity in _CHECKED and "\n" in text:
        joined = text.translate(_AS_ONE_LINE)
        for result in _recognizer(entity).analyze(joined, [entity], _NO_WORDS):
            if result.score >= EntityRecognizer.MAX_SCORE and "\n" in text[result.start : result.end]:
                yield result.start


def _is_nobodys(address: str) -> bool:
    """Whether an address is that of every machine: loopback, or none at all."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    return parsed.is_loopback or parsed.is_unspecified


@cache
def _recognizer(entity: str) -> EntityRecognizer:
    if entity == "EMAIL_ADDRESS":
        return OfflineEmailRecognizer()
    made: EntityRecognizer = getattr(predefined_recognizers, RECOGNIZERS[entity])()
    return made
