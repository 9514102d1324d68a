"""The shipped tables fit their schemas, tables that do not are named, and the gateway's inputs fit theirs."""

import copy
import json
from typing import Any

import pytest
from jsonschema import Draft7Validator

from policy.port import PolicyInput

from .conftest import SHIPPED

PACKAGES = ("admission", "budget", "change", "launch", "release", "risk", "tools")
LEVELS = ("normal", "elevated", "high", "critical")


def schema(kind: str, name: str) -> Draft7Validator:
    text: dict[str, Any] = json.loads((SHIPPED / "schemas" / kind / f"{name}.json").read_text())
    Draft7Validator.check_schema(text)
    return Draft7Validator(text)


def table(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((SHIPPED / "bursar" / name / "data.json").read_text())
    return read


def mistakes(name: str, given: object) -> list[str]:
    return [error.json_path for error in schema("data", name).iter_errors(given)]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_shipped_tables_fit_their_schema(package: str) -> None:
    assert mistakes(package, table(package)) == []


@pytest.mark.parametrize(
    ("package", "path", "value"),
    [
        ("admission", "rows.acme.search.*.run_depth_max", "4"),
        ("admission", "rows.acme.search.*.blocked_tools", ["shell"]),
        ("admission", "offers.large.endpoints.chat", "yes"),
        ("admission", "offers.large.endpoints.speech", True),
        ("budget", "terms.large.ok", 5),
        ("budget", "terms.large.warn.max_output_tokens", -1),
        ("budget", "terms.large.warn.max_ouput_tokens", 10),
        ("risk", "models.sim-large.tier", "huge"),
        ("risk", "models.sim-large", "medium"),
        ("risk", "restrictions.normal", {}),
        ("risk", "restrictions.high.output_permille", 1001),
        ("risk", "restrictions.high.verify", ["secrts"]),
        ("risk", "score.half_life_s", 0),
        ("tools", "registry.search", {"tier": "low"}),
        ("tools", "unregistered", "allow"),
        ("change", "stages.canary.window", "always"),
        ("change", "stages.canary.headroom_permille_min.budget", 2.5),
        ("change", "windows.always", {}),
        ("launch", "evidence", {}),
        ("launch", "requirements.*.high", None),
        ("release", "environments.*.slos_min", True),
    ],
)
def test_a_wrong_value_is_named_by_its_path(package: str, path: str, value: object) -> None:
    given = copy.deepcopy(table(package))
    *parents, last = path.split(".")
    owner = given
    for name in parents:
        owner = owner[name]
    owner[last] = value
    (found,) = mistakes(package, given)
    assert found.replace("['", ".").replace("']", "").startswith(f"$.{parents[0] if parents else last}")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_table_that_is_missing_or_unknown_is_a_mistake(package: str) -> None:
    whole = table(package)
    for name in whole:
        assert mistakes(package, {key: value for key, value in whole.items() if key != name})
        assert mistakes(package, {**whole, name: 5})
    assert mistakes(package, {**whole, "surprise": {}})
    assert mistakes(package, [])


def test_an_entry_of_evidence_is_whole_or_a_mistake() -> None:
    entry = {
        "id": "ev-1",
        "kind": "evaluation",
        "target": {"kind": "model", "id": "sim-large"},
        "tier": "medium",
        "env": "prod",
        "by": "safety",
        "at_s": 1_800_000_000,
        "expires_at_s": 1_810_000_000,
        "reference": "case 17",
        "score_permille": 900,
    }
    launch = table("launch")
    assert mistakes("launch", {**launch, "evidence": [entry]}) == []
    for name in entry.keys() - {"score_permille"}:
        assert mistakes("launch", {**launch, "evidence": [{key: entry[key] for key in entry if key != name}]})


def test_names_that_the_tables_refer_to_are_there() -> None:
    admission, budget, risk, tools = (table(name) for name in ("admission", "budget", "risk", "tools"))
    assert {offer["terms"] for offer in admission["offers"].values()} == budget["terms"].keys()
    rows = [row for teams in admission["rows"].values() for apps in teams.values() for row in apps.values()]
    offered = {model for row in rows for model in row["offers"]}
    assert offered == risk["models"].keys()
    assert {name for row in rows for name in row["offers"].values()} == admission["offers"].keys()
    assert {tool for row in rows for tool in row["blocked_tools"]} <= {*tools["registry"], "*"}
    windows = table("change")["windows"].keys()
    assert {each["window"] for each in table("release")["environments"].values()} <= windows
    assert {name for stage in table("change")["stages"].values() for name in stage["window"].values()} <= windows


@pytest.mark.parametrize("level", LEVELS)
def test_what_the_gateway_asks_fits_the_schema_of_admissions(request_facts: PolicyInput, level: str) -> None:
    facts = request_facts._replace(tools=("search",), per_resource=(("tokens", "ok"),), risk_level=level)
    assert list(schema("input", "admission").iter_errors(facts.document())) == []
    assert list(schema("input", "admission").iter_errors({**facts.document(), "more": 1}))


def test_every_schema_of_an_input_refuses_an_empty_one() -> None:
    names = {path.stem for path in (SHIPPED / "schemas" / "input").iterdir()}
    assert names == {"admission", "change", "headroom", "launch", "release", "risk", "tools"}
    for name in names:
        assert list(schema("input", name).iter_errors({}))
