"""Verification as configured: how long checks may take, what personal data is, who is asked, and what is kept."""

from typing import Annotated

from pydantic import AfterValidator, Field, field_validator

from gateway.config_values import (
    DAY_S,
    KIB,
    MIB,
    Count,
    Id,
    Number,
    Ratio,
    Seconds,
    Section,
    Size,
    Tokens,
    Whole,
    unique,
)
from policy.checks import pii_entities, verdict

_MARKERS = ("{request}", "{answer}")


class Pii(Section):
    """Which kinds of personal data are looked for, as Presidio calls them, and from which score on one counts."""

    entities: Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(unique)] = pii_entities.DEFAULT
    score_min: Ratio = pii_entities.SCORE_MIN

    @field_validator("entities")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = sorted(set(value) - pii_entities.RECOGNIZERS.keys())
        if unknown:
            raise ValueError(f"{', '.join(unknown)}: known are {', '.join(sorted(pii_entities.RECOGNIZERS))}")
        return value


class SecondModel(Section):
    """The model that is asked whether an answer may be released, and how; it must be offered to whoever is verified."""

    model: Id
    max_output_tokens: Tokens = 256
    prompt: Annotated[str, Field(max_length=32 * KIB)] = verdict.PROMPT

    @field_validator("prompt")
    @classmethod
    def _shows_both(cls, value: str) -> str:
        if any(value.count(marker) != 1 for marker in _MARKERS):
            raise ValueError("must contain {request} and {answer} once each")
        return value


class Verify(Section):
    """The bounds of verification; withheld answers that wait for a person are kept in memory, within bounds."""

    timeout_s: Seconds = 5
    waiting_max: Count = 256
    schema_bytes_max: Size = 256 * KIB
    pii: Pii = Pii()
    second_model: SecondModel | None = None
    approval_wait_s: Annotated[Number, Field(ge=0, le=DAY_S)] = 2
    approval_ttl_s: Annotated[Whole, Field(gt=0, le=30 * DAY_S)] = 3600
    kept_max: Count = 100
    kept_bytes_max: Size = 64 * MIB
