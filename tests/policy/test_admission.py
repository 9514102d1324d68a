"""The shipped admission policy, asked through the embedded engine exactly as the gateway asks."""

import copy

import pytest

from domain.decision import Decision
from policy.decider import Decider
from policy.decision import parse
from policy.embedded import EmbeddedEngine
from policy.port import PolicyInput


@pytest.fixture
def decider(shipped: EmbeddedEngine) -> Decider:
    return Decider(shipped)


def codes(decision: Decision) -> list[str]:
    return [reason.code for reason in decision.reasons]


@pytest.mark.parametrize(
    ("model", "endpoint"), [("sim-large", "chat"), ("sim-small", "completions"), ("sim-embed", "embeddings")]
)
def test_search_may_use_all_three_models(
    decider: Decider, request_facts: PolicyInput, model: str, endpoint: str
) -> None:
    assert decider.decide(request_facts._replace(model=model, endpoint=endpoint)).allow


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
    decider: Decider, request_facts: PolicyInput, changes: dict[str, object], code: str
) -> None:
    decision = decider.decide(request_facts._replace(**changes))
    assert not decision.allow
    assert codes(decision)[0] == code
    assert decision.reasons[0].message.endswith(".")


def test_an_exempt_app_works_through_a_freeze(decider: Decider, request_facts: PolicyInput) -> None:
    assert decider.decide(request_facts._replace(freeze=True, app="indexer")).allow


def test_terms_in_each_band(decider: Decider, request_facts: PolicyInput) -> None:
    ok, warn, critical, exhausted = (
        decider.decide(request_facts._replace(band=band)) for band in ("ok", "warn", "critical", "exhausted")
    )
    assert all(decision.allow for decision in (ok, warn, critical, exhausted))
    assert [d.obligations.shrink_to_fit for d in (ok, warn, critical, exhausted)] == [False, True, True, True]
    assert [d.obligations.max_output_tokens for d in (ok, warn, critical, exhausted)] == [4096, 4096, 512, 512]
    assert [d.obligations.priority for d in (ok, warn, critical, exhausted)] == [10, 10, 20, 20]
    for decision in (ok, warn, critical, exhausted):
        assert decision.obligations.fallback_models == ("sim-small",)
        assert decision.obligations.min_output_tokens == 16
        assert decision.obligations.cache_domain == "team"


def test_tools_are_blocked_by_the_row_and_by_high_risk(decider: Decider, request_facts: PolicyInput) -> None:
    asked = request_facts._replace(tools=("browser", "search", "shell"))
    assert decider.decide(asked).obligations.blocked_tools == ("shell",)
    risky = decider.decide(asked._replace(risk_level="high")).obligations
    assert risky.blocked_tools == ("browser", "shell")
    assert risky.verify == ("tool_calls",)


def test_a_name_with_quotes_and_controls_is_compared_whole(decider: Decider, request_facts: PolicyInput) -> None:
    odd = request_facts._replace(tools=('shell"', "shell\\", "sh\nell", "shell\0", "shéll", "shell"))
    assert decider.decide(odd).obligations.blocked_tools == ("shell",)
    assert codes(decider.decide(request_facts._replace(team="search\0x"))) == ["model_not_offered"]
    assert codes(decider.decide(request_facts._replace(org='acme","team":"search'))) == ["model_not_offered"]


@pytest.mark.parametrize(
    "path",
    [
        "principal", "principal.org", "principal.team", "principal.app", "principal.clearance",
        "intent", "intent.model", "intent.endpoint", "intent.tools", "intent.run", "intent.run.depth",
        "budget", "budget.band", "risk", "risk.level", "env", "env.freeze",
    ],
)  # fmt: skip
def test_a_missing_fact_denies(shipped: EmbeddedEngine, request_facts: PolicyInput, path: str) -> None:
    document = copy.deepcopy(request_facts.document())
    *parents, last = path.split(".")
    owner = document
    for name in parents:
        owner = owner[name]
    del owner[last]
    allow, reasons, _ = parse(shipped.evaluate(document))
    assert not allow
    assert reasons


@pytest.mark.parametrize("path", ["tools", "depth"])
@pytest.mark.parametrize("value", [None, True, "0", {}])
def test_a_fact_of_the_wrong_type_denies(
    shipped: EmbeddedEngine, request_facts: PolicyInput, path: str, value: object
) -> None:
    document = request_facts.document()
    owner = document["intent"] if path == "tools" else document["intent"]["run"]
    owner[path] = value
    assert not parse(shipped.evaluate(document))[0]


def test_an_empty_input_denies(shipped: EmbeddedEngine) -> None:
    allow, reasons, _ = parse(shipped.evaluate({}))
    assert not allow
    assert reasons[0].code == "model_not_offered"
