"""The report of privileges asks the policy itself, and lists what it grants and nobody used."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.keys import Key
from gateway.privileges import CLEARANCES, Model, Report, Tool, Unused, in_force, registered
from ledger.privileges import App, ModelUse, ToolUse, Uses
from ledger.reports import BadReport
from policy.child import Child, Outcome

DAY_S = 86_400
NOW_S = 20_000 * DAY_S
SINCE_S = NOW_S - 30 * DAY_S
SEARCH = App("acme", "search", "web")
ADMISSION = """package bursar.admission

import rego.v1

decision := {"allow": true, "reasons": [], "obligations": {"blocked_tools": ["shell"]}} if {
	some grant in data.bursar.admission.grants
	grant.team == input.principal.team
	grant.model == input.intent.model
	grant.endpoint == input.intent.endpoint
	input.principal.clearance in grant.clearances
	every role in grant.roles {
		role in input.principal.roles
	}
	input.env.freeze == false
	input.risk.level == "normal"
} else := {"allow": false, "reasons": [], "obligations": {}}
"""
TOOLS = """package bursar.tools

import rego.v1

decision := {"allow": true, "reasons": [], "obligations": {}} if {
	data.bursar.tools.registry[key]
} else := {"allow": false, "reasons": [], "obligations": {}}

key := input.tool.name if input.tool.server == ""

