"""Instance: a Bursar of its own, started from the command line in a home of its own, and stopped again."""

import json
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
    """`bursar up` in `home` on free ports, while the context lasts; `gateway_pid` is its worker's."""

    def __init__(self, home: Path, config: Path) -> None:
        self._home = home
        self._config = config
        self._log = home.parent / "bursar.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.admin_url = ""
        self.gateway_pid = 0

    def __enter__(self) -> "Instance":
        with self._log.open("wb") as log:
            command = self._command("up", "--port", "0", "--admin-port", "0")
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            self.await_gateway()
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
        """A new key: its `key_id` and `secret`, among others."""
        key: dict[str, str] = self.command("key", "create", "--json", *arguments)
        return key

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """The rows of a query of the ledger."""
        rows: list[dict[str, Any]] = self.command("ledger", "query", "--format", "json", sql)
        return rows

    def counters(self) -> list[dict[str, Any]]:
        """Every live counter of the book, as the admin plane shows them."""
        counters: list[dict[str, Any]] = self.ask("/admin/budgets")["counters"]
        return counters

    def ask(self, path: str, body: bytes | None = None) -> Any:
        """What the admin plane answers the home's own admin key: to a POST when there is a body, even an empty one."""
        key = (self._home / "secrets" / "admin.key").read_text(encoding="utf-8")
        return json.loads(self.page(f"{self.admin_url}{path}", key, body))

    def page(self, url: str, key: str = "", body: bytes | None = None) -> bytes:
        """What a page answers to a GET, or to a POST of a JSON body; raises InstanceFailed unless it is 200 or 201."""
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        request = urllib.request.Request(url, body, headers)  # noqa: S310 as below
        try:
            with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310 both are http on loopback
                content: bytes = response.read()
        except (URLError, OSError) as error:
            raise InstanceFailed(f"{url}: {error}") from error
        if response.status not in (HTTPStatus.OK, HTTPStatus.CREATED):
            raise InstanceFailed(f"{url} answered {response.status}")
        return content

    def _command(self, *arguments: str) -> list[str]:
        bursar = str(Path(sys.executable).with_name("bursar"))
        return [bursar, *arguments, "--home", str(self._home), "--config", str(self._config)]

    def await_gateway(self) -> None:
        """Wait for a worker other than the one known so far, and learn where it listens; raises InstanceFailed."""
        assert self._process is not None, "waiting follows starting"
        record = self._home / "run" / "gateway.json"
        deadline = time.monotonic() + READY_S
        said = "nothing yet"
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise InstanceFailed(f"bursar up ended with {self._process.returncode}: {self._said()}")
            run = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {"pid": self.gateway_pid}
            if run["pid"] != self.gateway_pid:
                self.url = f"http://127.0.0.1:{run['port']}"
                self.admin_url = f"http://127.0.0.1:{run['admin_port']}"
                try:
                    self.page(f"{self.url}/readyz")
                except InstanceFailed as error:
                    said = str(error)
                else:
                    self.gateway_pid = run["pid"]
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
