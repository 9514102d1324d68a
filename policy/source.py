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
_OPEN, _CLOSE = frozenset("([{"), frozenset(")]}")


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
    """The tokens of a module without spaces and comments; template strings are refused, for they can hide calls."""
    line, line_start, position = 1, 0, 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        assert match is not None, "the last alternative matches any character"
        kind, value = str(match.lastgroup), match.group()
        if kind == "template":
            raise BundleError(file, line, "template strings are not allowed; use sprintf")
        if kind not in ("space", "comment"):
            yield Token(kind, value, line, position - line_start + 1)
        newlines = value.count("\n")
        if newlines:
            line += newlines
            line_start = position + value.rindex("\n") + 1
        position = match.end()


def statements(file: str, text: str) -> Iterator[Statement]:
    """The top-level statements of a module: each begins in the first column, outside of brackets."""
    current: list[Token] = []
    depth = 0
    for token in tokens(file, text):
        if depth == 0 and token.column == 1 and token.text != "else" and current:
            yield tuple(current)
            current = []
        if token.kind == "punct":
            depth += (token.text in _OPEN) - (token.text in _CLOSE)
        current.append(token)
    if current:
        yield tuple(current)


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
