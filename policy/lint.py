"""Mistakes that the embedded engine would not report but answer wrongly, found in the source before it serves.

rego-cpp compiles a misspelt name to undefined, which `not` turns into true; orders numbers as text in `min`, `max` and
`sort`; compares strings by their JSON text; and crashes on an `else` after a rule without a body.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from policy.bundle import Module
from policy.source import Reference, Statement, Token, references, statements

_KEYWORDS = frozenset(
    {"_", "as", "contains", "data", "default", "else", "every", "false", "if", "import", "in", "input", "not", "null"}
    | {"package", "set", "some", "true", "with"}
)
_WRONG_HERE = {name: f"{name} orders numbers as text on the embedded engine" for name in ("max", "min", "sort")}

IsBuiltin = Callable[[str], bool]


class Problem(NamedTuple):
    """One mistake in a bundle; `line` is 0 where it has none."""

    file: str
    line: int
    message: str


class Clause(NamedTuple):
    """One of the statements that make up a rule, and where its head stands."""

    file: str
    line: int
    statement: Statement


class _Parsed(NamedTuple):
    module: Module
    package: str
    statements: tuple[Statement, ...]


def problems(modules: Sequence[Module], is_builtin: IsBuiltin) -> list[Problem]:
    """Every mistake in the modules, in their order; raises BundleError where a module has no tokens to judge."""
    parsed = [_parse(module) for module in modules]
    rules: dict[str, set[str]] = {}
    for each in parsed:
        rules.setdefault(each.package, set()).update(token.text for token in _rule_heads(each.statements))
    return [problem for each in parsed for problem in _module_problems(each, rules[each.package], is_builtin)]


def rule_lines(modules: Sequence[Module]) -> dict[str, tuple[str, int]]:
    """Where each rule first stands, by its path as an entry point, `package/path/rule`."""
    return {path: (clauses[0].file, clauses[0].line) for path, clauses in rule_clauses(modules).items()}


def rule_clauses(modules: Sequence[Module]) -> dict[str, list[Clause]]:
    """The clauses of each rule in their order, by its path as an entry point, `package/path/rule`."""
    found: dict[str, list[Clause]] = {}
    for each in map(_parse, modules):
        for statement in each.statements:
            head = () if statement[0].text in ("package", "import") else _head(statement)
            if head and head[0].kind == "name":
                path = f"{each.package.replace('.', '/')}/{head[0].text}"
                found.setdefault(path, []).append(Clause(each.module.file, head[0].line, statement))
    return found


def import_clauses(modules: Sequence[Module]) -> dict[str, list[Clause]]:
    """The imports of each package, by its path, `package/path`; a package without any has none."""
    found: dict[str, list[Clause]] = {}
    for each in map(_parse, modules):
        clauses = found.setdefault(each.package.replace(".", "/"), [])
        taken = (statement for statement in each.statements if statement[0].text == "import")
        clauses += [Clause(each.module.file, statement[0].line, statement) for statement in taken]
    return found


def _parse(module: Module) -> _Parsed:
    found = tuple(statements(module.file, module.text))
    package = ""
    for statement in found:
        if statement[0].text == "package":
            package = ".".join(next(references(statement[1:])).path) if len(statement) > 1 else ""
    return _Parsed(module, package, found)


def _head(statement: Statement) -> Statement:
    return statement[1:] if statement[0].text == "default" else statement


def _rule_heads(found: Sequence[Statement]) -> list[Token]:
    heads = [_head(statement) for statement in found if statement[0].text not in ("package", "import")]
    return [head[0] for head in heads if head and head[0].kind == "name"]


def _import_names(found: Sequence[Statement]) -> set[str]:
    return {statement[-1].text for statement in found if statement[0].text == "import"}


def _module_problems(parsed: _Parsed, rules: set[str], is_builtin: IsBuiltin) -> Iterator[Problem]:
    file = parsed.module.file
    known = rules | _import_names(parsed.statements) | _KEYWORDS
    if not parsed.package:
        yield Problem(file, 1, "no package")
    for statement in parsed.statements:
        if statement[0].text in ("package", "import"):
            continue
        yield from _bad_strings(file, statement)
        yield from _bare_else(file, statement)
        declared = known | _declared(statement)
        for reference in references(statement):
            message = _reference_problem(reference, declared, is_builtin)
            if message:
                yield Problem(file, reference.line, message)


def _reference_problem(reference: Reference, declared: set[str], is_builtin: IsBuiltin) -> str | None:
    root, name = reference.path[0], ".".join(reference.path)
    if root in declared:
        return None
    if name in _WRONG_HERE:
        return _WRONG_HERE[name]
    if is_builtin(name):
        return None
    return f"{name} is not a rule, not declared by some, every or :=, and not a function of the embedded engine"


def _declared(statement: Statement) -> set[str]:
    """The names that a statement declares anywhere: parameters, `some`, `every` and `:=`."""
    names: set[str] = set()
    head = _head(statement)
    if len(head) > 1 and head[1].text == "(":
        names |= _names(_bracketed(head, 1))
    for at, token in enumerate(statement):
        if token.kind == "name" and token.text in ("some", "every"):
            names |= _listed(statement[at + 1 :])
        elif token.text == ":=" and at:
            names |= _assigned(statement, at)
    return names


def _names(part: Sequence[Token]) -> set[str]:
    return {token.text for token in part if token.kind == "name" and token.text not in _KEYWORDS}


def _listed(after: Statement) -> set[str]:
    """The names of a `some` or `every`: patterns separated by commas, up to `in` or the end of the list."""
    names: set[str] = set()
    at = 0
    while at < len(after):
        part = _bracketed(after, at) if after[at].text in "[{" else after[at : at + 1]
        names |= _names(part)
        at += len(part)
        if at >= len(after) or after[at].text != ",":
            break
        at += 1
    return names


def _bracketed(part: Statement, at: int) -> Statement:
    """The tokens from an opening bracket to its closing one."""
    depth = 0
    for end in range(at, len(part)):
        depth += (part[end].text in ("(", "[", "{")) - (part[end].text in (")", "]", "}"))
        if depth == 0:
            return part[at : end + 1]
    return part[at:]


def _assigned(statement: Statement, at: int) -> set[str]:
    """The names on the left of an `:=`: one name, or those of a pattern in brackets."""
    depth = 0
    for start in range(at - 1, -1, -1):
        depth += (statement[start].text in (")", "]", "}")) - (statement[start].text in ("(", "[", "{"))
        if depth == 0:
            return _names(statement[start:at])
    return set()


def _bad_strings(file: str, statement: Statement) -> Iterator[Problem]:
    for token in statement:
        if token.kind == "string" and not _plain(token.text):
            yield Problem(file, token.line, f"{token.text} must be written without escapes that JSON does not need")


def _plain(text: str) -> bool:
    try:
        return json.dumps(json.loads(text), ensure_ascii=False) == text
    except ValueError:
        return False


def _bare_else(file: str, statement: Statement) -> Iterator[Problem]:
    """An `else` whose rule has no body before it: neither `if` nor a block that begins a body."""
    depth = 0
    has_body = False
    for token in statement:
        if depth == 0 and token.kind == "name":
            if token.text == "else" and not has_body:
                yield Problem(file, token.line, "else after a rule without a body crashes the embedded engine")
            has_body = has_body or token.text == "if"
        depth += (token.text in ("(", "[", "{")) - (token.text in (")", "]", "}"))
