"""`bursar policy diff`: which rules and tables differ between two bundles, and what of the inputs on record flips."""

from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption, JsonOption
from gateway.cli.output import brief, complain, console, place, print_json, print_rows
from gateway.cli.policy_backtest import tried
from gateway.cli.policy_bundle import folder_of, to_compare
from gateway.cli.policy_flips import print_flips
from gateway.cli.store import ledger_of, ledger_url
from gateway.home import HomeError
from ledger.client import LedgerUnavailable, QueryFailed
from ledger.reports import DEFAULT_SINCE, moment
from policy.backtest import Tally
from policy.bundle import Bundle, load
from policy.difference import ABSENT, Difference, difference
from policy.judges import Judges

ROWS_MAX = 100
JSON_ROWS_MAX = 10_000
_VALUE_CHARACTERS_MAX = 120
_RULES = ("change", "package", "rule", "at")
_LEAVES = ("path", "before", "after")


def diff(
    first: Annotated[Path, typer.Argument(metavar="[OLD] NEW", help="One folder is compared with the configured one.")],
    second: Annotated[Path | None, typer.Argument(metavar=" ", help="", show_default=False)] = None,
    since: Annotated[
        str, typer.Option(help="Decide inputs on record since then by both: 7d, a date; by default where a ledger is.")
    ] = "",
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Show the rules and table values that differ between two bundles, and what flips of the inputs on record.

    The answer is 0 whatever differs.
    """
    old, new = (first, second) if second is not None else (folder_of(None, config, "name two folders"), first)
    start = moment(since or DEFAULT_SINCE, datetime.now(UTC))
    tally = None
    with to_compare():
        before, after = load(old), load(new)
        found = difference(before, after)
        if not as_json:
            _print(before, after, found)
        if before.revision != after.revision:
            tally = _flips(old, new, start, home, config, is_asked=bool(since))
    if as_json:
        print_json(_view(before, after, found, tally, start))
    elif tally is not None:
        print_flips(tally)
        console().print(f"inputs decided or used since {start:%Y-%m-%d %H:%M} UTC", markup=False)


def _flips(old: Path, new: Path, start: datetime, home: Path, config: Path, *, is_asked: bool) -> Tally | None:
    """What flips; None where there is no ledger and none was asked for."""
    if not is_asked and not _has_ledger(home.absolute(), config):
        return None
    try:
        with ExitStack() as open_now:
            judges = open_now.enter_context(Judges(new, old))
            client = open_now.enter_context(ledger_of(home, config))
            client.flush()
            return tried(client, judges, start)
    except (HomeError, LedgerUnavailable, QueryFailed) as error:
        if is_asked:
            raise
        complain(f"what flips is not known: {error}")
        return None


def _has_ledger(home: Path, config: Path) -> bool:
    """Whether there is a ledger to ask, or a journal to make one of."""
    scheme, _, folder = ledger_url(home, config).partition("://")
    if scheme != "chdb":
        return True
    return any(path.is_dir() and any(path.iterdir()) for path in (Path(folder), home / "journal"))


def _print(old: Bundle, new: Bundle, found: Difference) -> None:
    console().print(brief(f"{old.root} ({old.revision}) → {new.root} ({new.revision})"), markup=False, soft_wrap=True)
    if old.revision == new.revision:
        console().print("nothing that serves differs")
        return
    rules = [
        {"change": each.change, "package": each.package, "rule": each.rule, "at": place(each.file, each.line)}
        for each in found.rules
    ]
    _print_first("Rules", rules, _RULES)
    values = [{"path": each.path, "before": _short(each.before), "after": _short(each.after)} for each in found.leaves]
    _print_first("Tables", values, _LEAVES)
    if not found.rules and not found.leaves:
        console().print("only comments, layout or schemas differ")


def _print_first(title: str, rows: list[dict[str, str]], columns: tuple[str, ...]) -> None:
    if not rows:
        return
    print_rows(f"{title}: {len(rows):,} differ", rows[:ROWS_MAX], columns, as_json=False)
    if len(rows) > ROWS_MAX:
        console().print(f"and {len(rows) - ROWS_MAX:,} more: see them with --json")


def _view(old: Bundle, new: Bundle, found: Difference, tally: Tally | None, start: datetime) -> dict[str, Any]:
    leaves = [
        {
            "path": each.path,
            **{name: value for name, value in (("before", each.before), ("after", each.after)) if value is not ABSENT},
        }
        for each in found.leaves[:JSON_ROWS_MAX]
    ]
    return {
        "old": {"folder": str(old.root), "revision": old.revision},
        "new": {"folder": str(new.root), "revision": new.revision},
        "rules": [each._asdict() for each in found.rules[:JSON_ROWS_MAX]],
        "tables": leaves,
        "left_out": max(len(found.rules) - JSON_ROWS_MAX, 0) + max(len(found.leaves) - JSON_ROWS_MAX, 0),
        "flips": None if tally is None else {"since": start.isoformat(), **tally.view()},
    }


def _short(value: Any) -> str:
    text = "-" if value is ABSENT else orjson.dumps(value).decode()
    return text if len(text) <= _VALUE_CHARACTERS_MAX else f"{text[:_VALUE_CHARACTERS_MAX]}…"
