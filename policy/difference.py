"""What differs between two bundles: rules by their tokens, so that a comment or a line break is no change where it
changes nothing, and tables by their leaves."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from policy.bundle import Bundle, Module
from policy.lint import Clause, import_clauses, rule_clauses
from policy.source import Token
from policy.tables import Steps, dotted

Change = Literal["added", "removed", "changed"]


class RuleChange(NamedTuple):
    """A rule, or the imports of a package, that differs; the place is in the new bundle unless it was removed."""

    change: Change
    package: str
    rule: str
    file: str
    line: int


class Absent:
    """What stands for a value that is not there."""

    def __repr__(self) -> str:
        return "-"


ABSENT = Absent()


class LeafChange(NamedTuple):
    """A value of the tables that differs; ABSENT where one bundle has none."""

    path: str
    before: Any
    after: Any


class Difference(NamedTuple):
    """All that differs between two bundles but their tests and comments."""

    rules: list[RuleChange]
    leaves: list[LeafChange]


def difference(old: Bundle, new: Bundle) -> Difference:
    """What differs, rules by package and name, then tables by path."""
    return Difference(list(_rules(old.modules, new.modules)), list(leaves(old.data, new.data)))


def _rules(old: Sequence[Module], new: Sequence[Module]) -> Iterator[RuleChange]:
    before, after = _clauses(old), _clauses(new)
    for package, rule in sorted(before.keys() | after.keys()):
        was, now = before.get((package, rule), []), after.get((package, rule), [])
        if [_tokens(clause) for clause in was] == [_tokens(clause) for clause in now]:
            continue
        change: Change = "changed" if was and now else "added" if now else "removed"
        place = _first_new(was, now) if now else was[0]
        yield RuleChange(change, package.replace("/", "."), rule, place.file, place.line)


def _clauses(modules: Sequence[Module]) -> dict[tuple[str, str], list[Clause]]:
    """The clauses of each rule by package and name, and the imports of each package beside them."""
    found: dict[tuple[str, str], list[Clause]] = {}
    for path, clauses in rule_clauses(modules).items():
        package, _, rule = path.rpartition("/")
        found[package, rule] = clauses
    for package, clauses in import_clauses(modules).items():
        if clauses:
            found[package, "import"] = clauses
    return found


def _tokens(clause: Clause) -> tuple[str, ...]:
    """What a clause says; a bracket says something else on the line of the value before it than on a new one."""
    following = (
        f"\n{token.text}" if _is_apart(before, token) else token.text for before, token in pairwise(clause.statement)
    )
    return (clause.statement[0].text, *following)


def _is_apart(before: Token, token: Token) -> bool:
    is_after_value = before.kind != "punct" or before.text in (")", "]", "}")
    return token.text == "[" and token.line != before.line and is_after_value


def _first_new(was: Sequence[Clause], now: Sequence[Clause]) -> Clause:
    """The first clause that the old bundle has not as often, or else the first of all."""
    left = Counter(map(_tokens, was))
    for clause in now:
        if not left[_tokens(clause)]:
            return clause
        left[_tokens(clause)] -= 1
    return now[0]


def leaves(old: Any, new: Any, path: Steps = ()) -> Iterator[LeafChange]:
    """The values that differ, the whole of what was added or removed as one; objects by key, the rest by value."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted(old.keys() | new.keys()):
            yield from leaves(old.get(key, ABSENT), new.get(key, ABSENT), (*path, key))
    elif not _same(old, new):
        yield LeafChange(dotted(path), old, new)


def _same(old: Any, new: Any) -> bool:
    """Whether two JSON values are the same; to Python 1, 1.0 and true are equal."""
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_same, old, new))
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return old.keys() == new.keys() and all(_same(old[key], new[key]) for key in old)
    return type(old) is type(new) and bool(old == new)
