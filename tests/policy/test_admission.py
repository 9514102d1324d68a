"""The shipped admission policy, asked through the embedded engine exactly as the gateway asks."""

import copy
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import pytest

from domain.decision import Obligations, Reason
from policy.bundle import load
from policy.decision import parse
from policy.port import ADMISSION, PolicyInput
from policy.session import BundleSession

from .conftest import SHIPPED

DENIED = "bursar/admission/denied"


class Decided(NamedTuple):
    """What the shipped policy answered."""

    allow: bool
    reasons: tuple[Reason, ...]
    obligations: Obligations


Decide = Callable[[PolicyInput], Decided]


@pytest.fixture
def decide(shipped: BundleSession) -> Decide:
    return lambda facts: Decided(*parse(shipped.evaluate(ADMISSION, facts.document())))


def codes(decision: Decided) -> list[str]:
    return [reason.code for reason in decision.reasons]


@pytest.mark.parametrize(
    ("model", "endpoint"), [("sim-large", "chat"), ("sim-small", "completions"), ("sim-embed", "embeddings")]
)
def test_search_may_use_all_three_models(decide: Decide, request_facts: PolicyInput, model: str, endpoint: str) -> None:
    assert decide(request_facts._replace(model=model, endpoint=endpoint)).allow


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"team": "research"}, "model_not_offered"),
        ({"model": "gpt-9"}, "model_not_offered"),
        ({"team": "sales"}, "model_not_offered"),
        ({"org": "evil"}, "model_not_offered"),
        ({"endpoint": "embeddings"}, "endpoint_not_allowed"),
        ({"clearance": "public"}, "clearance_too_low"),
        ({"clearance": "cosmic"}, "clearance_too_low"),
        ({"freeze": True}, "frozen"),
        ({"run_depth": 5}, "run_too_deep"),
        ({"run_depth": -1}, "run_too_deep"),
        ({"risk_level": "critical"}, "risk_critical"),
        ({"risk_level": "unheard of"}, "risk_critical"),
        ({"band": "fine"}, "budget_unknown"),
    ],
)
def test_each_shipped_rule_denies_and_says_so_first(
    decide: Decide, request_facts: PolicyInput, changes: dict[str, object], code: str
) -> None:
    decision = decide(request_facts._replace(**changes))
    assert not decision.allow
    assert codes(decision)[0] == code
    assert decision.reasons[0].message.endswith(".")


def test_an_exempt_app_works_through_a_freeze(decide: Decide, request_facts: PolicyInput) -> None:
    assert decide(request_facts._replace(freeze=True, app="indexer")).allow


def test_terms_in_each_band(decide: Decide, request_facts: PolicyInput) -> None:
    ok, warn, critical, exhausted = (
        decide(request_facts._replace(band=band)) for band in ("ok", "warn", "critical", "exhausted")
    )
    assert all(decision.allow for decision in (ok, warn, critical, exhausted))
    assert [d.obligations.shrink_to_fit for d in (ok, warn, critical, exhausted)] == [False, True, True, True]
    assert [d.obligations.max_output_tokens for d in (ok, warn, critical, exhausted)] == [4096, 4096, 512, 512]
    assert [d.obligations.priority for d in (ok, warn, critical, exhausted)] == [10, 10, 20, 20]
    for decision in (ok, warn, critical, exhausted):
        assert decision.obligations.fallback_models == ("sim-small",)
        assert decision.obligations.min_output_tokens == 16
        assert decision.obligations.cache_domain == "team"


def test_tools_are_blocked_by_the_row_and_by_high_risk(decide: Decide, request_facts: PolicyInput) -> None:
    asked = request_facts._replace(tools=("browser", "search", "shell"))
    assert decide(asked).obligations.blocked_tools == ("shell",)
    risky = decide(asked._replace(risk_level="high")).obligations
    assert risky.blocked_tools == ("browser", "shell")
    assert risky.verify == ("tool_calls",)


def test_tools_that_nobody_registered_are_blocked(decide: Decide, request_facts: PolicyInput) -> None:
    asked = request_facts._replace(tools=("clock", "gizmo", "tickets/delete", "tickets/read"))
    assert decide(asked).obligations.blocked_tools == ("gizmo", "tickets/delete")


def test_every_tool_of_a_long_list_may_be_blocked(decide: Decide, request_facts: PolicyInput) -> None:
    names = tuple(f"gizmo-{number}" for number in range(256))
    assert decide(request_facts._replace(tools=names)).obligations.blocked_tools == names


