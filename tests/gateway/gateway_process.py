"""A real gateway process in a home of its own, and how tests talk to it and read its journal."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from domain.ids import uuid7
from gateway.rows import ABSENT
from ledger.segments import Cursor

ROOT = Path(__file__).parents[2]
READY_S = 60.0
SETTLED_S = 20.0
HELLO = [{"role": "user", "content": "hello"}]


class GatewayProcess:
    """`bursar serve`, or `up`, on free ports; its rows are read from its journal on disk."""

    def __init__(self, home: Path, config: Path, command: str = "serve") -> None:
        self.home = home
        self.config = config
        self.log = home.parent / f"{home.name}.log"
        (home / "run" / "gateway.json").unlink(missing_ok=True)  # left by a process that was killed
        arguments = [command, "--home", str(home), "--config", str(config), "--port", "0", "--admin-port", "0"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway", *arguments],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self._cursor: Cursor | None = None
        self._rows: list[dict[str, Any]] = []
        run = self._await_run()
        self.pid: int = run["pid"]
        self.address = (run["host"], run["port"])
        self.url = f"http://{run['host']}:{run['port']}"
        self.client = httpx.Client(base_url=self.url, timeout=30)
        self.admin = httpx.Client(
            base_url=f"http://{run['admin_host']}:{run['admin_port']}",
            headers={"authorization": f"Bearer {(home / 'secrets' / 'admin.key').read_text()}"},
            timeout=30,
        )
        self._keys: dict[tuple[tuple[str, Any], ...], str] = {}

    def key(self, team: str, **more: Any) -> str:
        """The secret of a key of a team, made once per distinct principal."""
        principal = {"org": "acme", "team": team, "app": "web", **more}
        asked = tuple(sorted(principal.items()))
        if asked not in self._keys:
            self._keys[asked] = self.admin.post("/admin/keys", json=principal).raise_for_status().json()["secret"]
        return self._keys[asked]

    def headers(self, team: str, **more: str) -> dict[str, str]:
        """Request headers of a team's key, with a request id of the client's own to find the row by."""
        return {"authorization": f"Bearer {self.key(team)}", "x-request-id": uuid7(), **more}

    def chat(self, team: str = "free", headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        """A chat request; `hello` to the model `plain` unless the body says otherwise."""
        asked = {"model": "plain", "messages": HELLO, **body}
        return self.client.post("/v1/chat/completions", json=asked, headers={**self.headers(team), **(headers or {})})

    def raw(self, timeout_s: float = 10.0) -> socket.socket:
        """A bare connection to the public listener."""
        return socket.create_connection(self.address, timeout=timeout_s)

    def records(self, kind: str) -> list[dict[str, Any]]:
        """Every record of a kind that stands in the journal now."""
        if self._cursor is None:
            (directory,) = (path for path in (self.home / "journal").iterdir() if path.is_dir())
            self._cursor = Cursor(directory)
        while taken := self._cursor.take(10_000, 1 << 24):
            self._rows += [{"kind": record.kind, **json.loads(record.payload)} for record in taken]
        return [row for row in self._rows if row["kind"] == kind]

    def ended(self, response: httpx.Response | str) -> dict[str, Any]:
        """The row that settled a request, once nothing is held any more; a text is the client's own request id."""
        name, value = "client_request_id", response
        if isinstance(response, httpx.Response):
            name, value = "request_id", response.headers["x-request-id"]

        def rows() -> list[dict[str, Any]]:
            found = [row for row in self.records("usage") if row.get(name) == value]
            return [{**ABSENT, **row} for row in found if row["status"] != "adjusted"]

        until(lambda: bool(rows()) and self.open_holds() == 0, f"a row with {name} {value} and no open hold")
        assert self.process.poll() is None
        (row,) = rows()
        return row

    def open_holds(self) -> int:
        """How many holds are open now."""
        return int(self.admin.get("/admin/holds").raise_for_status().json()["open"])

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of a metric that carry these labels."""
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = self.client.get("/metrics").text.splitlines()
        found = [
            line for line in lines if line.startswith((f"{name}{{", f"{name} ")) and all(map(line.__contains__, wanted))
        ]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def resident_bytes(self) -> int:
        """The resident memory of the gateway process."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))

    def cpu_s(self) -> float:
        """The processor time that the gateway process has taken so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> int:
        """End it with SIGTERM and wait for it; returns its exit code."""
        self.client.close()
        self.admin.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def _await_run(self) -> dict[str, Any]:
        path = self.home / "run" / "gateway.json"

        def is_up() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return path.exists()

        until(is_up, "the gateway's run file", READY_S)
        run: dict[str, Any] = json.loads(path.read_text())
        return run


@contextmanager
def running(home: Path, config: Path, command: str = "serve") -> Iterator[GatewayProcess]:
    """A gateway while the context lasts."""
    gateway = GatewayProcess(home, config, command)
    try:
        yield gateway
    finally:
        gateway.stop()


def error_of(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error of a response in OpenAI's shape, which it must have, with the status and the code expected."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() - {"bursar"} == {"message", "type", "param", "code"}
    assert error["code"] == code, error
    assert isinstance(error["message"], str)
    assert error["message"]
    return error


def until(holds: Callable[[], bool], what: str, timeout_s: float = SETTLED_S) -> None:
    """Wait until something holds; AssertionError naming it when it does not in time."""
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)


def bursar(*arguments: str, home: Path, config: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run one `bursar` command on a home to its end."""
    environment = {
        **os.environ,
        "BURSAR_HOME": str(home),
        "BURSAR_CONFIG": str(config or home / "none.yaml"),
        **environ,
    }
    command = [sys.executable, "-m", "gateway", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110)


def write_bundle(folder: Path, tables: dict[str, Any]) -> Path:
    """The shipped policies over these rows and offers, of which each says its terms and clearances itself.

    Every function but the shipped registry's own is a tool of low tier.
    """
    offers, shipped = tables["offers"], ROOT / "rego" / "bursar"
    offered = {
        model: name
        for teams in tables["rows"].values()
        for apps in teams.values()
        for row in apps.values()
        for model, name in row["offers"].items()
    }
    changed = {
        "admission": {
            "rows": tables["rows"],
            "offers": {name: {"endpoints": offer["endpoints"], "terms": name} for name, offer in offers.items()},
        },
        "budget": {"terms": {name: offer["terms"] for name, offer in offers.items()}},
        "risk": {
            "models": {model: {"tier": name, "owner": "platform"} for model, name in offered.items() if name in offers},
            "model_tiers": {
                name: dict.fromkeys(("normal", "elevated", "high"), offer["clearances"])
                for name, offer in offers.items()
            },
        },
        "tools": {"unregistered": "low"},
    }
    for source in sorted(shipped.iterdir()):
        package = folder / "bursar" / source.name
        package.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / f"{source.name}.rego", package)
        data = json.loads((source / "data.json").read_text()) | changed.get(source.name, {})
        (package / "data.json").write_text(json.dumps(data))
    return folder


def write_config(path: Path, document: dict[str, Any]) -> Path:
    """A configuration file."""
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path
