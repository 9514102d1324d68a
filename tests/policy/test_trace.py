"""A trace asks every rule that an entry point can come to, and says which could not be asked."""

from collections.abc import Callable
from pathlib import Path

import pytest

from policy import trace as tracing
from policy.bundle import assemble, files_of
from policy.port import BundleError
from policy.trace import Trace, reachable, trace

WriteBundle = Callable[..., Path]
ENTRY = "bursar/admission/decision"
FILE = "bursar/admission/admission.rego"
RULES = """package bursar.admission

import rego.v1

import data.bursar.risk as danger

decision := {"allow": count(denied) == 0, "reasons": [], "obligations": {}}

denied["frozen"] := "Frozen." if input.freeze

denied["risky"] := "Risky." if danger.level_is("high")

denied["odd"] := data.bursar.budget.odd

sets contains "a" if input.freeze

unreached := 1
"""
RISK = """package bursar.risk

import rego.v1

default level := "normal"

level := input.level

level_is(name) if level == name

elsewhere := 1
"""
BUDGET = """package bursar.budget

import rego.v1

odd := 1 / input.divisor
"""


@pytest.fixture
def root(write_bundle: WriteBundle) -> Path:
    return write_bundle({FILE: RULES, "bursar/risk/risk.rego": RISK, "bursar/budget/budget.rego": BUDGET})


def traced(root: Path, text: bytes) -> Trace:
    return trace(files_of(root), root, ENTRY, text)


def test_what_an_entry_point_can_come_to_is_followed_through_imports_and_full_names(root: Path) -> None:
    modules = assemble(root, files_of(root)).modules
    assert reachable(modules, ENTRY) == [
        ENTRY,
        "bursar/admission/denied",
        "bursar/risk/level",
        "bursar/risk/level_is",
        "bursar/budget/odd",
    ]


def test_a_package_that_is_named_as_a_whole_is_reached_as_a_whole(root: Path) -> None:
    (root / FILE).write_text(RULES.replace('danger.level_is("high")', "danger[input.name]"))
    modules = assemble(root, files_of(root)).modules
    assert {"bursar/risk/elsewhere", "bursar/risk/level", "bursar/risk/level_is"} <= set(reachable(modules, ENTRY))


def test_each_rule_is_shown_with_its_value_and_place(root: Path) -> None:
    found = traced(root, b'{"freeze": true, "level": "high"}')
    assert found.revision == assemble(root, files_of(root)).revision
    assert (found.entry.rule, found.entry.value["allow"]) == ("data.bursar.admission.decision", False)
    shown = {each.rule: (each.file, each.line, each.value, each.holds) for each in found.rules}
    frozen, risky = (RULES[: RULES.index(f'denied["{key}"]')].count("\n") + 1 for key in ("frozen", "risky"))
    assert shown == {
        'data.bursar.admission.denied["frozen"]': (FILE, frozen, "Frozen.", True),
        'data.bursar.admission.denied["risky"]': (FILE, risky, "Risky.", True),
        "data.bursar.risk.level": ("bursar/risk/risk.rego", 5, "high", True),
        "data.bursar.budget.odd": ("bursar/budget/budget.rego", 5, None, False),
    }
    assert found.functions == ["data.bursar.risk.level_is"]
    assert found.left_out == 0


def test_a_rule_without_a_value_and_one_that_fails_say_so(root: Path) -> None:
    found = {each.rule: each for each in traced(root, b'{"divisor": 0}').rules}
    assert found["data.bursar.budget.odd"].failure not in ("", "undefined")
    undefined = {each.rule: each for each in traced(root, b"{}").rules}
    assert undefined["data.bursar.budget.odd"].failure == "undefined"
    assert undefined["data.bursar.admission.denied"].failure == "empty"
    assert not undefined["data.bursar.admission.denied"].holds


def test_a_trace_is_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "RULES_MAX", 2)
    found = traced(root, b"{}")
    assert ([each.rule for each in found.rules], found.left_out) == (["data.bursar.admission.denied"], 2)


def test_an_entry_point_that_is_missing_is_named(root: Path) -> None:
    with pytest.raises(BundleError, match=r"no rule data\.bursar\.launch\.decision"):
        trace(files_of(root), root, "bursar/launch/decision", b"{}")
