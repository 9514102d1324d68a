"""Which rules of a bundle held on one input: each rule that the entry point can come to is asked for its value.

The embedded engine keeps no trace, but any rule without parameters can be an entry point of its own. What a function
gave cannot be asked, for its arguments are known to the engine alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from policy.bundle import Module, assemble
from policy.child import Child
from policy.lint import Clause, import_clauses, rule_clauses
from policy.port import BundleError, EngineAway, EvaluationError, Undefined
from policy.source import literal, references

RULES_MAX = 500


class Traced(NamedTuple):
    """One rule, where it stands, and its value; `holds` unless it is false, undefined or failed, as `failure` says."""

    rule: str
    file: str
    line: int
    value: Any
    holds: bool
    failure: str = ""


class Trace(NamedTuple):
    """What a bundle says to one input: the value of the entry point and of the rules behind it.

    `functions` could not be asked, and `left_out` counts the rules beyond five hundred.
    """

    revision: str
    entry: Traced
    rules: list[Traced]
    functions: list[str]
    left_out: int


def trace(contents: Mapping[str, bytes], root: Path | str, entry: str, input_json: bytes) -> Trace:
    """Ask every rule that an entry point can come to about an input, in a process of its own; raises BundleError."""
    modules = assemble(root, contents).modules
    rules = rule_clauses(modules)
    if entry not in rules:
        raise BundleError(str(root), 0, f"no rule data.{entry.replace('/', '.')}")
    reached = reachable(modules, entry)
    functions = [path for path in reached if _is_function(rules[path])]
    asked = [path for path in reached if not _is_function(rules[path])]
    kept = asked[:RULES_MAX]
    with Child.start(contents, root, entries=kept) as child:
        found = [each for path in kept for each in _asked(child, path, rules[path], input_json, path == entry)]
    return Trace(child.revision, found[0], found[1:], [_dotted(path) for path in functions], len(asked) - len(kept))


def reachable(modules: Sequence[Module], entry: str) -> list[str]:
    """The rules that an entry point can come to, itself first, then by package as they are met, file and line."""
    rules = rule_clauses(modules)
    aliases = {package: _aliases(clauses) for package, clauses in import_clauses(modules).items()}
    met = [entry]
    known = {entry}
    for path in met:
        package = path.rpartition("/")[0]
        for clause in rules[path]:
            for reference in references(clause.statement):
                for target in _targets(reference.path, package, aliases.get(package, {}), rules):
                    if target not in known:
                        known.add(target)
                        met.append(target)
    packages = {package: at for at, package in enumerate(dict.fromkeys(path.rpartition("/")[0] for path in met))}

    def place(path: str) -> tuple[bool, int, str, int]:
        return path != entry, packages[path.rpartition("/")[0]], rules[path][0].file, rules[path][0].line

    return sorted(met, key=place)


def _aliases(clauses: Sequence[Clause]) -> dict[str, tuple[str, ...]]:
    """What each imported name stands for."""
    return {
        clause.statement[-1].text: reference.path
        for clause in clauses
        for reference in references(clause.statement)
        if reference.path[0] == "data"
    }


def _targets(
    path: tuple[str, ...], package: str, aliases: Mapping[str, tuple[str, ...]], rules: Mapping[str, Any]
) -> list[str]:
    """The rules that a reference in a package names; where it names no single one, all below what it names."""
    if f"{package}/{path[0]}" in rules:
        return [f"{package}/{path[0]}"]
    names = (*aliases[path[0]], *path[1:]) if path[0] in aliases else path
    if names[0] != "data":
        return []
    for length in range(len(names), 2, -1):
        if "/".join(names[1:length]) in rules:
            return ["/".join(names[1:length])]
    below = "/".join((*names[1:], ""))
    return [rule for rule in rules if rule.startswith(below)]


def _asked(child: Child, path: str, clauses: Sequence[Clause], input_json: bytes, is_entry: bool) -> Iterator[Traced]:
    place = (_dotted(path), clauses[0].file, clauses[0].line)
    try:
        value = child.evaluate(path, input_json)
    except Undefined:
        yield Traced(*place, None, holds=False, failure="undefined")
    except EngineAway as error:
        raise BundleError(clauses[0].file, clauses[0].line, f"{place[0]} cannot be asked: {error}") from error
    except EvaluationError as error:
        yield Traced(*place, None, holds=False, failure=str(error))
    else:
        lines = {} if is_entry or not isinstance(value, dict) else _keyed(clauses)
        if not lines or not value.keys() <= lines.keys():
            yield Traced(*place, value, holds=value is not False)
            return
        for key, said in value.items():
            clause = lines[key]
            yield Traced(f'{place[0]}["{key}"]', clause.file, clause.line, said, holds=said is not False)
        if not value:
            yield Traced(*place, value, holds=False, failure="empty")


def _keyed(clauses: Sequence[Clause]) -> dict[str, Clause]:
    """The clauses of a rule that each give one key, `denied["frozen"]`."""
    found: dict[str, Clause] = {}
    for clause in clauses:
        head = clause.statement[1:4]
        key = literal(head[1]) if len(head) == 3 and (head[0].text, head[2].text) == ("[", "]") else None
        if key is not None:
            found.setdefault(key, clause)
    return found


def _is_function(clauses: Sequence[Clause]) -> bool:
    statement = clauses[0].statement
    after = 2 if statement[0].text == "default" else 1
    return len(statement) > after and statement[after].text == "("


def _dotted(path: str) -> str:
    return "data." + path.replace("/", ".")
