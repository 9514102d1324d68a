"""Bursar under measurement: `bursar up` with all governance on, five budgets, in a home of its own."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import yaml

from bench.errors import MeasurementError
from bench.server import Pids, Process
from bench.workload import MODEL

START_TIMEOUT_S: Final = 60.0
BUNDLE: Final = Path("rego")
PLENTY: Final = 10**15


class BursarServer:
    """A whole embedded deployment in front of the benchmark's upstream, as a `Server`."""

    def __init__(self) -> None:
        self.name = "bursar"
        self.headers: dict[str, str] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="bursar-bench-"))
        self._process: Process | None = None

    def start(self, upstream_url: str) -> str:
        """Start the deployment, make a key, and return its base URL."""
        config, home = self._folder / "bursar.yaml", self._folder / "home"
        config.write_text(yaml.safe_dump(configuration(upstream_url)))
        self._write_bundle()
        command = [sys.executable, "-m", "gateway", "up", "--home", str(home), "--config", str(config)]
        self._process = Process(self.name, [*command, "--port", "0", "--admin-port", "0"], dict(os.environ))
        run = self._await_run(home / "run" / "gateway.json")
        arguments = ["key", "create", "--org", "acme", "--team", "bench", "--app", "load", "--json"]
        made = _bursar(*arguments, "--home", str(home), "--config", str(config))
        self.headers = {"Authorization": f"Bearer {made['secret']}"}
        return f"http://{run['host']}:{run['port']}"

    def pids(self) -> Pids:
        """The gateway worker; and with it the ledger process and the supervisor."""
        assert self._process is not None
        folder = self._folder / "home" / "run"
        parts = {path.stem: json.loads(path.read_text())["pid"] for path in folder.glob("*.json")}
        return {"worker": parts["gateway"], "all": [self._process.pid, *parts.values()]}

    def stop(self) -> None:
        """Stop the deployment and forget its home."""
        if self._process is not None:
            self._process.stop()
            self._process = None
        shutil.rmtree(self._folder, ignore_errors=True)

    def _await_run(self, path: Path) -> dict[str, Any]:
        assert self._process is not None
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not path.exists():
            self._process.check()
            if time.monotonic() > deadline_s:
                raise MeasurementError(f"bursar did not start within {START_TIMEOUT_S:.0f} s")
            time.sleep(0.05)
        run: dict[str, Any] = json.loads(path.read_text())
        return run

    def _write_bundle(self) -> None:
        """The shipped policies over a table that offers the benchmark's model to the benchmark's team."""
        folder = self._folder / "rego"
        shutil.copytree(BUNDLE, folder, ignore=shutil.ignore_patterns("*_test.rego"))
        path = folder / "bursar" / "admission" / "data.json"
        table = json.loads(path.read_text())
        row = {"offers": {MODEL: "small"}, "run_depth_max": 4, "blocked_tools": {}}
        table["rows"]["acme"]["bench"] = {"*": row}
        path.write_text(json.dumps(table))
        path = folder / "bursar" / "risk" / "data.json"
        risk = json.loads(path.read_text())
        risk["models"][MODEL] = {"tier": "low", "owner": "bench"}
        path.write_text(json.dumps(risk))


def configuration(upstream_url: str) -> dict[str, Any]:
    """All governance on: a priced model, five hard budgets on one path, journal with fsync, 1 % of requests traced."""
    budgets = [
        ("org-day-cost", {"org": "acme"}, "list_cost_nusd", "day"),
        ("team-month-tokens", {"org": "acme", "team": "*"}, "tokens", "month"),
        ("team-concurrency", {"team": "*"}, "concurrency", "total"),
        ("app-hour-cost", {"team": "*", "app": "*"}, "list_cost_nusd", "rolling:1h"),
        ("key-minute-requests", {"key": "*"}, "requests", "minute"),
    ]
    runtime = {
        "id": "upstream",
        "owner": "bench",
        "url": upstream_url,
        "gpu_nusd_per_hour": 2_500_000_000,
        "gpu_us_per_input_mtok": 25_000_000,
        "gpu_us_per_output_mtok": 500_000_000,
    }
    price = {
        "valid_from": "2025-01-01",
        "input_nusd_per_mtok": 150_000_000,
        "cached_input_nusd_per_mtok": 15_000_000,
        "output_nusd_per_mtok": 600_000_000,
    }
    model = {
        "id": MODEL,
        "owner": "bench",
        "runtimes": ["upstream"],
        "endpoints": ["chat"],
        "context_tokens": 32768,
        "price": [price],
    }
    return {
        "version": 1,
        "policy": {"url": "embedded:rego/"},
        "telemetry": {"trace_sample": 0.01, "otlp_endpoint": upstream_url},
        "runtimes": [runtime],
        "models": [model],
        "budgets": [
            {"id": name, "owner": "bench", "scope": scope, "resource": resource, "window": window, "limit": PLENTY}
            for name, scope, resource, window in budgets
        ],
    }


def _bursar(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", "gateway", *arguments], capture_output=True, check=True, timeout=60)
    made: dict[str, Any] = json.loads(done.stdout)
    return made
