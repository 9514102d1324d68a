"""The supervisor of `bursar up`: starts the ledger process, the embedded runtimes and the gateway, and keeps them up.

What dies is started again with a growing pause; SIGTERM or SIGINT stops all in the order in which they depend on one
another, so that the last settlements are journalled and shipped.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from gateway.config import Config, Ledger, Runtime
from gateway.home import Home

log = structlog.get_logger("supervisor")
READY_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 60.0
PAUSE_S_MAX = 30.0
STEADY_S = 60.0
_POLL_S = 0.05


class StartFailed(RuntimeError):
    """A part did not come up; its log says why."""


@dataclass(slots=True)
class Part:
    """One supervised process; it is ready when its run file names it.

    `pins` are options with the key of the run file whose value they take at a restart: whoever knows the process by its
    port finds it there again.
    """

    name: str
    argv: list[str]
    log_path: Path
    pins: Mapping[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    pause_s: float = 0.0
    restart_at_s: float = 0.0
    restarts: int = 0
    log_begins_bytes: int = 0

    def start(self) -> None:
        """Start the process with its output going to its log; signals of the terminal reach the supervisor only."""
        with self.log_path.open("ab") as output:
            self.log_begins_bytes = output.tell()
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self.started_s = time.monotonic()

    def pin(self, run: Mapping[str, Any]) -> None:
        """Keep, for restarts, what the process chose at its first start; the last of an option's values counts."""
        for option, key in self.pins.items():
            self.argv += [option, str(run[key])]

    def has_died(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End the process, gently first."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            log.error("killed", part=self.name, after_s=timeout_s)
            self.process.kill()
            self.process.wait()


class Supervisor:
    """Parts in the order of their start; they stop in the reverse order."""

    def __init__(self, home: Home, parts: list[Part]) -> None:
        self.home = home
        self.parts = parts
        self._stopping = False

    def start(self) -> None:
        """Start each part once the one before is ready, for a gateway without a journal asks the ledger for its sums.

        Raises StartFailed with the end of the log of a part that does not come up.
        From here on SIGTERM and SIGINT ask for a stop and SIGHUP goes to the gateway.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.request_stop())
        signal.signal(signal.SIGHUP, lambda *_: self._forward(signal.SIGHUP))
        for part in self.parts:
            self.home.remove_run(part.name)
            part.start()
            self._await_ready(part)

    def watch(self, until: Callable[[], bool] = lambda: False) -> None:
        """Start again what dies, until told to stop or `until` says so."""
        while not self._stopping and not until():
            for part in self.parts:
                self._revive(part)
            time.sleep(_POLL_S * 2)

    def request_stop(self) -> None:
        """Leave `watch` soon."""
        self._stopping = True

    def stop(self) -> None:
        """Stop every part, the gateway before the ledger that ships its last rows."""
        for part in reversed(self.parts):
            part.stop()

    def _revive(self, part: Part) -> None:
        if not part.has_died():
            return
        now_s = time.monotonic()
        if not part.restart_at_s:
            assert part.process is not None
            part.pause_s = 0.1 if now_s - part.started_s > STEADY_S else min(PAUSE_S_MAX, (part.pause_s or 0.05) * 2)
            part.restart_at_s = now_s + part.pause_s
            log.error("died", part=part.name, code=part.process.returncode, again_in_s=part.pause_s)
        elif now_s >= part.restart_at_s:
            part.restart_at_s = 0.0
            part.restarts += 1
            part.start()
            log.warning("restarted", part=part.name, restarts=part.restarts)

    def _forward(self, number: signal.Signals) -> None:
        for part in self.parts:
            if part.name == "gateway" and part.process is not None and part.process.poll() is None:
                part.process.send_signal(number)

    def _await_ready(self, part: Part) -> None:
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while (run := self.home.read_run(part.name)) is None:  # written once it listens
            if part.has_died() or time.monotonic() > deadline_s:
                raise StartFailed(f"{part.name} did not start:\n{tail(part.log_path, part.log_begins_bytes)}")
            if self._stopping:
                raise StartFailed("stopped while starting")
            time.sleep(_POLL_S)
        part.pin(run)


def parts_of(config: Config, config_path: Path, home: Home, overrides: Sequence[str]) -> list[Part]:
    """The parts of an embedded deployment: ledger first, then the simulators, then the gateway.

    `overrides` are further options of `bursar serve`.
    """
    python = sys.executable
    logs = home.logs
    ledger = Part(
        "ledger",
        ledger_command(config.ledger, home),
        logs / "ledger.log",
        {"--port": "port"},
    )
    sims = [_sim(runtime, config, home) for runtime in config.runtimes if runtime.is_sim]
    gateway = Part(
        "gateway",
        [python, "-m", "gateway", "serve", "--home", str(home.path), "--config", str(config_path), *overrides],
        logs / "gateway.log",
        {"--port": "port", "--admin-port": "admin_port"},
    )
    return [ledger, *sims, gateway]


def ledger_command(ledger: Ledger, home: Home) -> list[str]:
    """How the ledger process of a home is started."""
    return [
        *(sys.executable, "-m", "gateway.ledger_process", "--home", str(home.path)),
        *("--url", ledger.store_url(home.path), "--retention-s", str(ledger.retention_s)),
        *("--host", ledger.listen_host, "--port", str(ledger.listen_port)),
        *(["--exposed"] if ledger.listen_exposed else []),
        *(part for url in ledger.checkpoint_targets for part in ("--checkpoint-target", url)),
        *("--checkpoint-token-env", ledger.checkpoint_token_env or ""),
    ]


def _sim(runtime: Runtime, config: Config, home: Home) -> Part:
    models = [model.upstream_model for model in config.models if runtime.id in model.runtimes]
    name = f"sim-{runtime.id}"
    argv = [sys.executable, "-m", "runtime.sim", "--port", "0", "--port-file", os.fspath(home.run_file(name))]
    argv += ["--model", ",".join(dict.fromkeys(models)), "--telemetry", os.fspath(home.telemetry(name))]
    for knob, value in (runtime.sim.model_dump(exclude_none=True) if runtime.sim else {}).items():
        argv += [f"--{knob.replace('_', '-')}", str(value)]
    return Part(name, argv, home.logs / f"{name}.log", {"--port": "port"})


def tail(path: Path, begins_bytes: int = 0, lines: int = 20) -> str:
    """The last lines of a log, of those that begin there or later."""
    with path.open("rb") as log_file:
        log_file.seek(begins_bytes)
        return "\n".join(log_file.read().decode(errors="replace").splitlines()[-lines:])
