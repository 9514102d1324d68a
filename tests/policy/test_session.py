"""A compiled bundle: what it answers, what it refuses to build, and that it survives bad bundles."""

from pathlib import Path
from typing import Any

import pytest

from policy.bundle import load
from policy.child import Child
from policy.needs import narrowed, needs
from policy.port import ADMISSION, TOOLS, BundleError, Document, EvaluationError, Undefined
from policy.session import BundleSession

FILE = "bursar/admission/admission.rego"
HEAD = "package bursar.admission\n\nimport rego.v1\n\n"


class Admission:
    """The admission of the bundle in a folder."""

    def __init__(self, root: Path) -> None:
        self.session = BundleSession(load(root))

    def evaluate(self, document: Document) -> Any:
        return self.session.evaluate(ADMISSION, document)


def engine(root: Path) -> Admission:
    return Admission(root)


def test_it_answers_from_rules_and_tables(write_bundle) -> None:
    raw = engine(write_bundle()).evaluate({"principal": {"org": "acme"}})
    assert raw == {"allow": True, "reasons": [], "obligations": {"priority": 3}}


def test_the_same_input_twice_and_another_between_do_not_mix(write_bundle) -> None:
    one = engine(write_bundle())
    answers = [one.evaluate({"principal": {"org": org}})["allow"] for org in ("acme", "evil", "acme", "")]
    assert answers == [True, False, True, False]


