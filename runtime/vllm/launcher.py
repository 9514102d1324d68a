"""Starts a vLLM server as a subprocess on a loopback port, waits until it serves, and stops it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from runtime.vllm.knobs import VllmKnobs

LOOPBACK = "127.0.0.1"
MODULE = "vllm.entrypoints.openai.api_server"
TELEMETRY = "BURSAR_TELEMETRY"
METERED_SCHEDULER = "bursar_vllm.scheduler.MeteredScheduler"
# Computes in the engine's own process. vLLM on CPU takes another process for it by default, and the two then poll each
# other without rest: on two cores that leaves nothing for the front end, whose clients wait up to seconds.
IN_PROCESS_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
HEALTH_POLL_S = 0.25
HEALTH_TIMEOUT_S = 2.0
GROUP_GRACE_S = 2.0
GROUP_POLL_S = 0.02
LOG_TAIL_LINES = 40
LOG_TAIL_BYTES = 64 * 1024
ERROR = re.compile(r"(?<!`)\b\w*(?:Error|Exception): .+")  # a warning quotes one that has not happened
# Offline and silent about its users.
FIXED_ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
# On a CPU it must be blind to any accelerator, whose driver may be missing or half installed.
CPU_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": ""}
# All that vLLM sees of Bursar's environment: another Python's settings would break it, and secrets, whose variables may
# have any name, are none of its business; a key of its own would shut Bursar out.
PASSED = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD", "CC", "CXX"}
)
PASSED_PREFIXES = (
    *("CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "ROCM_", "ROCR_", "HIP_", "HSA_"),
    *("VLLM_", "HF_", "TORCH", "PYTORCH_", "TRITON_", "OMP_", "GOMP_", "KMP_", "MKL_", "XDG_", "LC_"),
)
WITHHELD_SUFFIXES = ("_KEY", "_TOKEN")


class VllmServerError(Exception):
    """The server cannot be used."""


class VllmStartError(VllmServerError):
    """The server died while it started, or did not become healthy in time; the message ends with its log's tail."""


@dataclass(frozen=True, slots=True)
class VllmLaunch:
    """Which vLLM to start: its interpreter, the model's folder, the name it is served under, and its settings.

    With `telemetry` the engine is metered into that folder, which must be its own; `bursar-vllm` must be installed
    beside vLLM. `omp_threads_bind` takes vLLM's own syntax: `nobind` leaves the threads to the operating system, which
    is right where other processes need the same cores; `0-1` pins them, which is right on cores of its own.
    `executor` is vLLM's own choice where it is empty.
    """

    python: Path
    model: Path
    served_model_name: str
    log: Path
    knobs: VllmKnobs = field(default_factory=VllmKnobs)
    telemetry: Path | None = None
    omp_threads: int = 1
    omp_threads_bind: str = "nobind"
    executor: str = ""

    def argv(self, port: int) -> list[str]:
        """Return the command that serves the model on `port` of the loopback interface."""
        return [
            str(self.python),
            *("-m", MODULE),
            *("--host", LOOPBACK),
            *("--port", str(port)),
            *("--model", str(self.model)),
            *("--served-model-name", self.served_model_name),
            "--enable-prompt-tokens-details",
            "--disable-uvicorn-access-log",
            *self.knobs.argv(),
            *(("--scheduler-cls", METERED_SCHEDULER) if self.telemetry else ()),
            *(("--distributed-executor-backend", self.executor) if self.executor else ()),
        ]

    def environment(self, base: Mapping[str, str], scratch: Path) -> dict[str, str]:
        """Return the server's environment: of `base` what it may see, and what it must be told.

        `scratch` takes vLLM's sockets and temporary files; its path must be short, for sockets have little room.
        """
        told = {**FIXED_ENVIRONMENT, "TMPDIR": str(scratch)}
        if self.knobs.facts.device == "cpu":
            told |= CPU_ENVIRONMENT
            told |= {"VLLM_CPU_OMP_THREADS_BIND": self.omp_threads_bind, "OMP_NUM_THREADS": str(self.omp_threads)}
        if self.telemetry:
            told[TELEMETRY] = str(self.telemetry.absolute())
        return {name: value for name, value in base.items() if may_pass(name)} | told


def may_pass(name: str) -> bool:
    """Whether vLLM may see a variable of Bursar's environment."""
    return name in PASSED or (name.startswith(PASSED_PREFIXES) and not name.endswith(WITHHELD_SUFFIXES))