key := concat("/", [input.tool.server, input.tool.name]) if input.tool.server != ""
"""
GRANTS = [
    {"team": "search", "model": "small", "endpoint": "chat", "clearances": ["public", "internal"], "roles": []},
    {"team": "search", "model": "large", "endpoint": "chat", "clearances": ["internal"], "roles": ["pilot"]},
    {"team": "search", "model": "embed", "endpoint": "embeddings", "clearances": ["internal"], "roles": []},
    {"team": "ads", "model": "small", "endpoint": "chat", "clearances": ["internal"], "roles": []},
]
TABLES: dict[str, Any] = {"registry": {"search": {}, "shell": {}, "tickets/close": {}}}
MODELS = [Model("chat", "small"), Model("chat", "large"), Model("embeddings", "embed"), Model("chat", "secret")]
REGISTERED = [Tool("search", "", "function"), Tool("shell", "", "function"), Tool("close", "tickets", "mcp")]
NOTHING = Uses((), (), NOW_S - 100 * DAY_S)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    root = tmp_path_factory.mktemp("bundle")
    for package, text, tables in (("admission", ADMISSION, {"grants": GRANTS}), ("tools", TOOLS, TABLES)):
        folder = root / "bursar" / package
        folder.mkdir(parents=True)
        (folder / f"{package}.rego").write_text(text)
        (folder / "data.json").write_text(json.dumps(tables))
    with Child.of(root) as child:
        yield child


def key(key_id: str, team: str = "search", **changes: Any) -> Key:
    fields: dict[str, Any] = {"kind": "app", "org": "acme", "team": team, "app": "web", "user": "", "digest": b""}
    fields |= {"roles": (), "clearance": "internal", "created_at": NOW_S - 200 * DAY_S}
    fields |= {"expires_at": None, "revoked_at": None}
    return Key(key_id, **(fields | changes))


def model_used(model: str, days_ago: int, key_id: str = "k1", endpoint: str = "chat", app: App = SEARCH) -> ModelUse:
    return ModelUse(app, key_id, endpoint, model, NOW_S - days_ago * DAY_S)


@pytest.fixture
def unused(engine: Child) -> Callable[..., list[Unused]]:
    def report(keys: Iterable[Key], models: Iterable[ModelUse] = (), tools: Iterable[ToolUse] = ()) -> list[Unused]:
        used = Uses(tuple(models), tuple(tools), NOTHING.first_s)
        return list(Report(engine, "test", list(keys), MODELS, REGISTERED, used, SINCE_S).unused())

    return report


def named(found: list[Unused], kind: str) -> dict[str, int]:
    """Of one kind, when each was last used, in days before now; -1 is never."""
    return {each.what: (NOW_S - each.last_s) // DAY_S if each.last_s else -1 for each in found if each.kind == kind}


def test_models_that_are_granted_and_were_not_used_since_are_listed(
    unused: Callable[..., list[Unused]],
) -> None:
    found = unused([key("k1")], [model_used("small", 3)])
    assert named(found, "model") == {"embed on embeddings": -1}
    found = unused([key("k1")], [model_used("small", 31), model_used("embed", 90, endpoint="embeddings")])
    assert named(found, "model") == {"small on chat": 31, "embed on embeddings": 90}


def test_what_another_app_used_is_not_used_by_this_one(unused: Callable[..., list[Unused]]) -> None:
    other = model_used("small", 1, "k2", app=App("acme", "search", "batch"))
    assert "small on chat" in named(unused([key("k1")], [other]), "model")


def test_what_one_key_of_an_app_is_granted_and_another_used_is_used(unused: Callable[..., list[Unused]]) -> None:
    keys = [key("k1"), key("k2", roles=("pilot",))]
    assert "large on chat" in named(unused(keys), "model")
    found = unused(keys, [model_used("large", 1, "k2"), model_used("small", 1)])
    assert named(found, "model") == {"embed on embeddings": -1}


def test_tools_are_granted_by_both_entry_points_and_used_when_called(unused: Callable[..., list[Unused]]) -> None:
    offered = ToolUse(SEARCH, "search", "", "function", 0)
    found = unused([key("k1")], [model_used("small", 1)], [offered])
    assert named(found, "tool") == {"search": -1, "close of tickets": -1}
    called = [offered._replace(last_s=NOW_S - DAY_S), ToolUse(SEARCH, "close", "tickets", "mcp", NOW_S - 40 * DAY_S)]
    assert named(unused([key("k1")], [model_used("small", 1)], called), "tool") == {"close of tickets": 40}


def test_an_app_that_is_granted_no_model_is_granted_no_tool(unused: Callable[..., list[Unused]]) -> None:
    assert {each.kind for each in unused([key("k1", "nobody")])} == {"key"}


def test_keys_that_nobody_used_are_to_be_revoked(unused: Callable[..., list[Unused]]) -> None:
    found = unused([key("k1"), key("k2"), key("k3", "ads")], [model_used("small", 3), model_used("small", 31, "k2")])
    assert named(found, "key") == {"k2": 31, "k3": -1}
    assert {each.suggestion for each in found if each.kind == "key"} == {
        "bursar key revoke k2",
        "bursar key revoke k3",
    }


def test_roles_and_clearances_that_what_was_used_does_not_need_are_listed(unused: Callable[..., list[Unused]]) -> None:
    pilot = key("k1", roles=("pilot", "admin"))
    assert named(unused([pilot], [model_used("large", 3)]), "role") == {"admin": -1}
    assert named(unused([pilot], [model_used("small", 3)]), "role") == {"pilot": -1, "admin": -1}
    [clearance] = [each for each in unused([pilot], [model_used("small", 3)]) if each.kind == "clearance"]
    assert (clearance.what, clearance.suggestion) == ("internal", "make the key k1 anew with clearance public")
    assert named(unused([pilot], [model_used("large", 3)]), "clearance") == {}
    assert named(unused([key("k1", clearance="own-words")], [model_used("small", 3)]), "clearance") == {}


def test_a_grant_is_as_old_as_the_key_or_the_ledger(unused: Callable[..., list[Unused]]) -> None:
    [old, new] = [key("k1"), key("k2", "ads", created_at=NOW_S - 5 * DAY_S)]
    since = {each.team: each.since_s for each in unused([old, new]) if each.kind == "model"}
    assert since == {"search": NOTHING.first_s, "ads": NOW_S - 5 * DAY_S}


def test_nothing_is_unused_where_all_is_used(unused: Callable[..., list[Unused]]) -> None:
    tools = [ToolUse(App("acme", "ads", "web"), tool.name, tool.server, tool.kind, NOW_S) for tool in REGISTERED]
    assert unused([key("k1", "ads")], [model_used("small", 1, app=App("acme", "ads", "web"))], tools) == []


def test_only_keys_of_apps_that_open_something_are_looked_at() -> None:
    keys = [
        *(key("k1"), key("k2", revoked_at=NOW_S), key("k3", expires_at=NOW_S), key("k4", expires_at=NOW_S + 1)),
        *(key("k5", kind="admin"), key("k6", kind="ledger", orgs=("acme",))),
    ]
    assert [each.key_id for each in in_force(keys, NOW_S)] == ["k1", "k4"]


def test_too_many_questions_are_refused_and_the_same_ones_are_asked_once() -> None:
    class Counting:
        entries = ("bursar/admission/decision",)
        asked = 0

        def outcomes(self, entry: str, inputs: Iterable[bytes], /) -> Iterator[Outcome]:
            for _ in inputs:
                self.asked += 1
                yield Outcome({"allow": False})

    engine = Counting()
    same = [key(f"k{number}") for number in range(50)]
    assert len(list(Report(engine, "test", same, MODELS, [], NOTHING, SINCE_S).unused())) == 50
    assert engine.asked == len(MODELS)
    many = [Model("chat", f"m{number}") for number in range(60_000)]
    teams = [key(f"k{number}", f"team-{number}") for number in range(4)]
    with pytest.raises(BadReport, match="--team"):
        list(Report(engine, "test", teams, many, [], NOTHING, SINCE_S).unused())


@pytest.mark.parametrize("value", [None, [], {"allow": 1}, {"allow": "true"}, {}])
def test_what_is_no_decision_grants_nothing(value: object) -> None:
    class Odd:
        entries = ("bursar/admission/decision",)

        def outcomes(self, entry: str, inputs: Iterable[bytes], /) -> Iterator[Outcome]:
            return (Outcome(value) for _ in inputs)

    assert {each.kind for each in Report(Odd(), "t", [key("k1")], MODELS, [], NOTHING, SINCE_S).unused()} == {"key"}


def test_registered_tools_are_read_from_the_tables_of_the_bundle() -> None:
    assert registered({"bursar": {"tools": TABLES}}) == REGISTERED
    odd: list[dict[str, Any]] = [{}, {"bursar": []}, {"bursar": {"tools": {"registry": 5}}}]
    for tables in odd:
        assert registered(tables) == []


def test_clearances_are_those_of_the_shipped_bundle() -> None:
    tables = json.loads((Path(__file__).parents[2] / "rego" / "bursar" / "risk" / "data.json").read_text())
    named_there = {name for tier in tables["model_tiers"].values() for level in tier.values() for name in level}
    assert named_there == set(CLEARANCES)
