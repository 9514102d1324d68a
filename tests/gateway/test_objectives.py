"""SLOs of the configuration: what one says, and each way in which it could say what is never kept or never alarms."""

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.objectives import Slo, seconds
from ledger.slo import Alert, Objective

DAY_S = 86_400
VALID: dict[str, Any] = {"id": "chat-up", "owner": "search", "scope": {"app": "chat"}, "kind": "availability"}


def slo(**values: Any) -> Slo:
    return Slo.model_validate({**VALID, "objective": 0.999, **values})


def test_the_defaults_are_those_of_the_workbook() -> None:
    assert slo().target == Objective(
        "chat-up",
        "search",
        (("app", "chat"),),
        "availability",
        objective_ppm=999_000,
        window_s=28 * DAY_S,
        fast=Alert(3_600, 300, 14_400),
        slow=Alert(21_600, 1_800, 6_000),
        threshold_us=0,
        events_min=1,
    )
    assert slo().frozen is False


def test_all_of_it_can_be_said() -> None:
    said = slo(
        scope={"model": "small", "app": "chat", "team": "search", "org": "acme"},
        kind="inter_token",
        threshold_ms=12.5,
        objective=0.9,
        window="2w",
        fast={"long": "30m", "short": "2m", "burn": 8},
        slow={"burn": 2.5},
        events_min=100,
        frozen=True,
    )
    assert said.target == Objective(
        "chat-up",
        "search",
        (("org", "acme"), ("team", "search"), ("app", "chat"), ("model", "small")),
        "inter_token",
        objective_ppm=900_000,
        window_s=14 * DAY_S,
        fast=Alert(1_800, 120, 8_000),
        slow=Alert(21_600, 1_800, 2_500),
        threshold_us=12_500,
        events_min=100,
    )


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        ({"kind": "ttft"}, "threshold_ms", "is required: ttft is a time"),
        ({"threshold_ms": 5}, "threshold_ms", "does not belong to availability"),
        ({"kind": "e2e", "threshold_ms": 0}, "threshold_ms", "greater than or equal to 0.01"),
        ({"kind": "e2e", "threshold_ms": True}, "threshold_ms", "must be a number"),
        ({"kind": "latency"}, "kind", "'availability', 'ttft', 'inter_token' or 'e2e'"),
        ({"objective": 1}, "objective", "less than 1"),
        ({"objective": 0}, "objective", "greater than 0"),
        ({"objective": 99.9}, "objective", "less than 1"),
        ({"objective": 0.9999999}, "objective", "six decimals at most"),
        ({"objective": 0.9999999999999}, "objective", "six decimals at most"),
        ({"objective": 4e-13}, "objective", "six decimals at most"),
        ({"objective": float("nan")}, "objective", "finite"),
        ({"window": "28"}, "window", "must be a number and a unit: 5m, 6h, 28d or 4w"),
        ({"window": "0d"}, "window", "must be a number and a unit"),
        ({"window": "30s"}, "window", "must be a number and a unit"),
        ({"window": "400d"}, "window", "must be 366d at most"),
        ({"window": "5h"}, "slow", "its long window, 6h, must not be longer than the SLO's own, 5h"),
        ({"fast": {"long": "5m"}}, "fast.short", "must be shorter than long, 5m"),
        ({"fast": {"short": "1h"}}, "fast.short", "must be shorter than long, 1h"),
        ({"slow": {"burn": 0.5}}, "slow.burn", "greater than or equal to 1"),
        ({"slow": {"burns": 6}}, "slow.burns", "not permitted"),
        ({"objective": 0.9}, "fast", "a burn of 14.4 is never reached under an objective of 0.9"),
        ({"objective": 0.9}, "fast", "were every request bad, it would be 10; set a lower fast.burn"),
        ({"objective": 0.8, "fast": {"burn": 4}}, "slow", "a burn of 6 is never reached under an objective of 0.8"),
        ({"scope": {"app": "*"}}, "scope.app", "must name one value"),
        ({"scope": {"user": "bob"}}, "scope.user", "not permitted"),
        ({"events_min": 0}, "events_min", "greater than 0"),
        ({"percentile": 99}, "percentile", "not permitted"),
    ],
)
def test_what_cannot_be_kept_or_cannot_alarm_is_refused_by_field(
    values: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        slo(**values)
    said = {".".join(map(str, each["loc"])): each["msg"] for each in refused.value.errors()}
    assert message in said[field], said


@pytest.mark.parametrize("field", ["id", "owner", "scope", "kind", "objective"])
def test_what_has_no_default_must_be_said(field: str) -> None:
    whole = {**VALID, "objective": 0.999}
    del whole[field]
    with pytest.raises(ValidationError, match=rf"(?m)^{field}$"):
        Slo.model_validate(whole)


def test_a_burn_that_only_all_bad_events_reach_is_allowed() -> None:
    assert slo(objective=0.9, fast={"burn": 10}).target.fast.burn_milli == 10_000


@pytest.mark.parametrize(
    ("text", "length_s"), [("1m", 60), ("90m", 5_400), ("6h", 21_600), ("1d", DAY_S), ("4w", 28 * DAY_S)]
)
def test_durations(text: str, length_s: int) -> None:
    assert seconds(text) == length_s
