"""What stands below `data` in a bundle, by name: its packages, their rules, and the tables of its folders."""

from collections.abc import Iterable
from typing import Any

Path = tuple[str, ...]


class Tree:
    """Knows which names a package or a folder has; what is deeper than these, in a rule or a table, it does not know.

    `rules` are the paths of rules, packages included, `folders` those at which `data` was read from files.
    """

    def __init__(
        self, packages: Iterable[Path], rules: Iterable[Path], folders: Iterable[Path], data: dict[str, Any]
    ) -> None:
        self._names: dict[Path, set[str]] = {}
        for path in (*packages, *folders):
            self._lead_to(path)
        for rule in rules:  # the head of one may reach into another package
            for length, name in enumerate(rule):
                if rule[:length] in self._names:
                    self._names[rule[:length]].add(name)
        for path, known in self._names.items():
            known.update(_keys_at(data, path))

    def unknown(self, path: Path) -> Path | None:
        """The beginning of a path that leads to nothing; None where there is something, or nobody can tell."""
        for length, name in enumerate(path):
            known = self._names.get(path[:length])
            if known is None:
                return None
            if name not in known:
                return path[: length + 1]
        return None

    def _lead_to(self, path: Path) -> None:
        self._names.setdefault(path, set())
        for length in range(len(path)):
            self._names.setdefault(path[:length], set()).add(path[length])


def _keys_at(data: dict[str, Any], path: Path) -> set[str]:
    table: Any = data
    for name in path:
        table = table.get(name) if isinstance(table, dict) else None
    return set(table) if isinstance(table, dict) else set()
