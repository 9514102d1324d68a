"""Decisions are read strictly: anything out of form is malformed, never guessed."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.decision import Obligations, Reason
from policy.decision import parse
from policy.port import MalformedDecision

FULL = {
    "max_input_tokens": 1000,
    "max_output_tokens": 100,
    "min_output_tokens": 16,
    "shrink_to_fit": True,
    "fallback_models": ["small"],
    "priority": 5,
    "blocked_tools": ["shell"],
    "verify": ["tool_calls"],
    "cache_domain": "org",
    "queue_ms_max": 250,
    "sample_trace": 0.5,
}


def decision(**obligations: object) -> dict[str, Any]:
    return {"allow": True, "reasons": [], "obligations": obligations}


def test_every_obligation_is_read() -> None:
    allow, reasons, obligations = parse(decision(**FULL))
    assert allow
    assert reasons == ()
    assert obligations == Obligations(
        max_input_tokens=1000,
        max_output_tokens=100,
        min_output_tokens=16,
        shrink_to_fit=True,
        fallback_models=("small",),
        priority=5,
        blocked_tools=("shell",),
        verify=("tool_calls",),
        cache_domain="org",
        queue_ms_max=250,
        sample_trace=0.5,
    )


def test_obligations_may_be_left_out() -> None:
    assert parse(decision())[2] == Obligations()


def test_reasons_keep_their_order() -> None:
    reasons = [{"code": "b", "message": "B."}, {"code": "a", "message": "A."}]
    assert parse({"allow": False, "reasons": reasons, "obligations": {}})[1] == (Reason("b", "B."), Reason("a", "A."))


@pytest.mark.parametrize(
    "raw",
    [
        None,
        [],
        {},
        {"allow": True},
        {"allow": True, "reasons": []},
        {"allow": True, "reasons": [], "obligations": {}, "extra": 1},
        {"allow": 1, "reasons": [], "obligations": {}},
        {"allow": "true", "reasons": [], "obligations": {}},
        {"allow": None, "reasons": [], "obligations": {}},
        {"allow": True, "reasons": {}, "obligations": {}},
        {"allow": True, "reasons": ["no"], "obligations": {}},
        {"allow": True, "reasons": [{"code": "a"}], "obligations": {}},
        {"allow": True, "reasons": [{"code": "", "message": "m"}], "obligations": {}},
        {"allow": True, "reasons": [{"code": "a", "message": 1}], "obligations": {}},
        {"allow": True, "reasons": [{"code": "a", "message": "m"}] * 513, "obligations": {}},
        {"allow": True, "reasons": [], "obligations": []},
    ],
)
def test_a_decision_out_of_form_is_malformed(raw: Any) -> None:
    with pytest.raises(MalformedDecision):
        parse(raw)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_output_token", 5),
        *[(name, value) for name in ("max_input_tokens", "max_output_tokens", "min_output_tokens", "priority",
                                     "queue_ms_max") for value in (-1, 1.0, True, "5", None, 2**60)],
        *[("shrink_to_fit", value) for value in (0, "yes", None)],
        *[(name, value) for name in ("fallback_models", "blocked_tools", "verify")
          for value in ("shell", [1], [""], {}, None, ["x"] * 513, ["x" * 2000])],
        *[("cache_domain", value) for value in ("everyone", "", None, ["team"])],
        *[("sample_trace", value) for value in (-0.1, 1.1, True, "1", None, float("nan"))],
    ],
)  # fmt: skip
def test_an_obligation_out_of_form_is_malformed(name: str, value: object) -> None:
    with pytest.raises(MalformedDecision, match=name):
        parse(decision(**{name: value}))


def test_a_cap_under_the_floor_is_malformed() -> None:
    with pytest.raises(MalformedDecision, match="under min_output_tokens"):
        parse(decision(max_output_tokens=8, min_output_tokens=16))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries(
        {
            "allow": JSON | st.booleans(),
            "reasons": JSON,
            "obligations": st.dictionaries(st.sampled_from(list(FULL)), JSON),
        }
    )
)
def test_any_json_is_a_decision_or_malformed(raw: dict[str, Any]) -> None:
    try:
        allow, _, obligations = parse(raw)
    except MalformedDecision:
        return
    assert allow in (True, False)
    assert obligations.min_output_tokens >= 0