def test_rising_risk_lowers_the_cap_and_asks_for_checks(decide: Decide, request_facts: PolicyInput) -> None:
    asked = request_facts._replace(tools=("browser",))
    normal, elevated, high = (
        decide(asked._replace(risk_level=level)).obligations for level in ("normal", "elevated", "high")
    )
    assert [each.max_output_tokens for each in (normal, elevated, high)] == [4096, 3072, 2048]
    assert [each.verify for each in (normal, elevated, high)] == [(), ("tool_calls",), ("tool_calls",)]
    assert [each.blocked_tools for each in (normal, elevated, high)] == [(), (), ("browser",)]
    assert [each.sample_trace for each in (normal, elevated, high)] == [None, 0.1, 1]


def test_a_cap_is_not_lowered_where_there_is_none(decide: Decide, request_facts: PolicyInput) -> None:
    asked = request_facts._replace(model="sim-embed", endpoint="embeddings", risk_level="high")
    assert decide(asked).obligations.max_output_tokens is None


def test_a_name_with_quotes_and_controls_is_compared_whole(decide: Decide, request_facts: PolicyInput) -> None:
    odd = ('clock"', "clock\\", "cl\nock", "clock\0", "clöck")
    assert decide(request_facts._replace(tools=(*odd, "clock"))).obligations.blocked_tools == odd
    assert codes(decide(request_facts._replace(team="search\0x"))) == ["model_not_offered"]
    assert codes(decide(request_facts._replace(org='acme","team":"search'))) == ["model_not_offered"]


@pytest.mark.parametrize(
    "path",
    [
        "principal", "principal.org", "principal.team", "principal.app", "principal.clearance",
        "intent", "intent.model", "intent.endpoint", "intent.tools", "intent.run", "intent.run.depth",
        "budget", "budget.band", "risk", "risk.level", "env", "env.freeze",
    ],
)  # fmt: skip
def test_a_missing_fact_denies(shipped: BundleSession, request_facts: PolicyInput, path: str) -> None:
    document = copy.deepcopy(request_facts.document())
    *parents, last = path.split(".")
    owner = document
    for name in parents:
        owner = owner[name]
    del owner[last]
    allow, reasons, _ = parse(shipped.evaluate(ADMISSION, document))
    assert not allow
    assert reasons


@pytest.mark.parametrize("path", ["tools", "depth"])
@pytest.mark.parametrize("value", [None, True, "0", {}])
def test_a_fact_of_the_wrong_type_denies(
    shipped: BundleSession, request_facts: PolicyInput, path: str, value: object
) -> None:
    document = request_facts.document()
    owner = document["intent"] if path == "tools" else document["intent"]["run"]
    owner[path] = value
    assert not parse(shipped.evaluate(ADMISSION, document))[0]


def test_an_empty_input_denies(shipped: BundleSession) -> None:
    allow, reasons, _ = parse(shipped.evaluate(ADMISSION, {}))
    assert not allow
    assert reasons[0].code == "model_not_offered"


def test_what_is_granted_and_what_is_denied_exclude_each_other() -> None:
    """The facts stand twice in the rules: in one body for speed, and one by one for their reasons."""
    session = BundleSession(load(SHIPPED), [ADMISSION, DENIED])
    told = []
    for document in every_pairing():
        decision, denied = session.evaluate(ADMISSION, document), session.evaluate(DENIED, document)
        assert decision["allow"] == (denied == {}), document
        assert {reason["code"]: reason["message"] for reason in decision["reasons"]} == denied, document
        told.append(decision["allow"])
    assert len(told) == 1296
    assert any(told)


def every_pairing() -> list[dict[str, object]]:
    """Inputs of every pairing of these facts, good, bad and missing."""
    pairings = product(
        ("search", "research", None),
        ("internal", "public"),
        ("chat", "embeddings", None),
        ([], ["shell", "clock"], "shell"),
        (0, 9, None),
        ("critical", "none"),
        ("normal", "high", "critical", None),
    )
    return [
        {
            "principal": without_none(org="acme", team=team, app="web", clearance=clearance),
            "intent": without_none(endpoint=endpoint, model="sim-large", tools=tools, run=without_none(depth=depth)),
            "budget": {"band": band},
            "risk": without_none(level=level),
            "env": {"freeze": False},
        }
        for team, clearance, endpoint, tools, depth, band, level in pairings
    ]


def without_none(**facts: object) -> dict[str, object]:
    return {name: fact for name, fact in facts.items() if fact is not None}
