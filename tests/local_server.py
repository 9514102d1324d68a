"""A real server for tests: on a free loopback port, in a folder of its own, ended by its pid.

Only the standard library is imported, so that what sets up the environment can ask with the same code what is there.
"""

import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

HOST = "127.0.0.1"
READY_S = 30.0
STOP_S = 20.0
LOG_LINES = 20
START_TRIES = 5
# Below the ports that kernels hand to clients: one that tries again while its server is away would otherwise be given
# the server's own port sooner or later, connect to itself, and keep the server from coming back. A node of a Redis
# Cluster listens 10,000 above its port as well, and that too stays below.
PORTS = range(12_000, 22_700)
BUS_OFFSET = 10_000
_IN_USE = re.compile(r"[Aa]ddress already in use|[Ff]ailed listening on port")
_POLL_S = 0.02
# Ends the server and removes its folder once the pipe closes, which is when the tests' process has died: a test that is
# killed leaves nothing running.
_GUARD = 'read -r _; kill -9 "$1"; rm -rf "$2"'


class ServerFailed(Exception):
    """A server did not come up or did not do as it was told; carries the end of its log."""


def free_port() -> int:
    """A loopback port that nothing listens on now, and that no client is given by chance."""
    for port in random.sample(PORTS, 200):
        if _is_free(port) and _is_free(port + BUS_OFFSET):
            return port
    raise ServerFailed(f"200 ports between {PORTS.start} and {PORTS.stop} are all taken")


def version_of(command: list[str], pattern: re.Pattern[str]) -> tuple[int, ...]:
    """The groups of the version that a program says it is, as numbers; nothing where it cannot run here."""
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=STOP_S).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    match = pattern.search(said)
    return tuple(map(int, match.groups())) if match else ()


class LocalServer(ABC):
    """One process; `stop` or `kill` it and `start` it again on the same port and folder.

    `name` is the program's, and that of its log. `environ` is its whole environment, None this process's own.
    """

    def __init__(self, name: str, environ: Mapping[str, str] | None = None) -> None:
        self.port = 0
        self.folder = Path(tempfile.mkdtemp(prefix=f"bursar-{name}-"))
        self._name = name
        self._environ = environ
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """What starts it on `port` in `folder`."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it is this process that answers: another test's may have taken the port a moment earlier."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The running process; ServerFailed when none runs."""
        if self._process is None or self._process.poll() is not None:
            raise ServerFailed(f"no {self._name} runs: {self.log_tail()}")
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers; its first start chooses the port. ServerFailed."""
        if self._process is not None and self._process.poll() is None:
            raise ServerFailed(f"{self._name} runs already as {self._process.pid}")
        self._dismiss_guard()  # of one that ended by itself
        if self.port:
            self._start()
            return
        for _ in range(START_TRIES - 1):
            self.port = free_port()
            try:
                self._start()
            except ServerFailed as error:
                if not _IN_USE.search(str(error)):
                    raise
            else:
                return
        self.port = free_port()
        self._start()

    def stop(self) -> None:
        """End it as an operator would (SIGTERM) and wait; nothing happens when it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL: what it did not write to disk is gone."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop it from running without ending it: it accepts connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it run on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill it where it runs, and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def until(self, is_done: Callable[[], bool], what: str) -> None:
        """Wait until something holds; ServerFailed when it does not come to hold, or the server ends."""
        deadline_s = time.monotonic() + READY_S
        while not is_done():
            assert self._process is not None
            if self._process.poll() is not None:
                raise ServerFailed(f"{self._name} ended with {self._process.returncode}: {self.log_tail()}")
            if time.monotonic() > deadline_s:
                raise ServerFailed(f"{self._name} did not {what} within {READY_S:g} s: {self.log_tail()}")
            time.sleep(_POLL_S)

    def log_tail(self) -> str:
        """The last lines that it wrote."""
        if not self._log.exists():
            return "it has no log"
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])

    def _start(self) -> None:
        command = self.command()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C ends the tests, which then end it
            )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", str(self._process.pid), str(self.folder)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self.until(self.answers, "come up")
        except BaseException:
            self.kill()
            raise

    def _end(self, number: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        self._dismiss_guard()
        if process.poll() is not None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise ServerFailed(f"{self._name} did not end within {STOP_S:g} s: {self.log_tail()}") from None

    def _dismiss_guard(self) -> None:
        """Let go of the guard, which must not end another process that is given the same pid."""
        guard, self._guard = self._guard, None
        if guard is not None:
            assert guard.stdin is not None
            guard.kill()
            guard.wait()
            guard.stdin.close()

    @property
    def _log(self) -> Path:
        return self.folder / f"{self._name}.log"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
