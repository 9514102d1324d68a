"""Instance: a Bursar of its own, started from the command line in a home of its own, and stopped again."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.error import URLError

READY_S = 60.0
STOP_S = 45.0
COMMAND_S = 60.0
POLL_S = 0.1


class InstanceFailed(Exception):
    """Bursar did not start, or a command of it failed; carries what it said."""


class Instance:
    """`bursar up` in `home` on free ports, while the context lasts."""

    def __init__(self, home: Path, config: Path) -> None:
        self._home = home
        self._config = config
        self._log = home.parent / "bursar.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.admin_url = ""

    def __enter__(self) -> "Instance":
        environment = os.environ | {"BURSAR_LISTEN__ADMIN_PORT": "0"}
        with self._log.open("wb") as log:
            command = self._command("up", "--port", "0")
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def command(self, *arguments: str) -> Any:
        """The JSON that a `bursar` command prints."""
        done = subprocess.run(self._command(*arguments), capture_output=True, text=True, timeout=COMMAND_S)
        if done.returncode != 0:
            raise InstanceFailed(f"bursar {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
        return json.loads(done.stdout)

    def key(self, *arguments: str) -> dict[str, str]:
        """A new key: its `id` and `secret`."""
        key: dict[str, str] = self.command("key", "create", "--json", *arguments)
        return key

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """The rows of a query of the ledger."""
        rows: list[dict[str, Any]] = self.command("ledger", "query", "--format", "json", sql)
        return rows

    def page(self, url: str, key: str = "") -> bytes:
        """The body of a page that answers 200; raises InstanceFailed for any other answer."""
        request = urllib.request.Request(url, headers={"authorization": f"Bearer {key}"} if key else {})  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 both are http on loopback
                body: bytes = response.read()
        except (URLError, OSError) as error:
            raise InstanceFailed(f"{url}: {error}") from error
        if response.status != HTTPStatus.OK:
            raise InstanceFailed(f"{url} answered {response.status}")
        return body

    def _command(self, *arguments: str) -> list[str]:
        bursar = str(Path(sys.executable).with_name("bursar"))
        return [bursar, *arguments, "--home", str(self._home), "--config", str(self._config)]

    def _wait_until_ready(self) -> None:
        assert self._process is not None, "waiting follows starting"
        record = self._home / "run" / "gateway.json"
        deadline = time.monotonic() + READY_S
        said = "nothing yet"
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise InstanceFailed(f"bursar up ended with {self._process.returncode}: {self._said()}")
            if record.exists():
                ports = json.loads(record.read_text(encoding="utf-8"))
                self.url = f"http://127.0.0.1:{ports['port']}"
                self.admin_url = f"http://127.0.0.1:{ports['admin_port']}"
                try:
                    self.page(f"{self.url}/readyz")
                except InstanceFailed as error:
                    said = str(error)
                else:
                    return
            time.sleep(POLL_S)
        raise InstanceFailed(f"bursar was not ready within {READY_S:.0f} s ({said}): {self._said()}")

    def _said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")[-4_000:]

    def _stop(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise InstanceFailed(f"bursar did not stop within {STOP_S:.0f} s of SIGTERM: {self._said()}") from None
