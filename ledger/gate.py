"""The gate: which SQL may reach the engine of a read-only ledger, and what of it is said elsewhere than in the text.

`readonly=1` alone does not make an embedded engine safe to offer: `SELECT file('/path')`, `INTO OUTFILE`, `KILL QUERY`,
`DESCRIBE TABLE file(...)`, `mergeTreeIndex` and `merge` all pass it (tried on engine 26.9), and a function may be named
without being called (`arrayMap(file, ...)`, `APPLY(file)`). So a statement is read token by token before the engine
sees it. What cannot be read surely is refused.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from ledger import served

SQL_BYTES_MAX = 256 << 10

READING = frozenset({"select", "with", "from"})
STATEMENTS = READING | {"show", "describe", "desc", "explain", "exists"}
# What SHOW is followed by, and what the two of these that have many meanings are followed by.
SHOWN = frozenset({"tables", "columns", "fields", "databases", "index", "indexes", "indices", "keys", "create", "full"})
SHOWN_NEXT = {"create": frozenset({"table", "view", "database"}), "full": frozenset({"tables", "columns", "fields"})}
# `into` writes files; `apply` and `infile` name functions and files without parentheses; conditions in PREWHERE run on
# rows before a row filter has hidden them, and their errors tell what is in those.
REFUSED_WORDS = frozenset({"into", "outfile", "infile", "apply", "prewhere"})
# Conditions on these are met by looking at parts of everyone's rows, not at rows.
VIRTUAL_COLUMNS = ("_part", "_block_", "_disk_", "_row_", "_sample_")
# The engine's default database takes a name for the path of a file where no table has it, and says whether that exists.
FILE_SIGNS = frozenset("/\\:")
TABLES_FOLLOW = frozenset({"from", "join"})
TABLES_END = READING - {"from"} | frozenset(
    {"where", "group", "having", "window", "qualify", "order", "limit", "offset", "union", "except", "intersect"}
    | {"settings", "format", "like", "ilike", "array"}
)
# After these stand values, and after the next comma a table again.
TABLES_PAUSE = frozenset({"on", "using", "sample"})
# Their first argument is the name of an aggregate function.
NAMING_AGGREGATES = frozenset({"arrayreduce", "arrayreduceinranges", "initializeaggregation"})
# A harmless function over values has this name too.
BOTH_KINDS = frozenset({"format"})
HIDDEN_DATABASES = frozenset({"system", "information_schema", served.VIEWS})

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
_NAME_PARAMETER = re.compile(r"\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*:\s*Identifier\s*\}", re.IGNORECASE)
_AGGREGATE = re.compile(r"'[A-Za-z_][A-Za-z0-9_]*(?:\([^\\]*)?'")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_DEPTHS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}


class Refused(Exception):
    """The ledger does not run this statement; the message is safe to show."""


class Token(NamedTuple):
    """One token and where it begins; `name` is what an identifier spells, in lower case, and empty for the others."""

    kind: str
    text: str
    start: int

    @property
    def name(self) -> str:
        """The identifier without quotes, in lower case."""
        return self.text.strip('"`').lower() if self.kind in ("word", "quoted") else ""

    @property
    def end(self) -> int:
        """Where the next one may begin."""
        return self.start + len(self.text)


_NONE = Token("", "", 0)


class _Place(Enum):
    """What a statement names at some point: tables, values, or values with tables after the next comma."""

    TABLES = 1
    VALUES = 2
    PAUSE = 3


class Admitted(NamedTuple):
    """A statement without its closing FORMAT and SETTINGS, and what these said."""

    sql: str
    output_format: str
    settings: dict[str, str]
    explains: bool


class Function(NamedTuple):
    """What the engine says of one function of its own."""

    name: str
    categories: str
    alias_to: str


class Gate:
    """Admits single reading statements, given the engine's own lists of functions, so that new ones are refused."""

    def __init__(self, table_functions: Iterable[str], functions: Iterable[Function]) -> None:
        self._calls = {name.lower() for name in table_functions} - served.TABLE_FUNCTIONS - BOTH_KINDS
        known = list(functions)
        categories = {function.name: function.categories for function in known}
        self._functions = {function.name.lower() for function in known if not _is_harmless(function, categories)}

    def admit(self, sql: str, parameters: Mapping[str, str]) -> Admitted:
        """Passes one harmless reading statement; raises Refused for anything else.

        Parameters of the type Identifier are put in their places here, because names decide what is harmless.
        """
        if len(sql) > SQL_BYTES_MAX:
            raise Refused(f"the statement is longer than {SQL_BYTES_MAX} bytes")
        sql = _NAME_PARAMETER.sub(lambda match: _quoted_name(match[1], parameters), sql)
        tokens = _tokens(sql)
        first = _check_first(tokens)
        _check_tables(tokens, first)
        around = zip([_NONE, *tokens], tokens, [*tokens[1:], _NONE], strict=False)
        for before, token, following in around:
            self._check_name(before, token, following)
        _check_aggregates(tokens)
        body, said = _split_closing(tokens)
        for token, name, sign in zip(body, body[1:], body[2:], strict=False):
            if token.name == "settings" and name.name and sign.text == "=":
                raise Refused("SETTINGS are served at the end of a statement only")
        # What follows the last token, a comment for one, could be taken for what is added to the statement.
        return Admitted(_with_served_tables(sql[: body[-1].end], body), *said, first == "explain")

    def _check_name(self, before: Token, token: Token, following: Token) -> None:
        name = token.name
        quoted = token.kind == "quoted"
        called = following.text == "("
        if not quoted and name in REFUSED_WORDS:
            raise Refused(f"{name.upper()} is not served")
        if name.startswith(VIRTUAL_COLUMNS):
            raise Refused(f"the column {name} is not served")
        if name == "identifier" and before.text == ":":
            raise Refused("write a parameter of the type Identifier as {name:Identifier}")
        if name == "explain" and before.text == "(":
            raise Refused("EXPLAIN is served as a statement of its own only")
        if name in self._functions or name.startswith(served.NO_FUNCTIONS):
            raise Refused(f"the function {name} is not served")
        if quoted and FILE_SIGNS & set(name):
            raise Refused("names with a slash, a backslash or a colon are not served")
        if name and called and quoted:
            raise Refused(f"write the function {name} without quotes")
        if called and name in self._calls:
            raise Refused(f"the table function {name} is not served")


