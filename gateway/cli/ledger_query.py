"""`bursar ledger query`: one statement, its result printed as it comes, however large it is."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any

import typer

from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption
from gateway.cli.output import complain, console, print_report
from gateway.cli.store import ledger_of
from ledger.client import LedgerClient

TABLE_ROWS_MAX = 1_000


class Format(StrEnum):
    """How the result of a query is printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


_CLICKHOUSE = {Format.CSV: "CSVWithNames", Format.JSON: "JSONEachRow", Format.PARQUET: "Parquet"}


def query(
    sql: str,
    output_format: Annotated[Format, typer.Option("--format", help="How to print the result.")] = Format.TABLE,
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
) -> None:
    """Run one reading SQL statement; what is in the journal now is shipped first."""
    with ledger_of(home, config) as client:
        client.flush()
        if output_format is Format.TABLE:
            _print_table(client, sql)
        else:
            _print_all(client.stream(sql, _CLICKHOUSE[output_format], output_format_json_array_of_rows="1"))


def _print_table(client: LedgerClient, sql: str) -> None:
    """Prints the first rows, and counts the others without keeping them."""
    rows: list[dict[str, Any]] = []
    more = 0
    for line in _lines(client.stream(sql, "JSONEachRow")):
        if len(rows) < TABLE_ROWS_MAX:
            rows.append(_row(line))
        else:
            more += 1
    print_report("", rows, list(rows[0]) if rows else (), as_json=False)
    if more:
        console().print(f"and {more:,} more rows: print them with --format csv, json or parquet, or narrow the query")


def _row(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        complain("a query with a FORMAT of its own makes no table: leave it out, or say --format csv, json or parquet")
        raise typer.Exit(2)
    return row


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Lines, wherever the pieces that they come in are cut."""
    kept = b""
    for piece in pieces:
        *whole, kept = (kept + piece).split(b"\n")
        yield from whole
    if kept:
        yield kept


def _print_all(pieces: Iterator[bytes]) -> None:
    with readers_may_leave():
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


@contextmanager
def readers_may_leave() -> Iterator[None]:
    """Ends what is written to standard output quietly once nobody reads it any more, as `head` does."""
    try:
        yield
    except BrokenPipeError:
        # Whoever reads has enough; Python must find nothing left to write when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
