"""`make load`: half a minute of Locust against an instance of its own, after which every account must agree."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.load.accounts import CHARGES_SQL, LEDGER_SQL, Check, Scrape, Sent, compare, unexercised
from tests.load.instance import Instance, InstanceFailed

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
USERS = 12
BUDGETS = 5
RUN_S = int(os.environ.get("BURSAR_LOAD_S", "30"))
LAST_REQUESTS_S = 15
QUIET_S = 30.0
POLL_S = 0.25

console = Console(width=120)


def main() -> int:
    """0 when nothing unexpected was answered and all accounts agree, else 1."""
    with tempfile.TemporaryDirectory(prefix="bursar-load-") as folder:
        home = Path(folder) / "home"
        try:
            with Instance(home, FOLDER / "bursar.yaml") as instance:
                return _load(instance, Path(folder))
        except InstanceFailed as error:
            console.print(f"[red]{error}[/red]", markup=True)
            return 1


def _load(instance: Instance, folder: Path) -> int:
    keys = _keys(instance)
    tally = folder / "tally.json"
    locust_code = _locust(instance.url, keys, tally)
    if not tally.exists():
        console.print(f"[red]Locust ended with {locust_code} before it could say what it sent.[/red]")
        return 1
    sent = Sent(**json.loads(tally.read_text(encoding="utf-8")))
    scrape, usage = _quiet(instance, sent.known)
    charges = instance.rows(CHARGES_SQL)
    counters = instance.counters()
    checks = compare(sent, usage, charges, scrape, counters, int(time.time()))
    gaps = unexercised(usage, charges, counters, BUDGETS)
    _show(checks, gaps, locust_code)
    return int(bool(locust_code or gaps or not all(check.agrees for check in checks)))


def _keys(instance: Instance) -> dict[str, str]:
    """Keys of two teams, one of an app with a narrow budget and one that is revoked."""
    made = {
        name: instance.key("--org", "acme", "--team", team, "--app", app, "--user", f"load-{name}")
        for name, team, app in (
            ("search", "search", "load"),
            ("research", "research", "load"),
            ("tight", "search", "tight"),
            ("revoked", "search", "load"),
        )
    }
    instance.command("key", "revoke", "--json", made["revoked"]["key_id"])
    return {name: key["secret"] for name, key in made.items()}


def _locust(url: str, keys: dict[str, str], tally: Path) -> int:
    command = [sys.executable, "-m", "locust", "-f", str(FOLDER / "locustfile.py"), "--headless", "--only-summary"]
    command += ["--users", str(USERS), "--spawn-rate", str(USERS), "--run-time", f"{RUN_S}s"]
    command += ["--stop-timeout", str(LAST_REQUESTS_S), "--exit-code-on-error", "1", "--host", url]
    environment = os.environ | {"BURSAR_LOAD": json.dumps({"keys": keys, "tally": str(tally)})}
    timeout_s = RUN_S + LAST_REQUESTS_S + 60
    return subprocess.run(command, env=environment, cwd=ROOT, timeout=timeout_s).returncode


def _quiet(instance: Instance, known: int) -> tuple[Scrape, list[dict[str, Any]]]:
    """Metrics and ledger once nothing is under way and every request has its row, or as they are after a while."""
    deadline = time.monotonic() + QUIET_S
    while True:
        scrape = Scrape(instance.page(f"{instance.url}/metrics").decode("utf-8"))
        settled = scrape.gauge("bursar_in_flight") == 0 and scrape.gauge("bursar_holds_open") == 0
        usage = instance.rows(LEDGER_SQL) if settled else []
        rows = sum(int(row["requests"]) for row in usage)
        if rows >= known or time.monotonic() > deadline:
            return scrape, usage
        time.sleep(POLL_S)


def _show(checks: list[Check], gaps: list[str], locust_code: int) -> None:
    table = Table("account", "expected", "found", "", title="Ledger, metrics and budgets after the load")
    for check in checks:
        mark = "[green]agree[/green]" if check.agrees else "[red]DIFFER[/red]"
        table.add_row(check.what, str(check.expected), str(check.found), mark)
    console.print(table)
    for gap in gaps:
        console.print(f"[red]not exercised: {gap}[/red]")
    if locust_code:
        console.print("[red]Locust saw answers that are not expected.[/red]")


if __name__ == "__main__":
    sys.exit(main())
