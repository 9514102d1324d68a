"""The shipped decisions through the embedded engine: what allows, and that no missing or mistyped fact ever does."""

import copy
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from policy.bundle import load
from policy.decision import parse
from policy.port import ADMISSION, CHANGE, LAUNCH, RELEASE, SCORING, TOOLS, EvaluationError, PolicyInput
from policy.scoring import parse_scoring
from policy.session import BundleSession
from tests.opa_server import binary
from tests.policy.conftest import SHIPPED


@pytest.fixture(scope="module")
def shipped() -> BundleSession:
    return BundleSession(load(SHIPPED))


AT = {"weekday": 1, "minute": 600, "s": 1_800_000_000}
HEADROOM = {"budget": 900, "risk": 900, "error_budget": 900, "overall": 900}
SHOWN = {"passed": True, "samples": 5_000, "gain_permille_low": 20}
PROD = {"name": "prod", "freeze": False}
NORMAL = {"level": "normal"}

ALLOWED: dict[str, dict[str, Any]] = {
    ADMISSION: PolicyInput("acme", "search", "web", ("dev",), "internal", "chat", "sim-large", ("search",)).document(),
    TOOLS: {
        "principal": {"org": "acme", "team": "search", "app": "web", "roles": ["dev"], "clearance": "internal"},
        "tool": {"name": "read", "server": "tickets", "kind": "mcp"},
        "phase": "called",
        "risk": NORMAL,
        "env": PROD,
    },
    CHANGE: {
        "change": {
            "id": "c-1",
            "kind": "config",
            "stage": "canary",
            "target": "batching",
            "reversible": True,
            "blast_radius": {"requests_permille": 50, "teams": 1},
            "evidence": {"static": SHOWN, "simulate": SHOWN, "replay": SHOWN},
        },
        "loop": {
            "id": "loop-1",
            "owner": "platform",
            "remaining": {"gpu_us": 1_000, "list_cost_nusd": 1_000},
            "asked": {"gpu_us": 1_000, "list_cost_nusd": 10},
        },
        "headroom": HEADROOM,
        "risk": NORMAL,
        "env": PROD,
        "at": AT,
    },
    LAUNCH: {"target": {"kind": "model", "id": "sim-large"}, "env": {"name": "demo"}, "at": AT},
    RELEASE: {
        "release": {"id": "r-1", "team": "search", "app": "web"},
        "env": PROD,
        "headroom": HEADROOM,
        "slos": [
            {"id": "ttft", "remaining_permille": 900, "fast_burn_milli": 0, "slow_burn_milli": 0, "state": "ok"},
        ],
        "risk": NORMAL,
        "at": AT,
    },
}
# What a decision does not turn on; the launch in the demo needs no evidence, and of an unknown environment all of it.
IDLE: dict[str, set[tuple[str | int, ...]]] = {
    ADMISSION: {
        ("principal", "roles"), ("principal", "roles", 0), ("intent", "stream"), ("intent", "run", "steps"),
        ("intent", "tools", 0), ("budget", "worst"), ("budget", "per_resource"), ("env", "name"),
    },
    TOOLS: {("principal", "roles"), ("principal", "roles", 0), ("env", "name")},
    CHANGE: set(),
    LAUNCH: {("at", "weekday"), ("at", "minute")},
    RELEASE: {("slos", 0)},
}  # fmt: skip
GATES = tuple(ALLOWED)

Path = tuple[str | int, ...]


def paths(value: object, at: Path = ()) -> Iterator[Path]:
    """Every place in a document but its root."""
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in below:
        yield (*at, name)
        yield from paths(item, (*at, name))


def deciding(entry: str) -> list[Path]:
    return [path for path in paths(ALLOWED[entry]) if path not in IDLE[entry]]


