"""Which modules of a bundle an entry point can reach, so that the embedded engine is given no others.

Every rule of a compiled bundle costs something at each evaluation, asked or not: in the shipped bundle the three gates
made an admission a fifth dearer.
"""

from collections.abc import Sequence

from policy.bundle import Module
from policy.source import Statement, references, statements

Path = tuple[str, ...]


def reachable(modules: Sequence[Module], entry: str) -> tuple[Module, ...]:
    """The modules of the packages that an entry point refers to, at any remove, in their order."""
    packages = [_package(module) for module in modules]
    paths = [_paths(module) for module in modules]
    reached: set[Path] = set()
    wanted: set[Path] = {tuple(entry.split("/"))}
    while wanted:
        found = {package for package in packages if any(_meet(package, path) for path in wanted)} - reached
        reached |= found
        wanted = {path for package, of in zip(packages, paths, strict=True) if package in found for path in of}
    return tuple(module for module, package in zip(modules, packages, strict=True) if package in reached)


def _package(module: Module) -> Path:
    for statement in statements(module.file, module.text):
        if statement[0].text == "package" and len(statement) > 1:
            return next(references(statement[1:])).path
    return ()


def _paths(module: Module) -> set[Path]:
    """The paths below `data` that a module names, imports included; a name that is computed ends its path."""
    return {path for statement in statements(module.file, module.text) for path in _data_paths(statement)}


def _data_paths(statement: Statement) -> set[Path]:
    return {reference.sure[1:] for reference in references(statement) if reference.sure[0] == "data"}


def _meet(package: Path, path: Path) -> bool:
    """Whether a path leads into a package or to something that it is a part of."""
    return all(ours == theirs for ours, theirs in zip(package, path, strict=False))
