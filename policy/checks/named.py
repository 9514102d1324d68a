"""Which checks a bundle names, and so may oblige: what makes them must then be installed."""

from collections.abc import Iterator
from typing import Any

from policy.bundle import Bundle
from policy.checks.port import NAMES
from policy.source import literal, tokens


def named(bundle: Bundle) -> tuple[str, ...]:
    """The checks whose names stand in the tables or as strings in the rules, the cheapest first.

    A name that rules put together from pieces is not found, and one may stand there for something else.
    """
    said = set(_strings(bundle.data))
    for module in bundle.modules:
        said |= {text for token in tokens(module.file, module.text) if (text := literal(token)) is not None}
    return tuple(name for name in NAMES if name in said)


def _strings(table: Any) -> Iterator[str]:
    """Every text in a table, names of members included."""
    if isinstance(table, str):
        yield table
    elif isinstance(table, dict):
        yield from table
        for value in table.values():
            yield from _strings(value)
    elif isinstance(table, list):
        for value in table:
            yield from _strings(value)
