"""What flips, as tables for people; shared by the commands of `bursar policy` that compare rulings."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gateway.cli.output import console, counted, print_rows
from policy.backtest import KINDS, Tally
from policy.judges import Judged

ROWS_MAX = 20
_SAID = {
    "allowed_to_denied": "allowed → denied",
    "denied_to_allowed": "denied → allowed",
    "obligations_changed": "other obligations",
}
_TOTALS = ("what", "inputs", "requests", "list USD")
_CAUSES = ("what", "reason or obligation", "inputs", "requests", "list USD")
_TEAMS = ("org", "team", *_SAID.values(), "requests", "of requests", "list USD", "of list USD")
_APPS = ("org", "team", "app", *_TEAMS[2:])
_EXAMPLES = ("what", "because", "requests", "org/team/app", "model", "input digest")


def print_flips(tally: Tally) -> None:
    """Print totals, then what flips by cause and by app, the largest first, and some inputs that flip."""
    view = tally.view()
    totals = [("decided again", view), *((_SAID[kind], view[kind]) for kind in KINDS)]
    rows = [{"what": name, **_sums(sums)} for name, sums in totals]
    print_rows("What would have been decided otherwise", rows, _TOTALS, as_json=False)
    if view["failed"]:
        said = "; ".join(f"{each['inputs']:,} times {each['message']}" for each in view["failures"][:3])
        console().print(f"{counted(view['failed'], 'input')} could not be decided, which denies: {said}", markup=False)
    _print_first("By reason or obligation", [_cause(each) for each in view["by_cause"]], _CAUSES)
    _print_first("By team", [_scope(each) for each in view["by_team"]], _TEAMS)
    _print_first("By app", [_scope(each) for each in view["by_app"]], _APPS)
    _print_first("With most requests", [_example(each) for each in view["examples"]], _EXAMPLES)


@contextmanager
def progress(what: str, total: int) -> Iterator[Progress]:
    """A bar on standard error, where that is a terminal; `advance` task 0."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, emoji=False),
        transient=True,
    )
    bar.disable = not bar.console.is_terminal
    with bar:
        bar.add_task(what, total=total)
        yield bar


def tallied(judged: Iterable[list[Judged]], total: int) -> Tally:
    """All of it added up, with a bar meanwhile."""
    tally = Tally()
    with progress("deciding again", total) as bar:
        for each in judged:
            for case, before, after in each:
                tally.add(case, before, after)
            bar.advance(bar.task_ids[0], len(each))
    return tally


def usd(nusd: int) -> str:
    """An amount of nano-USD in USD with all nine decimals."""
    sign = "-" if nusd < 0 else ""
    return f"{sign}{abs(nusd) // 10**9:,}.{abs(nusd) % 10**9:09d}"


def _print_first(title: str, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> None:
    if not rows:
        return
    print_rows(title, rows[:ROWS_MAX], columns, as_json=False)
    if len(rows) > ROWS_MAX:
        console().print(f"and {len(rows) - ROWS_MAX:,} more: see them with --json")


def _sums(view: dict[str, Any]) -> dict[str, Any]:
    return {"inputs": view["inputs"], "requests": view["requests"], "list USD": usd(view["list_cost_nusd"])}


def _cause(each: dict[str, Any]) -> dict[str, Any]:
    return {"what": _SAID[each["kind"]], "reason or obligation": each["cause"], **_sums(each)}


def _scope(each: dict[str, Any]) -> dict[str, Any]:
    return {
        **{name: each[name] for name in ("org", "team", "app", "requests") if name in each},
        **{_SAID[kind]: each[kind] for kind in KINDS},
        "list USD": usd(each["list_cost_nusd"]),
        "of requests": each["of_requests"],
        "of list USD": usd(each["of_list_cost_nusd"]),
    }


def _example(each: dict[str, Any]) -> dict[str, Any]:
    given = each["input"] if isinstance(each["input"], dict) else {}
    principal, intent = (part if isinstance(part := given.get(name), dict) else {} for name in ("principal", "intent"))
    return {
        "what": _SAID[each["kind"]],
        "because": ", ".join(each["causes"]),
        "requests": each["requests"],
        "org/team/app": "/".join(str(principal.get(name, "")) for name in ("org", "team", "app")),
        "model": str(intent.get("model", "")),
        "input digest": each["input_digest"][:16],
    }
