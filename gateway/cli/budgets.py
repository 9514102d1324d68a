"""`bursar budget`: what budgets have left, and grants."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gateway import views
from gateway.cli.admin import Admin
from gateway.cli.offline import opened
from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption, JsonOption
from gateway.cli.output import complain, console, print_json, print_rows
from gateway.controls import UnknownBudget
from gateway.governance import system_now_us
from gateway.home import Home

app = typer.Typer(help="List, show and raise budgets.", no_args_is_help=True)
_BUDGET_COLUMNS = ("id", "owner", "scope", "resource", "limit", "window", "mode")
_COUNTER_COLUMNS = ("budget", "counter", "resource", "window", "limit", "spent", "held", "remaining", "band")


@app.command("list")
def list_budgets(home: HomeOption = HOME, config: ConfigOption = CONFIG, as_json: JsonOption = False) -> None:
    """List budgets and their live counters."""
    _print(_seen(Home(home), config, None), as_json=as_json)


@app.command()
def show(budget: str, home: HomeOption = HOME, config: ConfigOption = CONFIG, as_json: JsonOption = False) -> None:
    """Show one budget and its counters."""
    seen = _seen(Home(home), config, budget)
    if not seen["budgets"]:
        complain(f"there is no budget {budget}")
        raise typer.Exit(1)
    _print(seen, as_json=as_json)


@app.command()
def grant(
    budget: str,
    amount: Annotated[int, typer.Argument(min=1, help="Extra limit, in the budget's unit.")],
    ttl_s: Annotated[int, typer.Option(min=1, help="Seconds until the grant ends.")] = 3600,
    counter: Annotated[str, typer.Option(help="One counter, as `budget list` names it, or * for all.")] = "*",
    reason: Annotated[str, typer.Option(help="Why; it is recorded.")] = "",
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Raise a budget's limit for a while: at once in the live gateway, and as a row of the ledger."""
    asked: dict[str, Any] = {"budget": budget, "amount": amount, "ttl_s": ttl_s, "counter": counter, "reason": reason}
    admin = Admin.of(Home(home))
    if admin is not None:
        granted = admin.post("/admin/grant", asked)
    else:
        with opened(Home(home), config) as (_, controls):
            try:
                granted = controls.grant(**asked, actor="cli")
            except UnknownBudget as error:
                complain(str(error))
                raise typer.Exit(1) from error
    if as_json:
        print_json(granted)
    else:
        console().print(f"granted {amount:,} to {budget} ({counter}) for {ttl_s} s: grant {granted['grant_id']}")


def _seen(home: Home, config: Path, budget: str | None) -> dict[str, Any]:
    admin = Admin.of(home)
    if admin is not None:
        query = {} if budget is None else {"budget": budget}
        seen: dict[str, Any] = admin.get("/admin/budgets", **query)
        return seen
    with opened(home, config) as (book, _):
        return {
            "budgets": [views.budget_view(each) for each in book.budgets.values() if budget in (None, each.id)],
            "counters": views.book_view(book, system_now_us() // 1_000_000, budget),
        }


def _print(seen: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(seen)
        return
    print_rows("Budgets", seen["budgets"], _BUDGET_COLUMNS, as_json=False)
    print_rows("Counters", seen["counters"], _COUNTER_COLUMNS, as_json=False)
