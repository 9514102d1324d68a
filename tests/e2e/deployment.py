"""A deployment: an instance of Bursar whose parts can be killed, and which can be told to drain."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from ledger.client import LedgerClient, running
from tests.load.accounts import CHARGES_SQL, window_start_s
from tests.load.instance import Instance

WAIT_S = 60.0
POLL_S = 0.05
READINGS_MAX = 20

Found = TypeVar("Found")


class Deployment(Instance):
    """`bursar up` with its processes in reach; a part is `gateway`, `ledger` or `sim-` and the id of a runtime."""

    def __init__(self, home: Path, config: Path) -> None:
        super().__init__(home, config)
        self.home = home

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def pid_of(self, part: str) -> int:
        """The process that a part runs in now."""
        return int(json.loads((self.home / "run" / f"{part}.json").read_text(encoding="utf-8"))["pid"])

    def kill(self, part: str) -> int:
        """End a part with SIGKILL and return its pid."""
        pid = self.pid_of(part)
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_until_revived(self, part: str, old_pid: int) -> None:
        """Wait until a part serves again as another process; the gateway may then have another port."""
        if part == "gateway":
            self.await_gateway()
        eventually(lambda: self._revived(part, old_pid), f"{part} runs again after its process {old_pid} died")

    def request_stop(self) -> None:
        """Send SIGTERM to the supervisor and return at once."""
        assert self._process is not None, "stopping follows starting"
        self._process.send_signal(signal.SIGTERM)

    def wait_until_stopped(self) -> int:
        """The exit code of the supervisor, which was told to stop."""
        assert self._process is not None, "stopping follows starting"
        return self._process.wait(WAIT_S)

    def ledger(self) -> LedgerClient:
        """The client of the running ledger process."""
        return eventually(lambda: running(self.home), "the ledger process answers")

    def create_key(self, team: str) -> str:
        """The secret of a new key of one of acme's teams, from the admin plane: a command takes seconds to start."""
        asked = {"org": "acme", "team": team, "app": "assistant"}
        return str(self.ask("/admin/keys", json.dumps(asked).encode())["secret"])

    def flushed_rows(self, sql: str, **parameters: str) -> list[dict[str, Any]]:
        """The rows of a query, asked of the ledger process itself once it has shipped the journal."""
        client = self.ledger()
        client.flush()
        return client.rows(sql, **parameters)

    def report(self, kind: str, group_by: Sequence[str] = ()) -> str:
        """What `bursar ledger report` prints for people."""
        options = [option for column in group_by for option in ("--group-by", column)]
        command = self._command("ledger", "report", kind, *options)
        return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=True).stdout

    def disagreements(self) -> list[str]:
        """Each counter that holds anything still, or that is not the sum of the charges in the ledger."""
        counters, charges = beside(self.counters, lambda: self.rows(CHARGES_SQL))
        now_s = int(time.time())
        found = []
        for counter in counters:
            since_s = window_start_s(counter["window"], now_s)
            name = (counter["budget"], counter["counter"], counter["resource"])
            charged = sum(
                row["amount"]
                for row in charges
                if (row["budget"], row["counter"], row["resource"]) == name and row["window_start_s"] >= since_s
            )
            if (counter["spent"], counter["held"]) != (charged, 0):
                found.append(f"{name}: {counter['spent']} spent and {counter['held']} held, {charged} charged")
        return found

    def _revived(self, part: str, old_pid: int) -> bool:
        path = self.home / "run" / f"{part}.json"
        if not path.exists() or self.pid_of(part) == old_pid:
            return False
        return part != "ledger" or running(self.home) is not None


def beside(ask: Callable[[], list[dict[str, Any]]], read: Callable[[], Found]) -> tuple[list[dict[str, Any]], Found]:
    """The counters that `ask` returns, and what `read` returns, as of the same moment.

    A correction by attribution that came between the two would be in one of them only.
    """
    for _ in range(READINGS_MAX):
        counters, found = ask(), read()
        if _held_and_spent(counters) == _held_and_spent(ask()):
            break
    return counters, found


def _held_and_spent(counters: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(counter["held"], counter["spent"]) for counter in counters]


def eventually(found: Callable[[], Found | None], what: str, timeout_s: float = WAIT_S) -> Found:
    """What `found` returns as soon as it is neither None nor false; AssertionError when that takes too long."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        value = found()
        if value:
            return value
        time.sleep(POLL_S)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")