@pytest.mark.parametrize(
    ("rules", "line", "message"),
    [
        ("decision := {} if {\n\tinput.a ==\n}\n", 6, "boolean operator"),
        ("decision := {} if { input.x\n", 5, "unclosed"),
        ('decision := "abc\n', 5, "opens a string that nothing closes"),
        ("decision := {} if not hepler\n", 5, "hepler is not a rule"),
        ("decision := {} if nosuch(1)\n", 5, "nosuch is not a rule"),
        ("decision := {} if data.bursar[i]\n", 5, "i is not a rule"),
        ("decision := {} if not data.rows.x\n", 5, "data.rows is no package, rule or table"),
        ("decision := {} if min([1, 2])\n", 5, "orders numbers as text"),
        ("decision := {} if sort(input.a)\n", 5, "orders numbers as text"),
        ('decision := {} if input.a == "caf\\u00e9"\n', 5, "without escapes"),
        ("decision := input.a\n\nelse := 2\n", 7, "crashes"),
        ("other := 1\n", 0, "no rule data.bursar.admission.decision"),
    ],
)
def test_a_mistake_is_refused_with_its_line(write_bundle, rules: str, line: int, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        engine(write_bundle({FILE: HEAD + rules}))
    assert caught.value.line == line
    if line:
        assert caught.value.file == FILE


def test_declared_names_are_no_mistake(write_bundle) -> None:
    rules = """
decision := {"allow": allowed, "reasons": [], "obligations": {}}

default allowed := false

allowed if {
	some i, [name, _] in input.pairs
	[first, second] := [i, name]
	every key, value in {"a": second} { key == "a"; value == name }
	listed(name, first)
	count([x | some x in input.pairs; x[0] == name]) > 0
}

listed(text, number) if {
	number >= 0
	startswith(text, "n")
} else := true if {
	text == "other"
}

names contains text if some text in input.names

by_name[text] := 1 if some text in names
"""
    built = engine(write_bundle({FILE: HEAD + rules}))
    assert built.evaluate({"pairs": [["name", 1]], "names": []})["allow"] is True
    assert built.evaluate({"pairs": [["xyz", 1]], "names": []})["allow"] is False


@pytest.mark.parametrize(
    ("rule", "kind"),
    [
        ("decision := {} if input.never", Undefined),
        ("decision := 1 if input.a\n\ndecision := 2 if input.a", EvaluationError),
        ("decision := {} if to_number(input.text) > 1", EvaluationError),
        ("decision if other\n\nother if decision", EvaluationError),
    ],
)
def test_a_failed_evaluation_is_named_and_the_engine_goes_on(write_bundle, rule: str, kind: type[Exception]) -> None:
    built = engine(write_bundle({FILE: f"{HEAD}{rule}\n"}))
    for _ in range(2):
        with pytest.raises(kind):
            built.evaluate({"a": True, "text": "x"})


@pytest.mark.parametrize("value", [2**63, -(2**70), float("nan"), float("inf"), b"bytes", "\ud800", {"k": ("t",)}])
def test_an_input_that_the_engine_would_change_is_refused(shipped: BundleSession, value: object) -> None:
    with pytest.raises(EvaluationError):
        shipped.evaluate(ADMISSION, {"intent": {"tools": value}})


def test_an_input_nested_without_end_is_refused(shipped: BundleSession) -> None:
    nested: Document = {}
    nested["self"] = nested
    with pytest.raises(EvaluationError, match="too deep"):
        shipped.evaluate(ADMISSION, {"intent": {"tools": nested}})


@pytest.mark.parametrize("text", ["", 'a"b', "a\\", "a\nb\t\r", "é😀", "\0", "\x7f\x01", "\u2028", "\\u0041", "</x>"])
def test_every_string_comes_back_and_equals_itself_in_a_table(write_bundle, text: str) -> None:
    rules = 'decision := {"echo": input.x, "same": input.x == data.bursar.admission.text}\n'
    escaped = "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else c for c in text)
    root = write_bundle({FILE: HEAD + rules, "bursar/admission/data.json": f'{{"text": "{escaped}"}}'})
    assert engine(root).evaluate({"x": text}) == {"echo": text, "same": True}


def test_a_long_answer_is_read_whole(write_bundle) -> None:
    built = engine(write_bundle({FILE: HEAD + "decision := input\n"}))
    document = {"items": ["x" * 100] * 1000}
    assert built.evaluate(document) == document
    with pytest.raises(EvaluationError, match="too large"):
        built.evaluate({"items": ["x" * 1000] * 2000})


def test_a_bundle_that_kills_the_engine_is_refused_and_this_process_lives(write_bundle) -> None:
    killing = "decision := v if {\n\tv := other with input as {}\n}\n\nalias := input.x\n\nother := alias\n"
    with pytest.raises(BundleError, match="the engine ended with"):
        Child.of(write_bundle({FILE: HEAD + killing}))


def test_an_entry_point_without_a_rule_is_undefined(write_bundle) -> None:
    session = BundleSession(load(write_bundle()))
    assert session.entries == (ADMISSION,)
    with pytest.raises(Undefined):
        session.evaluate(TOOLS, {})


def test_what_no_rule_reads_is_not_handed_over_and_changes_nothing(write_bundle) -> None:
    rules = """
picked := input.a.b
keyed := input["c"]["d e"]
under[name] := value if some name, value in input.f
decision := {"picked": picked, "keyed": keyed, "under": under}
"""
    bundle = load(write_bundle({FILE: HEAD + rules}))
    needed = needs(bundle.modules)
    assert needed == {"a": {"b": None}, "c": {"d e": None}, "f": None}
    document = {"a": {"b": 1, "x": 2}, "c": {"d e": {"y": 3}, "z": 4}, "f": {"g": {"h": 5}}, "i": 6}
    assert narrowed(document, needed) == {"a": {"b": 1}, "c": {"d e": {"y": 3}}, "f": {"g": {"h": 5}}}
    assert BundleSession(bundle).evaluate(ADMISSION, document) == {
        "picked": 1,
        "keyed": {"y": 3},
        "under": {"g": {"h": 5}},
    }


def test_a_rule_that_takes_the_whole_input_is_handed_all_of_it(write_bundle) -> None:
    rules = "decision := {name: value | some name, value in input}\n\nother := input.a\n"
    bundle = load(write_bundle({FILE: HEAD + rules}))
    assert needs(bundle.modules) is None
    assert BundleSession(bundle).evaluate(ADMISSION, {"a": 1, "b": {"c": 2}}) == {"a": 1, "b": {"c": 2}}


def test_a_wider_and_a_narrower_reference_keep_the_wider(write_bundle) -> None:
    rules = "narrow := input.a.b\n\ndecision := input.a\n\nagain := input.a.c\n"
    assert needs(load(write_bundle({FILE: HEAD + rules})).modules) == {"a": None}


@pytest.mark.parametrize("between", ["", " # a remark", "\n\n"])
def test_a_bracket_on_a_new_line_hides_no_input_from_a_rule(write_bundle, between: str) -> None:
    rules = f"""
decision := {{"allow": allow}}

default allow := true

allow := false if {{
	who := input.principal{between}
	["org"][0] == "org"
	who.team == "banned"
}}
"""
    bundle = load(write_bundle({FILE: HEAD + rules}))
    assert needs(bundle.modules) == {"principal": None}
    document = {"principal": {"org": "acme", "team": "banned"}}
    assert BundleSession(bundle).evaluate(ADMISSION, document) == {"allow": False}


@pytest.mark.parametrize(("rule", "message"), [("v := nosuch", "nosuch is not a rule"), ("v := := {", "unclosed")])
def test_a_mistake_in_a_module_that_nothing_reaches_is_refused(write_bundle, rule: str, message: str) -> None:
    root = write_bundle({"apart/apart.rego": f"package apart\n\nimport rego.v1\n\n{rule}\n"})
    with pytest.raises(BundleError, match=message) as raised:
        BundleSession(load(root))
    assert (raised.value.file, raised.value.line) == ("apart/apart.rego", 5)
