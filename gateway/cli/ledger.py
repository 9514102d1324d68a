"""`bursar ledger`: ask the ledger, whether `bursar up` runs or not."""

from typing import Annotated

import typer

from gateway.cli.audit import checkpoint, consistency, prove, verify
from gateway.cli.export import export
from gateway.cli.ledger_query import query
from gateway.cli.ledger_serve import serve
from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption, JsonOption
from gateway.cli.output import complain, print_report
from gateway.cli.reconcile import reconcile
from gateway.cli.schema import schema
from gateway.cli.store import ledger_of
from ledger.reports import ROWS_MAX
from ledger.reports import report as report_of

app = typer.Typer(help="Query and report the ledger.", no_args_is_help=True)


@app.command()
def report(
    kind: Annotated[str, typer.Argument(help="spend, cache, gpu, estimates, denials or signals.")],
    group_by: Annotated[list[str] | None, typer.Option(help="A column to group by; may be repeated.")] = None,
    since: Annotated[str, typer.Option(help="How far back: 90m, 24h, 7d, or a date.")] = "7d",
    limit: Annotated[int, typer.Option(help="How many rows at most.")] = ROWS_MAX,
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Print a report."""
    asked = report_of(kind, group_by=group_by or (), since=since, limit=limit)
    with ledger_of(home, config) as client:
        client.flush()
        rows = client.rows(asked.sql)
    print_report(asked.title, rows[:limit], asked.columns, as_json=as_json)
    if len(rows) > limit:
        complain(f"there are more than these {limit} rows: ask for more with --limit, or for less with --since")


app.command()(query)
app.command()(serve)
app.command()(export)
app.command()(reconcile)
app.command()(verify)
app.command()(prove)
app.command()(checkpoint)
app.command()(consistency)
app.command()(schema)
