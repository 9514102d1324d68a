"""Output: tables for people, JSON for programs, complaints on standard error."""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Wide enough for a report that is piped into a file, where there is no terminal to ask.
_PIPED_COLUMNS = 160
# What a column takes beside its text, and the most text that one of a turned table is given where several fit.
_FRAME_COLUMNS = 3
_TURNED_COLUMNS_MAX = 40
_FIGURE = re.compile(r"[-+]?[0-9][0-9.,]*")
_DIGEST = re.compile(r"(\bsha256:[0-9a-f]{16})[0-9a-f]{48}\b")


def console() -> Console:
    """The console that results are printed on."""
    return Console(width=None if sys.stdout.isatty() else _PIPED_COLUMNS, highlight=False, emoji=False)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode() + "\n")


def print_rows(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """Print rows as a table of these columns, or all of them as JSON."""
    if as_json:
        print_json([dict(row) for row in rows])
        return
    table = Table(title=printable(title), title_justify="left")
    for column in columns:
        numeric = bool(rows) and all(isinstance(row.get(column), int | float) for row in rows)
        table.add_column(Text(printable(column)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(_text(row.get(column)))) for column in columns))
    console().print(table)


def print_report(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """Print rows as `print_rows` does, but turned where headings and figures would have to be broken to fit across.

    Turned, each row is a column below the value of its first one, and as many as fit stand beside each other.
    """
    width = console().width
    if as_json or not rows or _least_width(rows, columns) <= width:
        print_rows(title, rows, columns, as_json=as_json)
        return
    widest = max(len(_text(row.get(column))) for row in rows for column in columns)
    names = max(map(len, columns)) + _FRAME_COLUMNS
    at_once = max(1, (width - 1 - names) // (min(widest, _TURNED_COLUMNS_MAX) + _FRAME_COLUMNS))
    console().print(Text(printable(title)), soft_wrap=True)
    for place in range(0, len(rows), at_once):
        _print_turned(rows[place : place + at_once], columns)


def _least_width(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> int:
    """How wide a terminal must be for a table that breaks no heading and no figure."""
    values = {column: [_text(row.get(column)) for row in rows] for column in columns}
    return 1 + sum(
        max(len(column), *(len(value) for value in values[column] if _FIGURE.fullmatch(value)), 0) + _FRAME_COLUMNS
        for column in columns
    )


def _print_turned(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    heading, *names = columns
    table = Table()
    table.add_column(Text(printable(heading)), no_wrap=True)
    for row in rows:
        table.add_column(Text(printable(_text(row.get(heading)))), justify="right", overflow="fold")
    for name in names:
        table.add_row(*(Text(printable(each)) for each in (name, *(_text(row.get(name)) for row in rows))))
    console().print(table)


def printable(text: str) -> str:
    """The text without what would steer a terminal: a sign in place of each such character."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}" for each in text)


def brief(text: str) -> str:
    """The text with each SHA-256 cut to 16 digits: enough to tell it from others by eye; programs get it whole."""
    return _DIGEST.sub(r"\1", text)


def counted(count: int, what: str) -> str:
    """How many there are of what a noun with a plural in s names: `1 input`, `1,200 inputs`."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def place(file: str, line: int) -> str:
    """Where something stands; a line of 0 is not known."""
    return f"{file}:{line}" if line else file


def complain(message: str) -> None:
    """Say on standard error what went wrong."""
    sys.stderr.write(f"bursar: {message}\n")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
