"""What a check is: its name, what it is given, what it finds, and the library that it needs.

A finding says what kind of thing was found and where, and never the thing itself: it is told to the client and stands
in the ledger.

CheckError
├── CheckFailed    a check could not be made: it took too long, its process ended, its library is missing
└── SchemaRefused  a schema of the request that nothing can be held to
"""

from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

TOOL_CALLS = "tool_calls"
SECRETS = "secrets"
JSON_SCHEMA = "json_schema"
PII = "pii"
SECOND_MODEL = "second_model"
HUMAN = "human"
# In the order of what they cost: the first to fail ends the verification.
NAMES = (TOOL_CALLS, SECRETS, JSON_SCHEMA, PII, SECOND_MODEL, HUMAN)
# These can be made on a part of an answer, line by line.
BY_LINE = frozenset({SECRETS, PII})
# The modules that a check needs; `jsonschema` is there always, the others come with the extra `verify`.
LIBRARIES = {SECRETS: "detect_secrets", JSON_SCHEMA: "jsonschema", TOOL_CALLS: "jsonschema", PII: "presidio_analyzer"}


class CheckError(Exception):
    """A check has no answer."""


class CheckFailed(CheckError):
    """A check could not be made, which counts as a finding of the kind `kind`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class SchemaRefused(CheckError):
    """A schema of the request is no schema, is too large, or refers to what is not in it."""


class Text(NamedTuple):
    """A text to check: where it stands in the answer, and the number of its first line there."""

    where: str
    first_line: int
    text: str


class Finding(NamedTuple):
    """What a check found: its kind, and where."""

    kind: str
    where: str


def ordered(names: tuple[str, ...]) -> tuple[str, ...]:
    """The known ones of these names, each once, the cheapest first."""
    return tuple(name for name in NAMES if name in names)


def missing(names: tuple[str, ...]) -> dict[str, str]:
    """The checks of these names that cannot be made here, with the library that each lacks."""
    return {name: LIBRARIES[name] for name in names if name in LIBRARIES and not _is_installed(LIBRARIES[name])}


@cache
def _is_installed(module: str) -> bool:
    return find_spec(module) is not None
