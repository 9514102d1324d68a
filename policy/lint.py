"""Mistakes that the embedded engine would not report but answer wrongly, found in the source before it serves.

rego-cpp compiles a misspelt name to undefined, which `not` turns into true; orders numbers as text in `min`, `max` and
`sort`; compares strings by their JSON text; loses the variables of an `every` in a comprehension or `every` within it;
takes an `==` that is false and a part of something larger for undefined; and crashes on an `else` after a rule without
a body, and on functions of one name with different numbers of arguments.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from policy.bundle import Bundle, Module
from policy.groups import Groups, Kind
from policy.source import Reference, Statement, Token, references, statements
from policy.tree import Path, Tree

_KEYWORDS = frozenset(
    {"_", "as", "contains", "data", "default", "else", "every", "false", "if", "import", "in", "input", "not", "null"}
    | {"package", "set", "some", "true", "with"}
)
_WRONG_HERE = {name: f"{name} orders numbers as text on the embedded engine" for name in ("max", "min", "sort")}
_UNSEEN = (
    "{} is not seen by a comprehension or every within its own every on the embedded engine; "
    "put that into a function that takes it"
)
_VALUED_EQUALITY = (
    "== within a larger expression fails on the embedded engine where it is false; name what it is worth by := first"
)

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


class _Function(NamedTuple):
    """Where a function of a name was first seen, and how many arguments it has there."""

    file: str
    line: int
    arguments: int


def problems(modules: Sequence[Module], is_builtin: IsBuiltin) -> list[Problem]:
    """Every mistake in the modules, in their order; raises BundleError where a module has no tokens to judge."""
    parsed = [_parse(module) for module in modules]
    rules: dict[str, set[str]] = {}
    for each in parsed:
        rules.setdefault(each.package, set()).update(head[0].text for head in _rule_heads(each.statements))
    first: dict[str, _Function] = {}
    found: list[Problem] = []
    for each in parsed:
        found += _module_problems(each, rules[each.package], is_builtin)
        found += _unequal_functions(each, first)
    return found


def unknown_names(modules: Sequence[Module], bundle: Bundle) -> list[Problem]:
    """Every name below `data` in these modules that is no package, rule or table of their bundle.

    The engines take one for undefined, which `not` turns into true. What a `with` puts in place need not be there.
    """
    packages: set[Path] = set()
    rules: set[Path] = set()
    for each in map(_parse, (*bundle.modules, *bundle.tests)):
        package = tuple(each.package.split("."))
        packages.add(package)
        rules |= {(*package, *next(references(head)).sure) for head in _rule_heads(each.statements)}
    tree = Tree(packages, rules, bundle.folders, bundle.data)
    found: list[Problem] = []
    for each in map(_parse, modules):
        aliases = {
            statement[-1].text: _imported(statement) for statement in each.statements if statement[0].text == "import"
        }
        for statement in each.statements:
            declared = _declared(statement)
            for reference in references(statement) if statement[0].text != "package" else ():
                root, *rest = reference.sure
                within = () if root == "data" else None if root in declared else aliases.get(root)
                is_mock = reference.at > 0 and statement[reference.at - 1].text == "with"
                unknown = None if within is None or is_mock else tree.unknown((*within, *rest))
                if unknown is not None:
                    message = f"data.{'.'.join(unknown)} is no package, rule or table of this bundle"
                    found.append(Problem(each.module.file, reference.line, message))
    return found


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


def _rule_heads(found: Sequence[Statement]) -> list[Statement]:
    heads = [_head(statement) for statement in found if statement[0].text not in ("package", "import")]
    return [head for head in heads if head and head[0].kind == "name"]


def _import_names(found: Sequence[Statement]) -> set[str]:
    return {statement[-1].text for statement in found if statement[0].text == "import"}


def _imported(statement: Statement) -> Path | None:
    """The path below `data` that an import names; None where it names none."""
    path = next(references(statement[1:])).sure
    return path[1:] if path[0] == "data" else None


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
        groups = Groups(statement)
        yield from _unseen(file, groups)
        yield from _valued_equality(file, groups)
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
    head = _head(statement)
    is_function = len(head) > 1 and head[1].text == "("
    return _declared_in(statement) | (_names(_bracketed(head, 1)) if is_function else set())


def _declared_in(part: Statement) -> set[str]:
    """The names that a part of a statement declares."""
    names: set[str] = set()
    for at, token in enumerate(part):
        if token.kind == "name" and token.text in ("some", "every"):
            names |= _listed(part[at + 1 :])
        elif token.text == ":=" and at:
            names |= _assigned(part, at)
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


def _unequal_functions(parsed: _Parsed, first: dict[str, _Function]) -> Iterator[Problem]:
    """Functions that have another number of arguments than the `first` of their name, in whichever package that is."""
    file = parsed.module.file
    for statement in parsed.statements:
        head = _head(statement)
        if len(head) < 2 or head[0].kind != "name" or head[1].text != "(":
            continue
        name, here = head[0].text, _Function(file, head[0].line, _arguments(_bracketed(head, 1)))
        there = first.setdefault(name, here)
        if here.arguments != there.arguments:
            where = f"{there.arguments} in {there.file}:{there.line}"
            message = f"{name} takes {here.arguments} arguments here and {where}, which ends the embedded engine"
            yield Problem(file, here.line, f"{message}: rename one of them")


def _arguments(bracketed: Statement) -> int:
    """How many values stand in brackets."""
    depth, found, is_new = 0, 0, True
    for token in bracketed[1:-1]:
        found += is_new
        is_new = depth == 0 and token.text == ","
        depth += (token.text in ("(", "[", "{")) - (token.text in (")", "]", "}"))
    return found


def _unseen(file: str, groups: Groups) -> Iterator[Problem]:
    """What an `every` declares and a comprehension, or an `every`, within it uses."""
    statement = groups.statement
    everies = {
        body.start: (at, body)
        for at, token in enumerate(statement)
        if token.kind == "name" and token.text == "every" and (body := groups.body_after(at)) is not None
    }
    for begin, body in everies.values():
        within = range(body.start + 1, body.end)
        own = tuple(statement[at] for at in within if groups.scope(at) is body)
        declared = _listed(statement[begin + 1 : body.start]) | _declared_in(own)
        for at in within:
            inner = groups.beginning(at)
            if inner is None or inner.kind is Kind.VALUE or groups.scope(at) is not body:
                continue
            inner_begin = everies[at][0] if at in everies else at
            unseen = declared - _declared_in(statement[inner_begin : inner.end + 1])
            for reference in references(statement[at : inner.end + 1]):
                if reference.path[0] in unseen:
                    yield Problem(file, reference.line, _UNSEEN.format(reference.path[0]))
                    break


def _valued_equality(file: str, groups: Groups) -> Iterator[Problem]:
    known: dict[int, bool] = {}
    for at, token in enumerate(groups.statement):
        if token.kind == "punct" and token.text == "==" and _is_part(groups, at, known):
            yield Problem(file, token.line, _VALUED_EQUALITY)


def _is_part(groups: Groups, at: int, known: dict[int, bool]) -> bool:
    """Whether a token is within brackets of a literal that names its value by no `:=`; `known` is so of brackets."""
    passed: list[int] = []
    around = groups.around(at)
    while at not in known and around is not None and not groups.holds_literals(around, at):
        at = around.start
        passed.append(at)
        around = groups.around(at)
    is_part = known[at] if at in known else bool(passed) and _is_unnamed(groups, at)
    known.update(dict.fromkeys(passed, is_part))
    return is_part


def _is_unnamed(groups: Groups, at: int) -> bool:
    """Whether what stands at a token is of a literal, and nothing before it there gives that a name."""
    before = groups.before(at)
    while before is not None:
        if groups.statement[before].text in (":=", "=", "every"):
            return False
        at, before = before, groups.before(before)
    return groups.around(at) is not None or (at > 0 and groups.statement[at - 1].text == "if")
