"""`bursar ledger reconcile`: the counters, the runtimes and the journal beside the ledger, and correction rows."""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway import assembly
from gateway.adjustments import Adjustments
from gateway.cli.admin import Admin
from gateway.cli.offline import replicas
from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption, JsonOption
from gateway.cli.output import console, print_json, print_rows
from gateway.cli.store import ledger_of
from gateway.config_file import load
from gateway.controls import Controls
from gateway.governance import system_now_us
from gateway.home import Home
from gateway.keys import KeyStore
from gateway.pseudonyms import Pseudonyms
from gateway.reconciliation import Reconciliation, Result, sample
from ledger.client import running

# Sums over a large ledger take a while, and it is asked several things.
TIMEOUT_S = 600.0
_COLUMNS = ("kind", "subject", "quantity", "ledger_least", "ledger_most", "found", "drift")


def reconcile(
    mend: Annotated[bool, typer.Option("--mend", help="Post a correction row for each counter that drifts.")] = False,
    rebase: Annotated[bool, typer.Option("--rebase", help="Set aside the drift of runtimes; it is recorded.")] = False,
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Compare counters, runtimes and journal with the ledger; exit 1 while something drifts. Only --mend corrects."""
    with ledger_of(home, config):
        asked = {"mend": mend, "rebase": rebase}
        found = [admin.post("/admin/reconcile", asked, TIMEOUT_S) for admin in Admin.every(Home.at(home))]
        if not found:
            names = replicas(Home.at(home), config)
            found = [asdict(asyncio.run(_at_rest(Home.at(home), config, name, mend=mend))) for name in names]
            for each in found:
                each["not_compared"] = ["runtimes: the gateway does not run"]
    if as_json:
        print_json(found[0] if len(found) == 1 else found)
    else:
        for each in found:
            _print(each)
    if any(each["drifted"] > each["mended"] for each in found):
        raise typer.Exit(1)


async def _at_rest(home: Home, config: Path, replica: str, *, mend: bool) -> Result:
    """Compare the book of a gateway that does not run; it cannot start meanwhile."""
    loaded = load(config).config
    opened = assembly.open_book(home, loaded, Pseudonyms(home.secret("pseudonym")), system_now_us, replica)
    try:
        book, journal = opened.book, opened.journal
        controls = Controls(book, journal, KeyStore(home.keys), system_now_us)

        def record(row: dict[str, Any]) -> None:
            opened.sequences.append(journal, row["org"], row)

        adjusting = Adjustments(book, journal, record, controls)
        comparing = Reconciliation(book, journal, system_now_us, controls, adjusting, lambda: running(home.path))
        return await comparing.run({}, sample, "cli", mend=mend, rebase=False)
    finally:
        journal.close()


def _print(found: dict[str, Any]) -> None:
    if found["drifts"]:
        print_rows("Drift", found["drifts"], _COLUMNS, as_json=False)
    for why in found["not_compared"]:
        console().print(f"not compared: {why}")
    mended = f", {found['mended']:,} mended by correction rows" if found["mended"] else ""
    where = f"as of record {found['seq']:,} of {found['writer']}"
    console().print(f"{found['accounts']:,} accounts compared {where}: {found['drifted']:,} drift{mended}")
