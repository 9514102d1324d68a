"""Shapes of Rego that the embedded engine answers wrongly, or ends on: each is refused in its place, no other is."""

import pytest
from regopy import Interpreter

from policy.bundle import Module
from policy.child import Child
from policy.lint import problems
from policy.port import BundleError

HEAD = "package p\n\ndefault x := false\n\n"
is_builtin = Interpreter().is_builtin


def found(*texts: str) -> list[tuple[str, int, str]]:
    return [tuple(each) for each in problems([Module(f"{at}.rego", text) for at, text in enumerate(texts)], is_builtin)]


def in_body(literals: str) -> list[tuple[int, str]]:
    rules = "g(y) := y\n\nh(y) if y == false\n"
    return [(line, message) for _, line, message in found(f"{HEAD}x if {{\n{literals}\n}}\n\n{rules}")]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("package p\n\nf(a) := a\n", "package q\n\nf(a, b) := a + b\n"),
        ("package p\n\nf(a) := a\n", "package p\n\nf(a, b) := a + b\n"),
        ("package p\n\nf(a) := a\n", "package p.q\n\nf([a, b], {}) := a + b\n"),
        ("package p\n\n_f(a) if a\n", "package q\n\n_f(a, b, c) if a\n"),
        ("package p\n\nf(a, b) if a\n", "package q\n\ndefault f(_) := 1\n"),
    ],
)
def test_functions_of_one_name_have_as_many_arguments_in_every_package(one: str, other: str) -> None:
    ((file, line, message),) = found(one, other)
    assert (file, line) == ("1.rego", 3)
    assert " in 0.rego:3, which ends the embedded engine: rename one of them" in message


@pytest.mark.parametrize(
    "other",
    [
        "f(b) := b\n",
        "f([a, b]) := a\n",
        "f({1, 2}) := 1\n\nf(\n\tb,\n) := b\n",
        "default f(_) := 1\n",
        "g(a, b) := a\n",
        "f := 3\n",
        "x := y if {\n\tf := 3\n\ty := f\n}\n",
        "h.f(a, b) := a\n",
    ],
)
def test_what_only_looks_like_such_functions_is_let_through(other: str) -> None:
    assert found("package p\n\nf(a) := a\n", f"package q\n\n{other}") == []


def test_such_functions_are_refused_by_the_lint_before_they_end_the_engine(write_bundle) -> None:
    files = {
        f"{name}/{name}.rego": f"package {name}\n\nf({of}) := a\n" for name, of in {"one": "a", "two": "a, b"}.items()
    }
    with pytest.raises(BundleError) as raised:
        Child.of(write_bundle(files))
    assert (raised.value.file, raised.value.line) == ("two/two.rego", 3)
    assert raised.value.message.startswith("f takes 2 arguments here and 1 in one/one.rego:3")


@pytest.mark.parametrize(
    "inner",
    [
        "count([w | some w in [3, 4]; w > v]) > 0",
        "count({w |\n\t\tsome w in [3, 4]\n\t\tw > v\n\t}) > 0",
        "count({w: v | some w in [3, 4]}) > 0",
        "n := [w | some w in v]; count(n) > 0",
        "not k in {w | some w in [v]}",
        "every w in [3, 4] { w > v }",
        "n := v; every w in [3, 4] { w > n }",
        "some n in [v]; count([1 | n > 1]) > 0",
        "every u in [1] { u > 0; every w in [3] { w > v } }",
    ],
)
def test_what_an_every_declares_is_not_used_in_a_scope_within_it(inner: str) -> None:
    ((_, message),) = in_body(f"\tevery k, v in input.list {{ {inner} }}")
    assert "is not seen by a comprehension or every within its own every" in message


