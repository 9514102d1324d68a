"""What the other packages of a bundle read of one of them, followed through its own rules by their names."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from policy.bundle import Module
from policy.source import Statement, references, statements

Path = tuple[str, ...]


class Read(NamedTuple):
    """The rules and tables of a package that others read, and every name that stands in what they so reach.

    `is_whole` is true where one of them takes the package by a computed name, and so may read anything.
    """

    names: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()
    is_whole: bool = False


def read_elsewhere(modules: Sequence[Module], package: Path, apart_from: Path = ()) -> Read:
    """What modules of other packages read of a package or table, at any remove; those of `apart_from` do not count."""
    refers: dict[str, set[str]] = {}
    words: dict[str, set[str]] = {}
    wanted: set[str] = set()
    is_whole = False
    for module in modules:
        found = list(statements(module.file, module.text))
        own, named = _package(found), dict(_imports(found))
        for statement in found if own not in ((), apart_from) else ():
            paths = [path for path in _paths(statement, named) if path[: len(package)] == package[: len(path)]]
            below = {path[len(package)] for path in paths if len(path) > len(package)}
            if own == package:
                name = _rule(statement)
                refers.setdefault(name, set()).update(below, (each.path[0] for each in references(statement)))
                words.setdefault(name, set()).update(token.text.strip('"`') for token in statement)
            else:
                wanted |= below
                is_whole = is_whole or any(len(path) <= len(package) for path in paths)
    reached: set[str] = set()
    while wanted:
        reached |= wanted
        wanted = {name for each in wanted for name in refers.get(each, ())} - reached
    return Read(frozenset(reached), frozenset(word for name in reached for word in words.get(name, ())), is_whole)


def _package(found: Sequence[Statement]) -> Path:
    for statement in found:
        if statement[0].text == "package" and len(statement) > 1:
            return next(references(statement[1:])).path
    return ()


def _imports(found: Sequence[Statement]) -> Iterator[tuple[str, Path]]:
    """The names under which a module has imported something of `data`, and its path there."""
    for statement in found:
        if statement[0].text == "import" and len(statement) > 1:
            path = next(references(statement[1:])).path
            if path[0] == "data":
                yield statement[-1].text.strip('"'), path[1:]


def _paths(statement: Statement, named: Mapping[str, Path]) -> Iterator[Path]:
    """The paths below `data` that a statement names, imports followed; an import by itself reads nothing."""
    if statement[0].text == "import":
        return
    for reference in references(statement):
        root, *rest = reference.path
        if root == "data":
            yield tuple(rest)
        elif root in named:
            yield (*named[root], *rest)


def _rule(statement: Statement) -> str:
    """The name of the rule that a statement is a part of; nothing for one that is none."""
    head = statement[1:] if statement[0].text == "default" else statement
    return head[0].text if head and head[0].text not in ("package", "import") else ""
