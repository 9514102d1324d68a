"""`bursar ledger`: ask the ledger, whether `bursar up` runs or not."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption, JsonOption
from gateway.cli.output import print_json, print_rows
from gateway.config_file import load
from gateway.home import Home
from ledger.client import open_ledger
from ledger.reports import report as report_of

app = typer.Typer(help="Query and report the ledger.", no_args_is_help=True)


class Format(StrEnum):
    """How the result of a query is printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"
    PARQUET = "parquet"


_CLICKHOUSE = {Format.CSV: "CSVWithNames", Format.JSON: "JSON", Format.PARQUET: "Parquet"}


@app.command()
def query(
    sql: str,
    output_format: Annotated[Format, typer.Option("--format", help="How to print the result.")] = Format.TABLE,
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
) -> None:
    """Run one reading SQL statement; what is in the journal now is shipped first."""
    with open_ledger(Home(home).path, _url(home, config)) as client:
        client.flush()
        if output_format is Format.TABLE:
            rows = client.rows(sql)
            print_rows("", rows, list(rows[0]) if rows else (), as_json=False)
        elif output_format is Format.JSON:
            print_json(client.rows(sql))
        else:
            sys.stdout.buffer.write(client.query(sql, _CLICKHOUSE[output_format]))


@app.command()
def report(
    kind: Annotated[str, typer.Argument(help="spend, cache, gpu or denials.")],
    group_by: Annotated[list[str] | None, typer.Option(help="A column to group by; may be repeated.")] = None,
    since: Annotated[str, typer.Option(help="How far back: 90m, 24h, 7d, or a date.")] = "7d",
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Print a report."""
    asked = report_of(kind, group_by=group_by or (), since=since)
    with open_ledger(Home(home).path, _url(home, config)) as client:
        client.flush()
        print_rows(asked.title, client.rows(asked.sql), asked.columns, as_json=as_json)


def _url(home: Path, config: Path) -> str:
    """The store's URL; without a configuration file it is the home's own."""
    if not config.exists():
        return f"chdb://{Home(home).path / 'ledger'}"
    return f"chdb://{load(config).config.ledger.folder(Home(home).path)}"
