"""What differs between two bundles: rules by what they say, tables by their leaves."""

from collections.abc import Callable
from pathlib import Path

from policy.bundle import Bundle, assemble
from policy.difference import ABSENT, LeafChange, RuleChange, difference, leaves

WriteBundle = Callable[..., Path]
RULES = """package bursar.admission

import rego.v1

import data.bursar.risk

decision := {"allow": allow, "reasons": [], "obligations": {}}

default allow := false

allow if input.principal.org == "acme"

allow if input.principal.org == "globex"

denied["frozen"] := "Frozen." if input.env.freeze

denied["deep"] := "Deep." if risk.deep
"""
FILE = "bursar/admission/admission.rego"
TABLE = "bursar/admission/data.json"


def bundle(text: str = RULES, table: str = "{}", **files: str) -> Bundle:
    named = {name: content.encode() for name, content in files.items()}
    return assemble("bundle", {FILE: text.encode(), TABLE: table.encode(), **named})


def rules(old: str, new: str) -> list[RuleChange]:
    return difference(bundle(old), bundle(new)).rules


def line(text: str, of: str) -> int:
    return text[: text.index(of)].count("\n") + 1


def test_comments_layout_and_order_of_rules_are_no_change() -> None:
    laid_out = RULES.replace(
        'allow if input.principal.org == "acme"', '# A comment.\nallow if\n\tinput.principal.org == "acme"'
    )
    clauses = 'denied["frozen"] := "Frozen." if input.env.freeze\n'
    moved = RULES.replace(clauses, "").replace("default allow", f"{clauses}\ndefault allow")
    assert rules(RULES, laid_out) == []
    assert rules(RULES, moved) == []


def test_a_bracket_that_no_longer_follows_on_its_line_is_a_change() -> None:
    """What is false by its key is true by itself, and so is the list that stands alone then."""
    by_key = RULES + "\nopen if {\n\tdata.levels[input.level]\n}\n"
    assert [each.rule for each in rules(by_key, by_key.replace("[input", "\n\t[input"))] == ["open"]


def test_a_changed_clause_is_named_where_it_stands_now() -> None:
    new = RULES.replace("globex", "umbra")
    assert rules(RULES, new) == [
        RuleChange("changed", "bursar.admission", "allow", FILE, line(new, 'allow if input.principal.org == "umbra"'))
    ]


def test_a_rule_with_fewer_clauses_has_changed() -> None:
    new = RULES.replace('allow if input.principal.org == "globex"\n', "")
    assert rules(RULES, new) == [RuleChange("changed", "bursar.admission", "allow", FILE, line(new, "default allow"))]


def test_the_order_of_the_clauses_of_a_rule_is_a_change() -> None:
    first, second = (f'denied["{name}"]' for name in ("frozen", "deep"))
    new = RULES.replace(first, "x").replace(second, first).replace("x :=", f"{second} :=")
    assert [each.rule for each in rules(RULES, new)] == ["denied"]


def test_rules_come_and_go() -> None:
    new = RULES + "\nextra := 1\n"
    assert rules(RULES, new) == [RuleChange("added", "bursar.admission", "extra", FILE, line(new, "extra"))]
    assert rules(new, RULES) == [RuleChange("removed", "bursar.admission", "extra", FILE, line(new, "extra"))]


def test_another_import_is_a_change() -> None:
    new = RULES.replace("import data.bursar.risk", "import data.bursar.budget as risk")
    assert rules(RULES, new) == [RuleChange("changed", "bursar.admission", "import", FILE, line(new, "import data"))]


def test_tests_are_no_part_of_it() -> None:
    new = assemble(
        "bundle", {FILE: RULES.encode(), "bursar/admission/admission_test.rego": b"package x\n\ntest_a if 1 == 1\n"}
    )
    assert difference(assemble("bundle", {FILE: RULES.encode()}), new) == ([], [])


def test_table_values_that_differ_are_named_by_path() -> None:
    old = '{"rows": {"acme": {"a b": {"cap": 10}, "gone": [1]}}, "same": {"x": [1, {"y": 2}]}}'
    new = '{"rows": {"acme": {"a b": {"cap": 20}}, "*": {"cap": 1}}, "same": {"x": [1, {"y": 2}]}}'
    assert difference(bundle(table=old), bundle(table=new)).leaves == [
        LeafChange('data.bursar.admission.rows["*"]', ABSENT, {"cap": 1}),
        LeafChange('data.bursar.admission.rows.acme["a b"].cap', 10, 20),
        LeafChange("data.bursar.admission.rows.acme.gone", [1], ABSENT),
    ]


def test_values_of_another_type_differ_though_python_finds_them_equal() -> None:
    for old, new in ((1, True), (1, 1.0), ([0], [False]), ({"a": [{"b": 1}]}, {"a": [{"b": True}]}), (None, ABSENT)):
        assert len(list(leaves(old, new))) == 1
    assert list(leaves([1, {"a": None}], [1, {"a": None}])) == []
