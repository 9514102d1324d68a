"""The OPA of the tests is a real one on a port of its own, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import opa_server
from tests.local_server import ServerFailed
from tests.opa_server import OpaMissing, OpaServer

ROOT = Path(__file__).resolve().parents[2]
HANG_S = 30.0


def test_it_comes_back_on_its_port_after_a_kill() -> None:
    with OpaServer() as opa:
        port, pid = opa.port, opa.pid
        opa.kill()
        with pytest.raises(OSError, match="refused"):
            opa.get("/health")
        opa.start()
        assert (opa.port, opa.pid != pid) == (port, True)
        assert opa.get("/health") == (200, {})


def test_one_that_does_not_come_up_says_so_with_the_end_of_its_log() -> None:
    with OpaServer() as running:
        second = OpaServer()
        second.port = running.port
        with pytest.raises(ServerFailed, match="address already in use"):
            second.start()
        second.close()
    with pytest.raises(ServerFailed, match="nonsense"), OpaServer({"bundles": {"b": {"service": "nonsense"}}}):
        pass


def test_nothing_is_left_of_a_closed_server() -> None:
    with OpaServer() as opa:
        pid, folder = opa.pid, opa.folder
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not folder.exists()
    with pytest.raises(ServerFailed, match="no opa runs"):
        assert opa.pid


def test_a_test_that_is_killed_leaves_no_server_and_no_folder() -> None:
    script = (
        "import os, signal; from tests.opa_server import OpaServer; server = OpaServer(); server.start();"
        "print(server.pid, server.folder, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=HANG_S)
    pid, folder = done.stdout.split()
    deadline_s = time.monotonic() + HANG_S
    while Path(folder).exists() or Path("/proc", pid, "exe").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    assert done.returncode == -signal.SIGKILL


def test_a_machine_without_opa_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that is too old, or that cannot run, is none; what was built here serves where PATH has none."""
    old, built = tmp_path / "old", tmp_path / "built"
    for folder, version in ((old, "1.21.2"), (built, "1.21.3")):
        folder.mkdir()
        (folder / "opa").write_text(f"#!/bin/sh\necho Version: {version}\n")
        (folder / "opa").chmod(0o755)
    monkeypatch.setenv("PATH", f"{old}:/usr/bin:/bin")
    monkeypatch.setattr(opa_server, "BUILT", tmp_path / "absent")
    with pytest.raises(OpaMissing, match=r"put opa 1\.21\.3 or newer and regal on PATH.* `make opa`"):
        opa_server.binary()
    with pytest.raises(OpaMissing, match="no regal"):
        opa_server.regal()
    monkeypatch.setattr(opa_server, "BUILT", built)
    assert opa_server.binary() == built / "opa"


def test_what_is_there_is_not_built_again_and_what_cannot_be_built_is_told_in_a_line(tmp_path: Path) -> None:
    script = str(ROOT / ".ci" / "opa.py")
    found = f"{opa_server.binary().parent}:{opa_server.regal().parent}"
    done = subprocess.run([sys.executable, script], env={"PATH": found}, capture_output=True, text=True, timeout=HANG_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    empty = (
        "import pathlib, runpy, sys; sys.path.insert(0, '.'); from tests import opa_server;"
        f"opa_server.BUILT = pathlib.Path({str(tmp_path)!r}); runpy.run_path({script!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", empty],
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=HANG_S,
    )
    assert done.returncode == 3
    assert done.stderr.startswith("There is no opa for the tests: put opa 1.21.3 or newer and regal on PATH")
    assert done.stderr.count("\n") == 1
