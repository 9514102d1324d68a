"""Modules are cut into the statements that engines see, or refused: a rule that nobody sees would pass every review."""

import json

import pytest
from regopy import Interpreter, LogLevel

from policy.port import BundleError
from policy.source import statements

HEAD = "package p\n\nimport rego.v1\n\nd := 1 if input.x == 1\n"


def heads(text: str) -> list[str]:
    return [statement[0].text for statement in statements("p.rego", text)]


# After the rule `d`, the embedded engine sees another one, or the one before goes on.
SEEN = [
    "\x0ce := 2",
    " \x0be := 2",
    ";e := 2",
    " e := 2",
    " default e := 2",
    " in.e := 2",
    "else.e := 2",
    "else := 2\n e := 3",
    "e := 2; f := 3",
    "e if {\n\tinput.x == 2\n]}",
    "default.e := 1",
    "e if\ninput.x == 2",
    "e if input.x ==\n2",
    "e\nif input.x == 2",
    "e := 1\nin [1]",
    "e if input.x == 3\nwith input.x as 3",
    "e := 1\n{ input.x == 2 }",
]
# It sees nothing of what follows.
ENDED = ["\n \0 \ne := 2", "\n\0\ne := 2"]


@pytest.mark.parametrize("rest", [*SEEN, *ENDED, "e := (1]\nf := 2\n("])
def test_what_an_engine_cuts_otherwise_is_refused_where_it_stands(rest: str) -> None:
    with pytest.raises(BundleError) as refused:
        heads(f"{HEAD}{rest}\n")
    assert 6 <= refused.value.line <= 8


@pytest.mark.parametrize("rest", SEEN)
def test_the_embedded_engine_sees_what_is_refused(rest: str) -> None:
    """Should it refuse some of it one day, this fails and we need not."""
    assert rules(f"{HEAD}{rest}\n") & {"e", "in", "else", "default"}


@pytest.mark.parametrize("rest", ENDED)
def test_the_embedded_engine_sees_nothing_after_a_zero_byte(rest: str) -> None:
    assert rules(f"{HEAD}{rest}\n") == set()


def rules(text: str) -> set[str]:
    """The rules that have a value in the embedded engine."""
    interpreter = Interpreter()
    interpreter.log_level = LogLevel.NONE
    interpreter.set_input({"x": 2})
    interpreter.add_module("p.rego", text)
    return set(json.loads(str(interpreter.query("data.p")))["expressions"][0])


@pytest.mark.parametrize(
    "rule",
    [
        "e := 1 if input.y else := 2 if input.z",
        "e := 1 if {\n\tinput.y\n}\nelse := 2 if {\n\tinput.z\n} else := 3",
        "e if\n\tinput.y",
        "e if input.y with input.z as 3 with input.default as 4",
        "e if every k, v in input.y { v > k }",
        "e if some x in input.y",
        "e if not input.y in input.z",
        'e contains x if x := {"not": [1 | true; 2 == 2]}[_]',
        "e[x] := y if {\n\tx := 1; y := 2\n}",
        'e.f["g"] := `a\nb`  # c\n',
        "e(\n\ta,\n\tb,\n) := a +\n\tb",
        "default e := false\r\n",
        "e := 2\n\n# the end",
    ],
)
def test_what_is_laid_out_in_any_usual_way_is_cut_as_it_reads(rule: str) -> None:
    first = "default" if rule.startswith("default") else "e"
    assert heads(f"{HEAD}{rule}\nf := 1\n") == ["package", "import", "d", first, "f"]
