"""What the other packages of a bundle read, by themselves and through the rules of one that they reach."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from policy.bundle import Module
from policy.source import Reference, Statement, references, statements

Path = tuple[str, ...]


class Read(NamedTuple):
    """The paths below `data` that are read, up to the first computed name, and every name in what reads them."""

    paths: frozenset[Path]
    words: frozenset[str]

    def below(self, table: Path) -> frozenset[str] | None:
        """The names in a package or table that are read; None where it is taken by a computed name, or whole."""
        met = [path for path in self.paths if _meet(path, table)]
        return None if any(len(path) <= len(table) for path in met) else frozenset(path[len(table)] for path in met)


class _Part(NamedTuple):
    """A statement of a rule, by the path of that, with what it may read."""

    rule: Path
    paths: frozenset[Path]
    words: frozenset[str]


def read_elsewhere(modules: Sequence[Module], package: Path) -> Read:
    """What all packages but one read, at any remove; of the rules of that one only those count that others reach."""
    parts = [part for module in modules for part in _parts(module)]
    reached: list[_Part] = []
    wanted = [part for part in parts if part.rule[:-1] != package]
    left = [part for part in parts if part.rule[:-1] == package]
    while wanted:
        reached += wanted
        paths = frozenset(path for part in wanted for path in part.paths)
        wanted = [part for part in left if any(_meet(path, part.rule) for path in paths)]
        left = [part for part in left if part not in wanted]
    paths = frozenset(path for part in reached for path in part.paths)
    return Read(paths, frozenset(word for part in reached for word in part.words))


def _parts(module: Module) -> Iterator[_Part]:
    found = list(statements(module.file, module.text))
    package = next((_path(each) for each in found if each[0].text == "package"), ())
    named = {_alias(each): _path(each)[1:] for each in found if each[0].text == "import" and _path(each)[0] == "data"}
    for statement in found:
        if statement[0].text in ("package", "import"):
            continue  # an import by itself reads nothing
        paths: set[Path] = set()
        for reference in references(statement):
            # What follows on a new line may belong to it or not.
            for root, *rest in (reference.path, reference.sure):
                if root != "data":
                    paths.add((*package, root, *rest))
                if root == "data" or root in named:
                    paths.add((*named.get(root, ()), *rest))
        name = statement[statement[0].text == "default"].text
        yield _Part((*package, name), frozenset(paths), frozenset(token.text.strip('"`') for token in statement))


def _path(statement: Statement) -> Path:
    """The path of a package or an import."""
    return _first(statement).path


def _alias(statement: Statement) -> str:
    """The name under which something is imported."""
    return statement[-1].text if statement[-2].text == "as" else _first(statement).path[-1]


def _first(statement: Statement) -> Reference:
    return next(references(statement[1:]))


def _meet(path: Path, other: Path) -> bool:
    """Whether one of two paths leads to the other."""
    return all(ours == theirs for ours, theirs in zip(path, other, strict=False))
