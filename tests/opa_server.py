"""A real OPA for tests: found on PATH or in build/bin, on a free loopback port, ended by its pid.

Only the standard library is imported, so that `.ci/opa.py` can ask with the same code whether there is one.
"""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.redis_server import HOST, free_port

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "build" / "bin"
OPA_MIN = (1, 21, 3)
INSTALL = (
    f"put opa {'.'.join(map(str, OPA_MIN))} or newer and regal on PATH, from your package manager or the releases of "
    "github.com/open-policy-agent/opa and github.com/open-policy-agent/regal, or install Go and run `make opa`"
)
READY_S = 30.0
STOP_S = 20.0
LOG_LINES = 20
START_TRIES = 5
REQUEST_S = 10.0
_POLL_S = 0.02
_LABEL = "bursar_test"
_VERSION = re.compile(r"Version:\s*(\d+)\.(\d+)\.(\d+)")
# Ends the server and removes its folder once the pipe closes, which is when the tests' process has died: a test that is
# killed leaves nothing running.
_GUARD = 'read -r _; kill -9 "$1"; rm -rf "$2"'


# OpaMissing     there is no opa or regal here, or only an opa that is too old
# OpaFailed      it did not come up, or it refused what it was asked; carries the end of its log
class OpaMissing(Exception):
    """A binary that the tests need is not on this machine; the message says how to get it."""


class OpaFailed(Exception):
    """An OPA did not come up or did not do as it was told."""


def binary() -> Path:
    """The `opa` that tests use, PATH before what was built here; OpaMissing."""
    for path in _candidates("opa"):
        if _version(path) >= OPA_MIN:
            return path
    raise OpaMissing(f"There is no opa for the tests: {INSTALL}.")


def regal() -> Path:
    """The `regal` that lints the policies, PATH before what was built here; OpaMissing."""
    for path in _candidates("regal"):
        return path
    raise OpaMissing(f"There is no regal for the policies: {INSTALL}.")


class OpaServer:
    """One `opa run --server`; `stop` or `kill` it and `start` it again on the same port.

    `config` is OPA's configuration as it would stand in its file, `paths` what it loads besides, `headers` go with what
    `get` asks, `environ` is added to its environment.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        paths: Sequence[Path] = (),
        are_bundles: bool = False,
        options: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.port = 0
        self._executable = binary()
        self._config = dict(config or {})
        self._arguments = [*options, *(["--bundle"] if are_bundles else []), *map(str, paths)]
        self._headers = dict(headers or {})
        self._environ = {**os.environ, **(environ or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="bursar-opa-"))

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
        """Where it answers, as the configuration takes it."""
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The running process; OpaFailed when none runs."""
        if self._process is None or self._process.poll() is not None:
            raise OpaFailed(f"no opa runs: {self.log_tail()}")
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers; its first start chooses the port. OpaFailed."""
        if self.port:
            self._start()
            return
        for _ in range(START_TRIES - 1):
            self.port = free_port()
            try:
                self._start()
            except OpaFailed as error:
                if "address already in use" not in str(error):
                    raise
            else:
                return
        self.port = free_port()
        self._start()

    def stop(self) -> None:
        """End it as an operator would (SIGTERM) and wait; nothing happens when it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL."""
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
        shutil.rmtree(self._folder, ignore_errors=True)

    def get(self, path: str) -> tuple[int, Any]:
        """The status and the JSON of a GET; OSError where nothing answers."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=REQUEST_S)
        try:
            connection.request("GET", path, headers=self._headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        finally:
            connection.close()

    def until(self, is_done: Callable[[], bool], what: str) -> None:
        """Wait until something holds; OpaFailed when it does not come to hold, or OPA ends."""
        deadline_s = time.monotonic() + READY_S
        while not is_done():
            assert self._process is not None
            if self._process.poll() is not None:
                raise OpaFailed(f"opa ended with {self._process.returncode}: {self.log_tail()}")
            if time.monotonic() > deadline_s:
                raise OpaFailed(f"opa did not {what} within {READY_S:g} s: {self.log_tail()}")
            time.sleep(_POLL_S)

    def log_tail(self) -> str:
        """The last lines that it wrote."""
        if not self._log.exists():
            return "it has no log"
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            raise OpaFailed(f"opa runs already as {self._process.pid}")
        self._dismiss_guard()  # of one that ended by itself
        label = uuid.uuid4().hex
        config = {**self._config, "labels": {**self._config.get("labels", {}), _LABEL: label}}
        file = self._folder / "config.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        command = [str(self._executable), "run", "--server", "--addr", f"{HOST}:{self.port}", "--skip-version-check"]
        command += ["--log-level", "error", "--config-file", str(file), *self._arguments]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                env=self._environ,
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
            self.until(lambda: self._answers(label), "come up")
        except BaseException:
            self.kill()
            raise

    def _answers(self, label: str) -> bool:
        """Whether it is this process that answers: another test's may have taken the port a moment earlier."""
        try:
            status, said = self.get("/v1/config")
        except (OSError, http.client.HTTPException, ValueError):
            return False
        return status == 200 and said["result"]["labels"].get(_LABEL) == label

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
            raise OpaFailed(f"opa did not end within {STOP_S:g} s: {self.log_tail()}") from None

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
        return self._folder / "opa.log"


def _candidates(name: str) -> list[Path]:
    on_path = shutil.which(name)
    built = BUILT / name
    return [*([Path(on_path)] if on_path else []), *([built] if built.exists() else [])]


def _version(path: Path) -> tuple[int, ...]:
    """The version that an opa says it is, (0, 0, 0) where it cannot run here."""
    try:
        said = subprocess.run([path, "version"], capture_output=True, text=True, timeout=STOP_S).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0, 0, 0
    match = _VERSION.search(said)
    return tuple(map(int, match.groups())) if match else (0, 0, 0)
