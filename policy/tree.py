"""What stands below `data` in a bundle, by name: its packages, their rules, and the tables of its folders."""

from collections.abc import Iterable, Mapping
from typing import Any

Path = tuple[str, ...]


class Tree:
    """Knows which names a package or a folder has; what is deeper than these, in a rule or a table, it does not know.

    `rules` are the names of the rules of each package, `folders` the paths at which `data` was read from files.
    """

    def __init__(self, rules: Mapping[Path, Iterable[str]], folders: Iterable[Path], data: dict[str, Any]) -> None:
        self._names: dict[Path, set[str]] = {}
        for package, names in rules.items():
            self._lead_to(package)
            self._names[package] |= set(names)
        for folder in folders:
            self._lead_to(folder)
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