def _is_harmless(function: Function, categories: Mapping[str, str]) -> bool:
    of = function.categories or categories.get(function.alias_to, "")
    names = {function.name.lower(), function.alias_to.lower()}
    if any(name.startswith(served.NO_FUNCTIONS) for name in names):
        return False
    return of in served.CATEGORIES or bool(names & served.FUNCTIONS)


def _check_first(tokens: Sequence[Token]) -> str:
    """The word that the statement begins with; Refused when those who begin so are not served."""
    names = [token.name for token in tokens if token.text != "("]
    first, second, third, fourth = [*names, "", "", "", ""][:4]
    if first not in STATEMENTS:
        raise Refused("only SELECT, WITH, SHOW, DESCRIBE, EXPLAIN and EXISTS are served: the ledger is read-only")
    if first == "show" and (second not in SHOWN or third not in SHOWN_NEXT.get(second, {third})):
        raise Refused("of SHOW, only TABLES, COLUMNS, DATABASES, INDEX and CREATE TABLE are served")
    # PLAN, PIPELINE and ESTIMATE count parts, granules or rows that a row filter hides; AST prints what is added here.
    after = {"query": fourth, "syntax": third}.get(second, "")
    if first == "explain" and after not in READING:
        raise Refused("of EXPLAIN, only SYNTAX and QUERY TREE of a SELECT are served, without options")
    return first


def _check_tables(tokens: Sequence[Token], first: str) -> None:
    """Refuses texts in the place of tables, which the engine takes for paths of files and tells whether they exist."""
    places = [_Place.TABLES if first not in READING else _Place.VALUES]
    for before, token, following in zip([_NONE, *tokens], tokens, [*tokens[1:], _NONE], strict=False):
        if token.kind == "text" and places[-1] is _Place.TABLES:
            raise Refused("a text in the place of a table is not served")
        places[-1] = _place_after(places[-1], before, token, following)
        change = _DEPTHS.get(token.text, 0)
        if change > 0:
            places.append(_Place.VALUES)
        elif change < 0 and len(places) > 1:
            places.pop()


def _place_after(place: _Place, before: Token, token: Token, following: Token) -> _Place:
    """Where the statement is after a token, which an alias may spell like a word that ends the list of tables."""
    is_keyword = token.kind == "word" and before.name != "as" and following.text != ","
    if token.name in TABLES_FOLLOW or (token.text == "," and place is _Place.PAUSE):
        return _Place.TABLES
    if is_keyword and token.name in TABLES_END:
        return _Place.VALUES
    if is_keyword and token.name in TABLES_PAUSE and place is _Place.TABLES:
        return _Place.PAUSE
    return place


