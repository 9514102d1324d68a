"""Which parts of the input a bundle reads, so that the embedded engine is handed no others.

Handing over a value costs more than looking it up: leaving out what no rule names saves a fifth of an evaluation and
changes none, for a rule can only reach what some reference names or lies under.
"""

from collections.abc import Sequence

from policy.bundle import Module
from policy.port import Document
from policy.source import references, statements

Needs = dict[str, "Needs | None"]
"""The keys that are read, each with those below it, or None where all below it are."""


def needs(modules: Sequence[Module]) -> Needs | None:
    """What the modules read of the input; None where some reference takes the whole."""
    found: Needs = {}
    for module in modules:
        for statement in statements(module.file, module.text):
            for reference in references(statement):
                if reference.sure[0] != "input":
                    continue
                if len(reference.sure) == 1:
                    return None
                _add(found, reference.sure[1:])
    return found


def _add(found: Needs, path: tuple[str, ...]) -> None:
    for name in path[:-1]:
        below = found.setdefault(name, {})
        if below is None:
            return
        found = below
    found[path[-1]] = None


def narrowed(document: Document, needed: Needs | None) -> Document:
    """The needed part of a document; what is not an object where keys are read stays as it is."""
    if needed is None:
        return document
    return {
        name: narrowed(value, needed[name]) if type(value) is dict else value
        for name, value in document.items()
        if name in needed
    }
