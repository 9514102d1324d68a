"""`bursar slo` and `bursar headroom`: what was promised and what is left of it, and how much room a scope has."""

import time
from typing import Annotated, Any

import typer

from gateway.cli.admin import Admin
from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption, JsonOption
from gateway.cli.output import complain, console, print_json, print_rows
from gateway.cli.store import ledger_of
from gateway.config_file import load
from gateway.home import Home
from gateway.slos import measure, status_row, status_view

_COLUMNS = ("id", "scope", "promise", "events", "good", "left", "fast", "slow", "p50 / p95 / p99 ms", "state")
_PARTS = ("part", "left", "known", "limited by", "why")
_ALARMING = ("burning", "exhausted")


def slo(
    check: Annotated[bool, typer.Option("--check", help="Exit 1 when one burns or is exhausted.")] = False,
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Measure every SLO in the ledger: what is left of its error budget and how fast that burns."""
    loaded = load(config).config
    if check and not loaded.slos:
        complain(f"there are no SLOs in {config} to check: write some under slos")
        raise typer.Exit(2)
    with ledger_of(home, config) as client:
        # Rows of the second that goes on count too.
        found = measure(client, [each.target for each in loaded.slos], int(time.time()) + 1)
    if as_json:
        print_json([status_view(status) for status in found])
    elif found:
        print_rows("SLOs", [status_row(status) for status in found], _COLUMNS, as_json=False)
        for status in found:
            if status.why:
                console().print(f"{status.objective.id} cannot be judged: {status.why}", markup=False)
    else:
        console().print(f"there are no SLOs in {config}: write some under slos")
    if check and any(status.state in _ALARMING for status in found):
        raise typer.Exit(1)


def headroom(
    org: Annotated[str, typer.Option(help="Found by the team or app where only one has it.")] = "",
    team: Annotated[str, typer.Option(help="Of which team.")] = "",
    app: Annotated[str, typer.Option(help="Of which app.")] = "",
    model: Annotated[str, typer.Option(help="On which model only.")] = "",
    home: HomeOption = HOME,
    as_json: JsonOption = False,
) -> None:
    """How much room a scope has left, in thousandths, and what limits it; the running gateway is asked."""
    admin = Admin.of(Home.at(home))
    if admin is None:
        complain(f"no gateway runs on {home}, and only one that does knows its risk: start `bursar up`")
        raise typer.Exit(3)
    found = admin.get("/admin/headroom", org=org, team=team, app=app, model=model)
    if as_json:
        print_json(found)
        return
    _print(found)


def _print(found: dict[str, Any]) -> None:
    scope = ", ".join(f"{name}={value}" for name, value in found["scope"].items() if value) or "the whole deployment"
    rows = [
        {
            "part": name,
            "left": part["permille"],
            "known": "yes" if part["known"] else "no",
            "limited by": part["limited_by"] or None,
            "why": part["why"],
        }
        for name, part in found["parts"].items()
    ]
    print_rows(f"Headroom of {scope}, in thousandths", rows, _PARTS, as_json=False)
    binds = found["limited_by"]
    console().print(f"overall {found['headroom']['overall']}, by {binds['part']}: {binds['why']}", markup=False)
