"""Scorings for the tests of risk."""

from typing import Any

from policy.scoring import LEVELS, SIGNALS, Scoring, parse_scoring


def document(**changes: Any) -> dict[str, Any]:
    """A scoring in which every signal weighs 1, the levels begin at 5, 10 and 20, and a score halves in 100 s."""
    whole = {
        "half_life_s": 100,
        "weights_milli": dict.fromkeys(SIGNALS, 1_000),
        "rises_at_milli": dict(zip(LEVELS[1:], (5_000, 10_000, 20_000), strict=True)),
        "falls_at_milli": dict(zip(LEVELS[1:], (2_500, 5_000, 10_000), strict=True)),
        "dwell_s": 60,
        "score_max_milli": 40_000,
    }
    return whole | changes


def scoring(**changes: Any) -> Scoring:
    return parse_scoring(document(**changes))
