"""Quality: a cheap look at one answer, for flags that need no second opinion.

It says nothing of whether an answer is true or good. It finds answers that are empty, break the schema that was asked
for, go round in circles, stop in the middle or refuse.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

PASSES_AT_PERMILLE = 500
SCORE_MAX_PERMILLE = 1000

# What each flag takes from the score of an answer.
PENALTIES: Mapping[str, int] = MappingProxyType(
    {"empty": 1000, "schema": 1000, "repetition": 700, "refusal": 600, "truncated": 300, "unterminated": 150}
)

# An answer that refuses says so at once and is short; longer texts only speak of refusing.
REFUSAL_CHARS_MAX = 600
REFUSAL_WITHIN_CHARS = 200
REFUSALS = (
    "i can't assist",
    "i can't help",
    "i can't comply",
    "i can't do that",
    "i can't provide",
    "i cannot assist",
    "i cannot comply",
    "i cannot fulfill",
    "i cannot help",
    "i cannot provide",
    "i'm not able to help",
    "i'm not able to assist",
    "i am not able to help",
    "i am not able to assist",
    "i'm unable to",
    "i am unable to",
    "i won't be able to",
    "i must decline",
    "i have to decline",
    "i'm sorry, but i can't",
    "i'm sorry, but i cannot",
    "as an ai language model, i can't",
    "as an ai language model, i cannot",
    "this request violates",
)

# Circles are looked for at the end, where a model that has lost its way is.
WORDS_MAX = 1_024
WORDS_MIN = 48
WORDS_IN_GRAM = 6
CHARACTERS_MAX = 2_048
CHARACTERS_MIN = 256
CHARACTERS_IN_GRAM = 24
REPEATED_PERMILLE = 500

# Names, numbers and labels end in no full stop, and are no worse for it.
PROSE_CHARS_MIN = 200
_FENCE = "```"

_SAMPLE_BYTES = 8


class Answer(NamedTuple):
    """One choice of an answer; `is_cut` where only its beginning was kept, `refused` where the model says so itself.

    `breaks_schema` is what a check of the schema found, which is not made here: a schema may take any time.
    """

    text: str
    finish_reason: str
    calls_tools: bool = False
    refused: bool = False
    is_cut: bool = False
    breaks_schema: bool = False


class Expected(NamedTuple):
    """The form that was asked for: any text, any JSON object, or JSON by a schema."""

    is_json: bool = False
    schema: Mapping[str, Any] | None = None


class Assessment(NamedTuple):
    """The score, from 0 to 1000, and the flags that lowered it, the worst first."""

    score_permille: int
    flags: tuple[str, ...]
    passes: bool


def is_sampled(request_id: str, rate: float) -> bool:
    """Whether the answer to this request is judged; the same request always is or never is."""
    if rate <= 0:
        return False
    digest = hashlib.blake2b(request_id.encode(), digest_size=_SAMPLE_BYTES).digest()
    return int.from_bytes(digest, "big") < rate * (1 << 8 * _SAMPLE_BYTES)


def expected_of(body: Mapping[str, Any]) -> Expected:
    """What a request asks its answer to look like; a `response_format` out of shape asks for nothing."""
    asked = body.get("response_format")
    if not isinstance(asked, dict):
        return Expected()
    if asked.get("type") == "json_object":
        return Expected(is_json=True)
    described = asked.get("json_schema")
    if asked.get("type") != "json_schema" or not isinstance(described, dict):
        return Expected()
    schema = described.get("schema")
    return Expected(is_json=True, schema=schema if isinstance(schema, dict) else None)


def assess(answers: Sequence[Answer], expected: Expected, passes_at_permille: int = PASSES_AT_PERMILLE) -> Assessment:
    """How the worst of the choices of an answer is to be judged; no choices at all are an empty answer."""
    flags = max((_flags(answer, expected) for answer in answers), key=_penalty, default=["empty"])
    score = SCORE_MAX_PERMILLE - min(SCORE_MAX_PERMILLE, _penalty(flags))
    return Assessment(score, tuple(sorted(flags, key=lambda flag: -PENALTIES[flag])), score >= passes_at_permille)


def _penalty(flags: Sequence[str]) -> int:
    return sum(PENALTIES[flag] for flag in flags)


def _flags(answer: Answer, expected: Expected) -> list[str]:
    text = answer.text.strip()
    flags = []
    if answer.refused or refuses(text):
        flags.append("refusal")
    elif not text:
        return [] if answer.calls_tools else ["empty"]
    elif answer.breaks_schema or (expected.is_json and not _is_json(answer, expected)):
        flags.append("schema")
    if repeats_permille(text) >= REPEATED_PERMILLE:
        flags.append("repetition")
    if answer.finish_reason == "length":
        flags.append("truncated")
    elif not (answer.is_cut or answer.calls_tools or expected.is_json) and is_unterminated(text):
        flags.append("unterminated")
    return flags


def refuses(text: str) -> bool:
    """Whether a short text declines what was asked, in one of the English phrases of `REFUSALS`."""
    if len(text) > REFUSAL_CHARS_MAX:
        return False
    start = text[:REFUSAL_WITHIN_CHARS].lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return any(phrase in start for phrase in REFUSALS)


def repeats_permille(text: str) -> int:
    """How much of the end of a text is a repetition of itself, as the share of its n-grams that are not new.

    In words where there are any to speak of, else in characters; 0 for texts that are too short to go in circles.
    """
    words = text[-CHARACTERS_MAX * 8 :].split()[-WORDS_MAX:]
    if len(words) >= WORDS_MIN:
        return _repeated(list(zip(*(words[at:] for at in range(WORDS_IN_GRAM)), strict=False)))
    end = text[-CHARACTERS_MAX:]
    if len(end) < CHARACTERS_MIN:
        return 0
    return _repeated([end[at : at + CHARACTERS_IN_GRAM] for at in range(len(end) - CHARACTERS_IN_GRAM + 1)])


def is_unterminated(text: str) -> bool:
    """Whether prose stops within a sentence or within a block of code; the last line of a list may end in anything."""
    if text.count(_FENCE) % 2:
        return True
    last = text.rsplit("\n", 1)[-1].strip()
    is_prose = len(text) >= PROSE_CHARS_MIN and not last.startswith(("-", "*", "#", "|", "+", "•")) and " " in last
    return is_prose and not last[:1].isdigit() and (last[-1].isalnum() or last[-1] == ",")


def _repeated(grams: Sequence[object]) -> int:
    return 1000 - 1000 * len(set(grams)) // len(grams)


def _is_json(answer: Answer, expected: Expected) -> bool:
    """Whether an answer is JSON at all, an object where no schema says otherwise; one that was cut may have been."""
    if answer.is_cut or answer.calls_tools:
        return True
    try:
        value = json.loads(answer.text)
    except (ValueError, RecursionError):
        return False
    return expected.schema is not None or isinstance(value, dict)
