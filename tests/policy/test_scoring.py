"""A scoring is read strictly, and what is wrong with one names the field."""

import json
from pathlib import Path
from typing import Any

import pytest

from policy.embedded import EmbeddedEngine
from policy.port import EvaluationError
from policy.scoring import HALF_LIFE_S_MAX, LEVELS, SIGNALS, MalformedScoring, Scoring, parse_scoring, scoring_of
from tests.policy.scorings import document, scoring

RISES = document()["rises_at_milli"]
FALLS = document()["falls_at_milli"]
WEIGHTS = document()["weights_milli"]


def test_a_scoring_is_what_its_document_says() -> None:
    read = scoring(weights_milli={name: at for at, name in enumerate(SIGNALS)})
    assert read.weights_milli == tuple(range(len(SIGNALS)))
    assert read.rises_at_milli == (5_000, 10_000, 20_000)
    assert read.falls_at_milli == (2_500, 5_000, 10_000)
    assert (read.half_life_s, read.dwell_s, read.score_max_milli) == (100, 60, 40_000)
    assert parse_scoring(read.document()) == read


def test_the_order_of_the_fields_does_not_matter() -> None:
    backwards = dict(reversed(document(weights_milli=dict(reversed(WEIGHTS.items()))).items()))
    assert parse_scoring(backwards) == scoring()


def without(whole: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in whole.items() if key != name}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (None, "the scoring must be an object"),
        ([], "the scoring must be an object"),
        (without(document(), "dwell_s"), "the scoring lacks dwell_s"),
        (document(color="red"), "unknown 'color'"),
        (document(half_life_s=0), f"half_life_s must be an integer from 1 to {HALF_LIFE_S_MAX}"),
        (document(half_life_s=60.0), "half_life_s must be an integer"),
        (document(half_life_s=True), "half_life_s must be an integer"),
        (document(half_life_s=HALF_LIFE_S_MAX + 1), "half_life_s must be"),
        (document(dwell_s=-1), "dwell_s must be"),
        (document(dwell_s="60"), "dwell_s must be"),
        (document(score_max_milli=0), "score_max_milli must be"),
        (document(score_max_milli=19_999), "rises_at_milli.critical must be an integer from 1 to 19999"),
        (document(weights_milli=[1]), "weights_milli must be an object"),
        (document(weights_milli=without(WEIGHTS, "rollback")), "weights_milli lacks rollback"),
        (document(weights_milli=WEIGHTS | {"rolback": 1}), "weights_milli has an unknown 'rolback'"),
        (document(weights_milli=WEIGHTS | {"rollback": -1}), "weights_milli.rollback must be"),
        (document(weights_milli=WEIGHTS | {"rollback": None}), "weights_milli.rollback must be"),
        (document(rises_at_milli=without(RISES, "high")), "rises_at_milli lacks high"),
        (document(rises_at_milli=RISES | {"normal": 1}), "rises_at_milli has an unknown 'normal'"),
        (document(rises_at_milli=RISES | {"high": 5_000}), "rises_at_milli.high must be over that of elevated, 5000"),
        (document(falls_at_milli=FALLS | {"high": 2_499}), "falls_at_milli.high must not be under that of elevated"),
        (document(falls_at_milli=FALLS | {"high": 10_000}), "falls_at_milli.high must be under rises_at_milli.high"),
        (document(falls_at_milli=FALLS | {"elevated": 0}), "falls_at_milli.elevated must be an integer from 1"),
    ],
)
def test_what_is_out_of_form_is_refused_by_its_field(raw: object, said: str) -> None:
    with pytest.raises(MalformedScoring, match=r"^[^\n]+$") as refused:
        parse_scoring(raw)
    assert said in str(refused.value)
    assert isinstance(refused.value, EvaluationError)


def test_there_are_four_levels_and_the_first_needs_no_threshold() -> None:
    assert LEVELS[0] == "normal"
    assert list(document()["rises_at_milli"]) == list(LEVELS[1:])


async def test_the_scoring_of_a_bundle_is_what_its_entry_point_is_worth(write_bundle) -> None:
    risk = f"package bursar.risk\n\nimport rego.v1\n\nscoring := {json.dumps(document())}\n"
    assert await asked(write_bundle({"bursar/risk/risk.rego": risk})) == scoring()
    with pytest.raises(MalformedScoring, match="half_life_s"):
        await asked(write_bundle({"bursar/risk/risk.rego": risk.replace('"half_life_s": 100', '"half_life_s": 0')}))


async def test_a_bundle_may_have_no_scoring(write_bundle) -> None:
    assert await asked(write_bundle()) is None


async def asked(root: Path) -> Scoring | None:
    engine = await EmbeddedEngine.open(root)
    try:
        return await scoring_of(engine)
    finally:
        await engine.close()