@pytest.mark.parametrize(
    "literals",
    [
        "\tevery v in input.list { some w in [3, 4]; w > v }",
        "\tevery v in input.list { h(v); count([v | some v in [3, 4]]) > 0 }",
        "\tevery v in input.list { every w in v { w > 0 } }",
        "\tn := 1\n\tevery v in input.list { v > 0; count([w | some w in [3, 4]; w > n]) > 0 }",
        "\tevery v in [w | some w in input.list] { v > 0 }",
        "\tevery v in {1, 2} { v > 0 }\n\tsome v in [3]\n\tcount([w | some w in [4]; w > v]) > 0",
        "\tcount([v | some v in input.list; every w in [3, 4] { w > v }]) > 0",
        "\tevery v in input.list { h(input.table[v]); count([input.v | true]) > 0 }",
    ],
)
def test_what_an_every_declares_may_be_used_elsewhere(literals: str) -> None:
    assert in_body(literals) == []


@pytest.mark.parametrize(
    "literal",
    [
        "input.f == (input.a == 1)",
        "(input.a == 1) == input.f",
        "true != ((input.a == 1))",
        "h(input.a == 1)",
        "not h(input.a == 1)",
        "[input.a == 1] == [false]",
        '{"k": input.a == 1} == {"k": false}',
        "(input.a == 1) in {false}",
        "some z in [input.a == 1]; z == false",
        "every z in [1] { h(input.a == z) }",
        "y := [z | some z in [1]; h(input.a == z)]; y == [1]",
        "y := 1\n\th(input.a == y)",
        "h((input.a == 1)) with input.a as 2",
    ],
)
def test_an_equality_is_not_a_part_of_a_larger_expression(literal: str) -> None:
    ((line, message),) = in_body(f"\t{literal}")
    assert line == 6 + literal.count("\n")
    assert message.startswith("== within a larger expression fails")


@pytest.mark.parametrize(
    "literal",
    [
        "input.a == 1",
        "(input.a == 1)",
        "not (input.a == 1)",
        "true\n\t((input.a == 1))\n\ttrue",
        "y := (input.a == 1); y == false",
        "y := g(g(input.a == 1)); y == false",
        "y := {\n\t\t1: input.a == 1,\n\t\t2: (input.a == 2),\n\t}\n\tcount(y) == 2",
        "y := input.f ==\n\t\t(input.a == 1)\n\ty == false",
        "count([z | some z in [1]; input.a == z]) == 1",
        "h(input.a > 5)",
        "input.f == (input.a in [1])",
        "every z in [input.a == 1] { z == false }",
    ],
)
def test_an_equality_may_be_a_literal_or_named(literal: str) -> None:
    assert in_body(f"\t{literal}") == []


@pytest.mark.parametrize(
    "rule",
    [
        "y := (input.a == 1)",
        'y["k"] := [input.a == 1]',
        "y(a) := (a == 1) if a",
        "y if input.a == 1 else := [(input.a == 1)]",
    ],
)
def test_a_rule_may_be_worth_an_equality(rule: str) -> None:
    assert found(f"{HEAD}{rule}\n") == []


def test_a_body_of_one_literal_is_judged_as_others_are() -> None:
    assert [line for _, line, _ in found(f"{HEAD}x if true == (input.a == 1)\n")] == [5]


@pytest.mark.parametrize(
    ("rule", "lost"),
    [
        ("x if { every v in [1] { count([w | some w in [2]; w > v]) == 1 } }", True),
        ("x if { false == (input.a == 1) }", True),
        ("x if { y := (input.a == 1); y == false }", False),
    ],
)
def test_the_engine_is_as_wrong_as_the_lint_says(rule: str, lost: bool) -> None:
    """Each rule is true; should the engine learn that one day, this fails and the rule of the lint can go."""
    interpreter = Interpreter()
    interpreter.add_module("p.rego", f"{HEAD}{rule}\n")
    interpreter.set_input({"a": 2})
    answer = interpreter.query_bundle_entrypoint(interpreter.build(None, ["p/x"]), "p/x")
    assert ("false" in str(answer)) is lost