def _check_aggregates(tokens: Sequence[Token]) -> None:
    """Refuses names of aggregate functions in texts that are not served, or that cannot be read surely."""
    for token, sign, text, then in zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False):
        if token.name not in NAMING_AGGREGATES or sign.text != "(":
            continue
        if not _AGGREGATE.fullmatch(text.text) or then.text != ",":
            raise Refused(f"write the name of the aggregate function in {token.text} as a text")
        if text.text[1:].lower().startswith(served.NO_FUNCTIONS):
            raise Refused(f"the function {text.text} is not served")


def _quoted_name(parameter: str, parameters: Mapping[str, str]) -> str:
    """The value of a parameter of the type Identifier, quoted part by part."""
    value = parameters.get(parameter, "")
    if not _NAME.fullmatch(value):
        raise Refused(f"the parameter {parameter} is not a name of letters, digits and underscores")
    return ".".join(f"`{part}`" for part in value.split("."))


def _split_closing(tokens: list[Token]) -> tuple[list[Token], tuple[str, dict[str, str]]]:
    """The tokens before the closing FORMAT and SETTINGS, and the format and the settings that these name."""
    depth = 0
    for at, token in enumerate(tokens):
        depth += _DEPTHS.get(token.text, 0)
        if depth == 0 and token.kind == "word" and token.name in ("format", "settings"):
            said = _closing(tokens, at)
            if said is not None:
                return tokens[:at], said
    return tokens, ("", {})


def _closing(tokens: Sequence[Token], at: int) -> tuple[str, dict[str, str]] | None:
    """What the tokens from one on say that are FORMAT and SETTINGS, each once, and nothing else; None for others."""
    output_format = ""
    settings: dict[str, str] = {}
    while at < len(tokens):
        keyword, first, sign, value, then = [*tokens[at : at + 5], _NONE, _NONE, _NONE, _NONE][:5]
        begins = keyword.text == "," if settings else keyword.name == "settings"
        if keyword.name == "format" and not output_format and first.kind == "word" and sign.name in ("", "settings"):
            output_format, at = first.text, at + 2
        elif begins and first.kind == "word" and sign.text == "=":
            negative = value.text == "-"
            settings[first.text] = ("-" if negative else "") + _literal(then if negative else value)
            at += 5 if negative else 4
        else:
            return None
    return output_format, settings


def _literal(token: Token) -> str:
    """The value of a setting, without quotes."""
    if token.kind == "text" and "\\" not in token.text and "'" not in token.text[1:-1]:
        return token.text[1:-1]
    if token.kind in ("number", "word"):
        return token.text
    raise Refused("a setting is a number, a word or a plain text in quotes")


def _with_served_tables(sql: str, tokens: Sequence[Token]) -> str:
    """The statement with views in the place of those tables of `system` that show too much; Refused for the others."""
    parts, at = [], 0
    for token, dot, table in zip(tokens, [*tokens[1:], _NONE], [*tokens[2:], _NONE, _NONE], strict=False):
        if token.name not in HIDDEN_DATABASES:
            continue
        if token.name != "system" or dot.text != "." or table.name not in served.SYSTEM_TABLES | served.VIEW_SQL.keys():
            raise Refused(f"{sql[token.start : table.end if dot.text == '.' else token.end]} is not served")
        if table.name in served.VIEW_SQL:
            parts += [sql[at : token.start], served.VIEWS]
            at = token.end
    return "".join([*parts, sql[at:]])


def _tokens(sql: str) -> list[Token]:
    """The statement's tokens without blanks, comments and its closing semicolon; Refused when it is not just one."""
    tokens: list[Token] = []
    at, has_ended = 0, False
    while at < len(sql):
        match = _TOKEN.match(sql, at)
        if match is None:
            raise Refused(f"cannot read the statement at character {at + 1}: {sql[at : at + 20]!r}")
        kind, at = match.lastgroup or "", match.end()
        if kind == "skip":
            continue
        if has_ended:
            raise Refused("only one statement at a time is served")
        if match.group() == ";":
            has_ended = True
            continue
        tokens.append(Token(kind, match.group(), match.start()))
    return tokens
