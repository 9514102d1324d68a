"""`bursar budget`: what budgets have left, and grants."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway import views
from gateway.cli.admin import Admin
from gateway.cli.offline import opened, replicas
from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption, JsonOption
from gateway.cli.output import complain, console, print_json, print_rows
from gateway.controls import UnknownBudget
from gateway.governance import system_now_us
from gateway.home import Home
from ledger.client import running
from ledger.gpu_report import PEAKS_SQL

app = typer.Typer(help="List, show and raise budgets.", no_args_is_help=True)
_BUDGET_COLUMNS = ("id", "owner", "scope", "resource", "limit", "window", "mode")
_COUNTER_COLUMNS = ("budget", "counter", "resource", "window", "limit", "spent", "held", "remaining", "band")
_PEAK_COLUMNS = ("counter", "window_start", "peak", "overshoot")
# What is charged by estimate first, and corrected later: their budgets can be overshot.
ATTRIBUTED = ("gpu_us", "gpu_cost_nusd")
_ELSEWHERE = ("spent_elsewhere", "held_elsewhere", "stranded")
_SHARED_COLUMNS = (*_COUNTER_COLUMNS[:7], *_ELSEWHERE, *_COUNTER_COLUMNS[7:])
# What only the store of a shared book knows, and with it what is left of a limit.
_UNKNOWN = dict.fromkeys((*_ELSEWHERE, "remaining", "band"))


@app.command("list")
def list_budgets(home: HomeOption = HOME, config: ConfigOption = CONFIG, as_json: JsonOption = False) -> None:
    """List budgets and their live counters."""
    _print(_seen(Home.at(home), config, None), as_json=as_json)


@app.command()
def show(budget: str, home: HomeOption = HOME, config: ConfigOption = CONFIG, as_json: JsonOption = False) -> None:
    """Show one budget and its counters."""
    seen = _seen(Home.at(home), config, budget)
    if not seen["budgets"]:
        complain(f"there is no budget {budget}")
        raise typer.Exit(1)
    (shown,) = seen["budgets"]
    is_rolling = shown["window"].startswith("rolling")
    if shown["resource"] in ATTRIBUTED and not is_rolling:
        seen["peaks"] = _peaks(home, shown)
    _print(seen, as_json=as_json)
    if shown["resource"] in ATTRIBUTED and is_rolling and not as_json:
        console().print("The most that was charged to a rolling window at once is not known.")


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
    admin = Admin.of(Home.at(home))
    if admin is not None:
        granted = admin.post("/admin/grant", asked)
    else:
        with opened(Home.at(home), config) as (_, controls):
            try:
                granted = controls.grant(**asked, actor="cli")
            except UnknownBudget as error:
                complain(str(error))
                raise typer.Exit(1) from error
    if as_json:
        print_json(granted)
    elif "approval" in granted:
        console().print(granted["message"], markup=False, soft_wrap=True)
    else:
        console().print(f"granted {amount:,} to {budget} ({counter}) for {ttl_s} s: grant {granted['grant_id']}")


def _peaks(home: Path, budget: dict[str, Any]) -> list[dict[str, Any]]:
    """The most that was charged to a budget at once, by counter and window, as far as the ledger runs and can say."""
    client = running(home)
    if client is None:
        return []
    client.flush()
    rows = client.rows(PEAKS_SQL, budget=budget["id"])
    return [{**row, "peak": int(row["peak"]), "overshoot": max(0, int(row["peak"]) - budget["limit"])} for row in rows]


def _start(unix_s: int) -> str | None:
    """When a window began; that of a total has no beginning."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC") if unix_s else None


def _seen(home: Home, config: Path, budget: str | None) -> dict[str, Any]:
    admin = Admin.of(home)
    if admin is not None:
        query = {} if budget is None else {"budget": budget}
        seen: dict[str, Any] = admin.get("/admin/budgets", **query)
        return seen
    seen = {"counters": []}
    for replica in replicas(home, config):
        with opened(home, config, replica) as (book, _):
            seen |= {"shared": book.is_shared, "is_current": not book.is_shared}
            seen["budgets"] = [views.budget_view(each) for each in book.budgets.values() if budget in (None, each.id)]
            now_s = system_now_us() // 1_000_000
            for each in views.live_counters(book, now_s, budget):
                counter = views.counter_view(each, now_s)
                seen["counters"].append({**counter, **_UNKNOWN, "replica": replica} if book.is_shared else counter)
    return seen


def _print(seen: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(seen)
        return
    print_rows("Budgets", seen["budgets"], _BUDGET_COLUMNS, as_json=False)
    if seen.get("peaks"):
        peaks = [{**peak, "window_start": _start(peak["window_start_s"])} for peak in seen["peaks"]]
        print_rows("Peaks, before grants", peaks, _PEAK_COLUMNS, as_json=False)
    columns = _SHARED_COLUMNS if seen["shared"] else _COUNTER_COLUMNS
    is_offline = any("replica" in counter for counter in seen["counters"])
    print_rows("Counters", seen["counters"], ("replica", *columns) if is_offline else columns, as_json=False)
    if is_offline:
        console().print("No gateway runs here: what others have of the shared book, and so what is left, is not known.")
    elif seen["counters"] and not seen["is_current"]:
        console().print(
            "What others have of the shared book is as it was last heard: Redis does not answer, or not all gateways "
            "have reported to it."
        )
