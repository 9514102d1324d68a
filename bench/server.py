"""Servers under measurement: what the harness needs of one, and the two that are modules of this package."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Final, Protocol, TypedDict

from bench.errors import MeasurementError

START_TIMEOUT_S: Final = 30.0
STOP_TIMEOUT_S: Final = 15.0
LOG_TAIL_CHARS: Final = 2000
LOG_DIR: Final = Path("build") / "bench"

_starts = count(1)


class Pids(TypedDict):
    """The process that carries requests, and every process that the server consists of."""

    worker: int
    all: list[int]


class Server(Protocol):
    """Something that proxies the workload to an upstream."""

    name: str
    headers: dict[str, str]

    def start(self, upstream_url: str) -> str:
        """Start in front of `upstream_url` and return the base URL once requests are served."""

    def pids(self) -> Pids:
        """The living processes; only after `start`."""

    def stop(self) -> None:
        """End every process; harmless when nothing runs."""


class Process:
    """One child process with a log, ended by its own pid."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        LOG_DIR.mkdir(parents=True, exist_ok=True)
        self.name = name
        self._log = LOG_DIR / f"{name.replace(' ', '-')}-{next(_starts)}.log"
        with self._log.open("wb") as log:
            self._popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def check(self) -> None:
        """Raise MeasurementError, with the end of the log, if the process has ended."""
        status = self._popen.poll()
        if status is not None:
            tail = self._log.read_text(errors="replace")[-LOG_TAIL_CHARS:]
            raise MeasurementError(f"{self.name} ended with status {status}:\n{tail}")

    def stop(self) -> None:
        """Ask it to end, then end it; return when it is gone."""
        self._popen.terminate()
        try:
            self._popen.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait(STOP_TIMEOUT_S)


class ModuleServer:
    """A module of this package that takes `--port 0 --port-file P` and serves in one process."""

    def __init__(self, name: str, module: str) -> None:
        self.name = name
        self.headers: dict[str, str] = {}
        self._module = module
        self._process: Process | None = None

    def launch(self, *arguments: str) -> str:
        """Start the module and return its base URL. Raises MeasurementError when it does not come up."""
        with tempfile.TemporaryDirectory() as folder:
            port_file = Path(folder) / "port"
            command = [sys.executable, "-m", self._module, "--port", "0", "--port-file", str(port_file), *arguments]
            self._process = Process(self.name, command, dict(os.environ))
            deadline_s = time.monotonic() + START_TIMEOUT_S
            while not port_file.exists():
                self._process.check()
                if time.monotonic() > deadline_s:
                    raise MeasurementError(f"{self.name} did not start within {START_TIMEOUT_S:.0f} s")
                time.sleep(0.02)
            return f"http://127.0.0.1:{port_file.read_text()}"

    def pids(self) -> Pids:
        """The one process."""
        assert self._process is not None
        return {"worker": self._process.pid, "all": [self._process.pid]}

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.stop()
            self._process = None


class UpstreamServer(ModuleServer):
    """The fake upstream."""

    def __init__(self) -> None:
        super().__init__("upstream", "bench.upstream")

    def start(self) -> str:
        """Start it and return its base URL."""
        return self.launch()


class BareProxyServer(ModuleServer):
    """The reference proxy, as a `Server`."""

    def __init__(self) -> None:
        super().__init__("bare proxy", "bench.bare_proxy")

    def start(self, upstream_url: str) -> str:
        """Start it in front of the upstream and return its base URL."""
        return self.launch("--upstream", upstream_url)