class VllmServer:
    """One vLLM server in a process group of its own; a context manager that starts it and always stops it."""

    def __init__(
        self, launch: VllmLaunch, *, start_timeout_s: float = 180.0, stop_grace_s: float = 15.0, port: int = 0
    ) -> None:
        """Take the launch, and the loopback port to serve on; 0 chooses a free one at each start."""
        self.launch = launch
        self.start_timeout_s = start_timeout_s
        self.stop_grace_s = stop_grace_s
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: TemporaryDirectory[str] | None = None
        self._wanted_port = port
        self._port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def base_url(self) -> str:
        """The address of the server, without the `/v1` of its API."""
        return url_of(self._port)

    @property
    def pid(self) -> int | None:
        """The id of the server's process and process group, or None when none was started."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the server and return once `/health` says 200, or raise VllmStartError with nothing left running."""
        if self._process is not None:
            raise RuntimeError("this server was started before")
        self._port = self._wanted_port or free_port()
        self.launch.log.parent.mkdir(parents=True, exist_ok=True)
        self._scratch = TemporaryDirectory(prefix="bursar-vllm-")
        try:
            self._process = self._spawn(Path(self._scratch.name))
            self._wait_until_healthy(self._process)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ask the server to end, kill its whole process group after the grace, and do nothing if it never started."""
        if self._process is not None:
            self._end(self._process)
            self._process = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def check_alive(self) -> None:
        """Raise VllmServerError with the log's tail if the server is not running."""
        if self._process is None:
            raise VllmServerError("vLLM was not started")
        status = self._process.poll()
        if status is not None:
            raise VllmServerError(f"vLLM ended with status {status}{self._log_tail()}")

    def _spawn(self, scratch: Path) -> subprocess.Popen[bytes]:
        with self.launch.log.open("wb") as log:
            try:
                return subprocess.Popen(
                    self.launch.argv(self._port),
                    env=self.launch.environment(os.environ, scratch),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise VllmStartError(f"cannot run {self.launch.python}: {error}") from error

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.terminate()
        try:
            process.wait(self.stop_grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
        process.wait()
        end_group(process.pid)

    def _wait_until_healthy(self, process: subprocess.Popen[bytes]) -> None:
        deadline_s = time.monotonic() + self.start_timeout_s
        while time.monotonic() < deadline_s:
            status = process.poll()
            if status is not None:
                raise VllmStartError(f"vLLM ended with status {status} while it started{self._log_tail()}")
            if is_healthy(self._port):
                return
            time.sleep(HEALTH_POLL_S)
        raise VllmStartError(f"vLLM was not healthy after {self.start_timeout_s:g} s{self._log_tail()}")

    def _log_tail(self) -> str:
        return f"{cause(self.launch.log)}\n--- the end of {self.launch.log} ---\n{tail(self.launch.log)}"


def end_group(group: int) -> None:
    """End what its leader left of a process group: ask, give it a moment to free its shared memory, then kill.

    The engine runs in child processes, which outlive a leader that was killed.
    """
    with suppress(ProcessLookupError):  # no process of the group is left
        for asked in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(group, asked)
            deadline_s = time.monotonic() + GROUP_GRACE_S
            while time.monotonic() < deadline_s:
                os.killpg(group, 0)
                time.sleep(GROUP_POLL_S)


def url_of(port: int) -> str:
    """Return the address of a server on a loopback port, without the `/v1` of its API."""
    return f"http://{LOOPBACK}:{port}"


def free_port() -> int:
    """Return a loopback port that was free a moment ago; should another take it first, the server says so and dies."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def is_healthy(port: int) -> bool:
    """Return whether `/health` on the loopback port answers 200; not listening yet is an ordinary no."""
    connection = HTTPConnection(LOOPBACK, port, timeout=HEALTH_TIMEOUT_S)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def tail(log: Path) -> str:
    """Return the last lines of a log file, reading no more of it than a fixed number of bytes."""
    return "\n".join(_last_bytes(log).splitlines()[-LOG_TAIL_LINES:])


def cause(log: Path) -> str:
    """Return the first error that the end of a log tells of, after a colon; what follows it are its consequences."""
    found = ERROR.search(_last_bytes(log))
    return f": {found[0].strip()}" if found else ""


def _last_bytes(log: Path) -> str:
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LOG_TAIL_BYTES))
        return file.read().decode("utf-8", errors="replace")
