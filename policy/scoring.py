"""The scoring of risk: what signals weigh, how fast a score fades and where levels begin and end.

It is data of the bundle, the value of its entry point `bursar/risk/scoring`.
"""

from dataclasses import dataclass
from typing import Any

from policy.port import SCORING, Engine, EvaluationError, Undefined

SIGNALS = (
    "policy_violation",
    "tool_blocked",
    "verification_failed",
    "upstream_error",
    "spend_anomaly",
    "rollback",
    "quality_failed",
)
LEVELS = ("normal", "elevated", "high", "critical")
HALF_LIFE_S_MAX = 30 * 86_400
DWELL_S_MAX = 30 * 86_400
WEIGHT_MILLI_MAX = 1_000_000
SCORE_MILLI_MAX = 1_000_000_000
_RAISED = LEVELS[1:]
_FIELDS = ("half_life_s", "weights_milli", "rises_at_milli", "falls_at_milli", "dwell_s", "score_max_milli")


class MalformedScoring(EvaluationError):
    """The value of the entry point is not a scoring; names the field, safe to show to the bundle's author."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """Weights per signal in the order of SIGNALS, and thresholds of the levels above `normal`; scores are in milli.

    A score halves every `half_life_s`. A level begins as soon as the score is at `rises_at_milli`, and ends when it has
    been under `falls_at_milli` for `dwell_s`.
    """

    half_life_s: int
    weights_milli: tuple[int, ...]
    rises_at_milli: tuple[int, ...]
    falls_at_milli: tuple[int, ...]
    dwell_s: int
    score_max_milli: int

    def document(self) -> dict[str, Any]:
        """The value that `parse_scoring` reads as this."""
        return {
            "half_life_s": self.half_life_s,
            "weights_milli": dict(zip(SIGNALS, self.weights_milli, strict=True)),
            "rises_at_milli": dict(zip(_RAISED, self.rises_at_milli, strict=True)),
            "falls_at_milli": dict(zip(_RAISED, self.falls_at_milli, strict=True)),
            "dwell_s": self.dwell_s,
            "score_max_milli": self.score_max_milli,
        }


async def scoring_of(engine: Engine) -> Scoring | None:
    """The scoring of the bundle that an engine serves, None where it has none; raises EvaluationError or its kinds."""
    try:
        answer = await engine.evaluate(SCORING, b"{}")
    except Undefined:
        return None
    return parse_scoring(answer.value)


def parse_scoring(raw: object) -> Scoring:
    """Read an engine's raw value strictly; raises MalformedScoring at the first thing out of form."""
    _require_names("the scoring", raw, _FIELDS)
    assert isinstance(raw, dict)
    score_max = _count("score_max_milli", raw["score_max_milli"], 1, SCORE_MILLI_MAX)
    scoring = Scoring(
        _count("half_life_s", raw["half_life_s"], 1, HALF_LIFE_S_MAX),
        _counts("weights_milli", raw["weights_milli"], SIGNALS, 0, WEIGHT_MILLI_MAX),
        _counts("rises_at_milli", raw["rises_at_milli"], _RAISED, 1, score_max),
        _counts("falls_at_milli", raw["falls_at_milli"], _RAISED, 1, score_max),
        _count("dwell_s", raw["dwell_s"], 0, DWELL_S_MAX),
        score_max,
    )
    _require_order(scoring)
    return scoring


def _require_order(scoring: Scoring) -> None:
    rises, falls = scoring.rises_at_milli, scoring.falls_at_milli
    for at, level in enumerate(_RAISED):
        if at and rises[at] <= rises[at - 1]:
            raise MalformedScoring(f"rises_at_milli.{level} must be over that of {_RAISED[at - 1]}, {rises[at - 1]}")
        if at and falls[at] < falls[at - 1]:
            raise MalformedScoring(f"falls_at_milli.{level} must not be under that of {_RAISED[at - 1]}")
        if falls[at] >= rises[at]:
            raise MalformedScoring(f"falls_at_milli.{level} must be under rises_at_milli.{level}, {rises[at]}")


def _require_names(what: str, raw: object, names: tuple[str, ...]) -> None:
    if not isinstance(raw, dict):
        raise MalformedScoring(f"{what} must be an object with {', '.join(names)}")
    for name in names:
        if name not in raw:
            raise MalformedScoring(f"{what} lacks {name}")
    for name in raw:
        if name not in names:
            raise MalformedScoring(f"{what} has an unknown {name!r:.80}; it has exactly {', '.join(names)}")


def _counts(field: str, raw: object, names: tuple[str, ...], least: int, most: int) -> tuple[int, ...]:
    _require_names(field, raw, names)
    assert isinstance(raw, dict)
    return tuple(_count(f"{field}.{name}", raw[name], least, most) for name in names)


def _count(field: str, value: object, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise MalformedScoring(f"{field} must be an integer from {least} to {most}")
    return value
