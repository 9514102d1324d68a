"""`bursar policy backtest`: what another bundle would have decided on the inputs that are on record."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption, JsonOption
from gateway.cli.output import brief, console, counted, print_json
from gateway.cli.policy_bundle import to_compare
from gateway.cli.policy_flips import print_flips, tallied
from gateway.cli.store import ledger_of
from ledger import decisions
from ledger.client import LedgerClient
from ledger.reports import DEFAULT_SINCE, moment
from policy.backtest import Case, Tally, recorded_ruling
from policy.judges import Judges
from policy.port import ADMISSION

RECORDED = "recorded"


def backtest(
    bundle: Annotated[Path, typer.Option("--bundle", help="The folder of the bundle to try.")],
    since: Annotated[str, typer.Option(help="Inputs decided or used since when: 7d, or a date.")] = DEFAULT_SINCE,
    against: Annotated[
        str, typer.Option(help="The folder of another bundle to compare with, instead of what was decided.")
    ] = RECORDED,
    fail_on_flip: Annotated[
        bool, typer.Option("--fail-on-flip", help="Exit 1 when anything flips from allowed to denied or the reverse.")
    ] = False,
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Decide recorded admissions again by another bundle, and add up what flips in requests and spend.

    Obligations that change are shown and are no flip.
    """
    start = moment(since, datetime.now(UTC))
    old = None if against == RECORDED else Path(against)
    with to_compare(), ExitStack() as open_now:
        judges = open_now.enter_context(Judges(bundle, old))
        client = open_now.enter_context(ledger_of(home, config))
        client.flush()
        began_s = time.monotonic()
        tally = tried(client, judges, start)
        took_s = time.monotonic() - began_s
    if as_json:
        revisions = {"revision": judges.revision, "against": judges.old_revision or RECORDED}
        print_json({"since": start.isoformat(), **revisions, "seconds": round(took_s, 3), **tally.view()})
    else:
        print_flips(tally)
        rate = tally.all.inputs / took_s
        console().print(
            f"{brief(judges.revision)} against {brief(judges.old_revision or 'what was decided')} "
            f"since {start:%Y-%m-%d %H:%M} UTC: "
            f"{counted(tally.all.inputs, 'distinct input')} in {took_s:.1f} s, {rate:,.0f} a second",
            markup=False,
        )
    if fail_on_flip and tally.flipped:
        raise typer.Exit(1)


def tried(client: LedgerClient, judges: Judges, since: datetime) -> Tally:
    """What flips among the admissions on record since. LedgerUnavailable, QueryFailed, BundleError, BadRecord."""
    found = decisions.count(client, ADMISSION, since)
    return tallied(judges.judged(_cases(decisions.inputs(client, ADMISSION, since, found))), found)


def _cases(rows: Iterator[dict[str, Any]]) -> Iterator[Case]:
    return (case_of(row) for row in rows)


def case_of(row: dict[str, Any]) -> Case:
    """A distinct input as the ledger tells of it; BadRecord."""
    digest = row["input_digest"]
    ruling = recorded_ruling(
        digest, row["enforced_reasons"], row["enforced_obligations"], allow=bool(row["enforced_allow"])
    )
    spent = int(row["requests"]), int(row["list_cost_nusd"])
    return Case(digest, row["input"].encode(), ruling, *spent)
