"""The gate: which SQL may reach the engine of a read-only ledger.

`readonly=1` alone does not make an embedded engine safe to offer: `SELECT file('/path')`, `INTO OUTFILE`,
`DESCRIBE TABLE file(...)` and `KILL QUERY` all pass it (tried on engine 26.9), and a function may be named without
being called (`arrayMap(file, ...)`, `APPLY(file)`). So a statement is read token by token before the engine sees it.
What cannot be read surely is refused.
"""

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

SQL_BYTES_MAX = 256 << 10

STATEMENTS = frozenset({"select", "with", "show", "describe", "desc", "explain", "exists", "from"})
# `into` writes files; `apply` and `infile` name functions and files without parentheses.
REFUSED_WORDS = frozenset({"into", "outfile", "infile", "apply"})
# The only table functions that reach nothing beyond the statement itself.
TABLE_FUNCTIONS = frozenset({"numbers", "numbers_mt", "zeros", "generateseries", "generate_series", "values", "view"})
# A harmless function over values has this name too.
BOTH_KINDS = frozenset({"format"})
# Functions over values that reach files, the network or other stores, hold a reader up, or show the host.
REFUSED_FUNCTIONS = frozenset(
    {"file", "eval", "python", "sleep", "sleepeachrow", "catboostevaluate", "getmacro", "getserversetting"}
    | {"hostname", "fullhostname", "getserverport", "getclienthttpheader", "showcertificate"}
)
REFUSED_FAMILIES = ("ai", "dictget", "dicthas", "dictisin", "filesystem", "addressto", "joinget", "naivebayes")

_TOKEN = re.compile(
    r"""
      (?P<skip>[ \t\r\n\f\v]+|--[^\n]*|/\*.*?\*/)
    | (?P<text>'(?:[^'\\]|\\.|'')*')
    | (?P<quoted>"[^"\\]*"|`[^`\\]*`)
    | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<number>[0-9][0-9A-Za-z_.]*)
    | (?P<sign>/(?!\*)|[-+*%<>=!,.:;()\[\]{}?@|&^~])
    """,
    re.VERBOSE | re.DOTALL,
)


class Refused(Exception):
    """The ledger does not run this statement; the message is safe to show."""


class Admitted(NamedTuple):
    """A statement without its closing semicolon, and whether it names its own output format."""

    sql: str
    names_format: bool


class Gate:
    """Admits single reading statements, given the engine's own lists of functions, so that new ones are refused."""

    def __init__(self, table_functions: Iterable[str], functions: Iterable[str]) -> None:
        self._calls = {name.lower() for name in table_functions} - TABLE_FUNCTIONS - BOTH_KINDS
        families = {name for name in map(str.lower, functions) if name.startswith(REFUSED_FAMILIES)}
        self._functions = REFUSED_FUNCTIONS | families

    def admit(self, sql: str) -> Admitted:
        """Passes one harmless reading statement; raises Refused for anything else."""
        if len(sql) > SQL_BYTES_MAX:
            raise Refused(f"the statement is longer than {SQL_BYTES_MAX} bytes")
        tokens, end = _tokens(sql)
        first = next((text.lower() for _, text in tokens if text != "("), "")
        if first not in STATEMENTS:
            raise Refused("only SELECT, WITH, SHOW, DESCRIBE, EXPLAIN and EXISTS are served: the ledger is read-only")
        names_format = False
        for (kind, text), (next_kind, following) in pairwise([*tokens, ("end", "")]):
            if kind in ("word", "quoted"):
                self._check_name(text.strip('"`').lower(), called=following == "(", quoted=kind == "quoted")
            names_format |= kind == "word" and text.lower() == "format" and next_kind == "word"
        return Admitted(sql[:end], names_format)

    def _check_name(self, name: str, *, called: bool, quoted: bool) -> None:
        if not quoted and name in REFUSED_WORDS:
            raise Refused(f"{name.upper()} is not served: the ledger is read-only")
        if name in self._functions:
            raise Refused(f"the function {name} is not served")
        if called and quoted:
            raise Refused(f"write the function {name} without quotes")
        if called and name in self._calls:
            raise Refused(f"the table function {name} is not served")


def _tokens(sql: str) -> tuple[list[tuple[str, str]], int]:
    """The statement's tokens without blanks and comments, and where it ends; Refused when it is not just one."""
    tokens: list[tuple[str, str]] = []
    at, end = 0, len(sql)
    while at < len(sql):
        match = _TOKEN.match(sql, at)
        if match is None:
            raise Refused(f"cannot read the statement at character {at + 1}: {sql[at : at + 20]!r}")
        kind, at = match.lastgroup or "", match.end()
        if kind == "skip":
            continue
        if end < len(sql):
            raise Refused("only one statement at a time is served")
        if match.group() == ";":
            end = match.start()
            continue
        tokens.append((kind, match.group()))
    return tokens, end