def lacking(entry: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The allowed input without one of its facts, for each."""
    for path in deciding(entry):
        document = copy.deepcopy(ALLOWED[entry])
        del owner(document, path)[path[-1]]
        yield path, document


def mistyped(entry: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The allowed input with one of its facts of another type, for each fact and type."""
    for path in deciding(entry):
        for wrong in (None, 7, "7", "", [], {}, [7], {"x": 7}):
            document = copy.deepcopy(ALLOWED[entry])
            holder = owner(document, path)
            if type(wrong) is not type(holder[path[-1]]):
                holder[path[-1]] = wrong
                yield path, document


def owner(document: Any, path: Path) -> Any:
    for name in path[:-1]:
        document = document[name]
    return document


@pytest.mark.parametrize("entry", GATES)
def test_each_decision_allows_what_it_should(shipped: BundleSession, entry: str) -> None:
    allow, reasons, _ = parse(shipped.evaluate(entry, ALLOWED[entry]))
    assert (allow, reasons) == (True, ())


@pytest.mark.parametrize("entry", GATES)
def test_each_missing_fact_denies_with_a_reason(shipped: BundleSession, entry: str) -> None:
    left = [path for path, document in lacking(entry) if not denies(shipped, entry, document)]
    assert left == []


@pytest.mark.parametrize("entry", GATES)
def test_each_fact_of_another_type_denies_with_a_reason(shipped: BundleSession, entry: str) -> None:
    cases = list(mistyped(entry))
    assert len(cases) > 30
    assert [path for path, document in cases if not denies(shipped, entry, document)] == []


def denies(session: BundleSession, entry: str, document: dict[str, Any]) -> bool:
    allow, reasons, obligations = parse(session.evaluate(entry, document))
    return not allow and len(reasons) > 0 and obligations == parse({"allow": True, "reasons": [], "obligations": {}})[2]


@pytest.mark.parametrize("entry", GATES)
def test_opa_answers_the_same_to_all_of_these(shipped: BundleSession, entry: str) -> None:
    documents = [{}, ALLOWED[entry], *(d for _, d in lacking(entry)), *(d for _, d in mistyped(entry))]
    query = f"[d | some each in input; d := data.{entry.replace('/', '.')} with input as each]"
    done = subprocess.run(
        [str(binary()), "eval", "--bundle", ".", "--stdin-input", "--format", "raw", "--strict-builtin-errors", query],
        cwd=SHIPPED,
        input=json.dumps(documents),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    answers = json.loads(done.stdout)
    assert len(answers) == len(documents)
    pairs = zip(documents, answers, strict=True)
    assert [document for document, answer in pairs if shipped.evaluate(entry, document) != answer] == []


def test_the_scoring_of_risk_is_one(shipped: BundleSession) -> None:
    scoring = parse_scoring(shipped.evaluate(SCORING, {}))
    assert scoring.score_max_milli >= scoring.rises_at_milli[-1]
    assert all(falls < rises for falls, rises in zip(scoring.falls_at_milli, scoring.rises_at_milli, strict=True))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("admission.rows", 5),
        ("admission.rows.acme.search", []),
        ("admission.rows.acme.search.*", "large"),
        ("admission.rows.acme.search.*.offers", ["sim-large"]),
        ("admission.rows.acme.search.*.run_depth_max", "9"),
        ("admission.offers.large.endpoints", ["chat"]),
        ("admission.offers.large.terms", ["large"]),
        ("budget.terms", 5),
        ("budget.terms.large.ok", 5),
        ("budget.terms.large.ok", []),
        ("budget.terms.large.ok.max_output_tokens", "4096"),
        ("budget.terms.large.ok.priority", {}),
        ("risk.models", ["sim-large"]),
        ("risk.models.sim-large", "medium"),
        ("risk.model_tiers.medium.normal", ["internal"]),
        ("risk.model_tiers.medium.normal.internal", "yes"),
    ],
)
@pytest.mark.parametrize("tools", [(), ("search",)])
def test_a_wrong_table_admits_nothing(path: str, value: object, tools: tuple[str, ...]) -> None:
    bundle = load(SHIPPED)
    data = copy.deepcopy(bundle.data)
    *parents, last = path.split(".")
    owner(data["bursar"], (*parents, last))[last] = value
    session = BundleSession(replace(bundle, data=data), [ADMISSION])
    document = PolicyInput("acme", "search", "web", (), "internal", "chat", "sim-large", tools).document()
    try:
        allow, _, _ = parse(session.evaluate(ADMISSION, document))
    except EvaluationError:
        allow = False
    assert not allow


@pytest.mark.parametrize(
    ("kind", "name", "env", "code"),
    [
        ("tool", "browser", "prod", "evidence_missing"),
        ("tool", "gizmo", "demo", "target_unknown"),
        ("model", "gpt-9", "demo", "target_unknown"),
        ("model", "sim-small", "staging", "evidence_missing"),
        ("model", "sim-large", "prod", "mitigation_missing"),
    ],
)
def test_a_launch_without_its_evidence_says_what_is_missing(
    shipped: BundleSession, kind: str, name: str, env: str, code: str
) -> None:
    asked = {"target": {"kind": kind, "id": name}, "env": {"name": env}, "at": AT}
    allow, reasons, _ = parse(shipped.evaluate(LAUNCH, asked))
    assert not allow
    assert code in [reason.code for reason in reasons]
