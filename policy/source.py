"""Rego source as tokens and references with their lines, enough to judge a module without running it."""

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from policy.port import BundleError

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
      | (?P<comment>\#[^\n]*)
      | (?P<template>\$["`])
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<raw>`[^`]*`)
      | (?P<number>\d[\w.]*(?:(?<=[eE])[+-]\d+)?)
      | (?P<name>[^\W\d]\w*)
      | (?P<punct>:=|==|!=|<=|>=|.)""",
    re.VERBOSE | re.DOTALL,
)
_PUNCTUATION = frozenset({":=", "==", "!=", "<=", ">=", *"=<>+-*/%&|.,;:()[]{}"})
_OPEN, _CLOSE = frozenset("([{"), {")": "(", "]": "[", "}": "{"}
# Names that stand between values, and those that begin something new as a value does.
_BETWEEN = frozenset({"as", "contains", "else", "if", "in", "with"})
_BEGINNING = frozenset({"default", "every", "import", "not", "package", "some"})
_KEYWORDS = _BETWEEN | _BEGINNING


class Token(NamedTuple):
    """One token; `column` counts from 1."""

    kind: str
    text: str
    line: int
    column: int


class Reference(NamedTuple):
    """A name and the fixed path that follows it, `http["send"]` and `http.send` alike; `at` is its token's index.

    `sure` is the path without what may not belong to it: a bracket on a new line may begin an expression of its own.
    """

    path: tuple[str, ...]
    line: int
    at: int
    sure: tuple[str, ...]


Statement = tuple[Token, ...]


def tokens(file: str, text: str) -> Iterator[Token]:
    """The tokens of a module without spaces and comments.

    Raises BundleError for template strings, which can hide calls, and for what is no character of Rego: engines take
    some of them for spaces, and others for the end.
    """
    line, line_start, position = 1, 0, 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        assert match is not None, "the last alternative matches any character"
        kind, value = str(match.lastgroup), match.group()
        if kind == "template":
            raise BundleError(file, line, "template strings are not allowed; use sprintf")
        if kind == "punct" and value not in _PUNCTUATION:
            is_quote = value in ('"', "`")
            message = "opens a string that nothing closes" if is_quote else "is no character of Rego: take it out"
            raise BundleError(file, line, f"{value!a} {message}")
        if kind not in ("space", "comment"):
            yield Token(kind, value, line, position - line_start + 1)
        newlines = value.count("\n")
        if newlines:
            line += newlines
            line_start = position + value.rindex("\n") + 1
        position = match.end()


def statements(file: str, text: str) -> Iterator[Statement]:
    """The top-level statements of a module: each begins in the first column, outside of brackets.

    Raises BundleError where an engine would begin or end them elsewhere, and so see a rule that none of these is.
    """
    current: list[Token] = []
    opened: list[Token] = []
    for token in tokens(file, text):
        if not opened and token.column == 1 and token.text != "else" and current:
            yield _single(file, tuple(current))
            current = []
        if token.kind == "punct" and token.text in _OPEN:
            opened.append(token)
        elif (
            token.kind == "punct" and token.text in _CLOSE and not (opened and opened.pop().text == _CLOSE[token.text])
        ):
            raise BundleError(file, token.line, f"{token.text} closes nothing")
        current.append(token)
    if opened:
        raise BundleError(file, opened[-1].line, f"this {opened[-1].text} is unclosed")
    if current:
        yield _single(file, tuple(current))


def _single(file: str, statement: Statement) -> Statement:
    """The statement, if it is one and the whole of one: after a value or brackets nothing may begin in it."""
    if not _has_head(statement):
        first = statement[0]
        raise BundleError(file, first.line, f"{first.text} begins no statement: indent what belongs to the one before")
    depth, is_after_value = 0, False
    for at, token in enumerate(statement):
        is_new = False
        if token.kind == "punct":
            depth += (token.text in _OPEN) - (token.text in _CLOSE)
            is_new = depth == 0 and token.text == ";"
            is_after_value = token.text in _CLOSE
        elif depth == 0:
            is_keyword = token.text in _KEYWORDS and not _is_name(statement, at)
            is_new = is_after_value and not (is_keyword and token.text in _BETWEEN)
            is_after_value = not is_keyword
        if is_new:
            message = f"{token.text} does not belong to the statement before: begin each in the first column of a line"
            raise BundleError(file, token.line, message)
    if not is_after_value:
        raise BundleError(file, statement[-1].line, f"nothing follows {statement[-1].text}: indent what belongs to it")
    return statement


def _has_head(statement: Statement) -> bool:
    """Whether a statement begins as a rule, a package or an import does."""
    is_declared = statement[0].text in ("default", "import", "package") and len(statement) > 1
    head = statement[1] if is_declared else statement[0]
    return head.kind == "name" and head.text not in _KEYWORDS


def _is_name(statement: Statement, at: int) -> bool:
    """Whether a keyword is none where it stands: a part of a path, or the function `contains`."""
    after = statement[at + 1].text if at + 1 < len(statement) else ""
    before = statement[at - 1].text if at else ""
    return "." in (before, after) or (statement[at].text == "contains" and after == "(")


def literal(token: Token) -> str | None:
    """The text that a string token stands for, or None where it is none."""
    if token.kind == "raw":
        return token.text[1:-1]
    if token.kind != "string":
        return None
    try:
        value = json.loads(token.text)
    except ValueError:
        return None
    return str(value)


def references(statement: Statement) -> Iterator[Reference]:
    """Every reference of a statement, each from its first name on."""
    after_dot = False
    for at, token in enumerate(statement):
        if token.kind == "name" and not after_dot:
            path, sure = _path(statement, at)
            yield Reference(path, token.line, at, path[:sure])
        after_dot = token.text == "." and token.kind == "punct"


def _path(statement: Statement, at: int) -> tuple[tuple[str, ...], int]:
    """A path, and how many of its names stand before the first bracket that begins a line."""
    path, sure = [statement[at].text], 0
    while True:
        ahead = statement[at + 1 : at + 4]
        if len(ahead) >= 2 and ahead[0].text == "." and ahead[1].kind == "name":
            path.append(ahead[1].text)
            at += 2
            continue
        key = literal(ahead[1]) if len(ahead) == 3 and ahead[0].text == "[" and ahead[2].text == "]" else None
        if key is None:
            return tuple(path), sure or len(path)
        if ahead[0].line != statement[at].line:
            sure = sure or len(path)
        path.append(key)
        at += 3
