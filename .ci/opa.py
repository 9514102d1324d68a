"""Makes sure that the tests find `opa` and `regal`: nothing happens when both are there, on PATH or in build/bin.

Where one is missing and Go is installed, it is built into build/bin, at the version named here. 0 when both are there
in the end, 3 when one is not: a line says how to get them.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# This folder leaves the path: a file in it is called redis, as the client is.
sys.path[0] = str(ROOT)

from tests import opa_server  # noqa: E402  the root has to be on the path first
from tests.opa_server import BUILT, OpaMissing  # noqa: E402  as above

BUILD_S = 1_800
PACKAGES = {
    "opa": ("github.com/open-policy-agent/opa", "v1.22.2"),
    "regal": ("github.com/open-policy-agent/regal", "v0.42.0"),
}
FINDERS: dict[str, Callable[[], Path]] = {"opa": opa_server.binary, "regal": opa_server.regal}


def main() -> int:
    """Build what is missing where Go is, then look."""
    go = shutil.which("go")
    for name, find in FINDERS.items():
        if go and not _is_found(find):
            _build(go, name)
        try:
            find()
        except OpaMissing as error:
            say(str(error))
            return 3
    return 0


def say(line: str) -> None:
    """Write one line of progress to standard error."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _is_found(find: Callable[[], Path]) -> bool:
    try:
        find()
    except OpaMissing:
        return False
    return True


def _build(go: str, name: str) -> None:
    """Build one binary in a module of its own that requires just this version; what Go prints is shown when it fails.

    `go install …@version` would ask the module proxy for the list of versions, which not every proxy gives.
    """
    package, version = PACKAGES[name]
    say(f"Building {name} {version} with Go for the tests (minutes, once)")
    BUILT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bursar-go-") as folder:
        main_go = f'//go:build tools\n\npackage tools\n\nimport _ "{package}"\n'
        Path(folder, "main.go").write_text(main_go, encoding="utf-8")
        for arguments in (
            ("mod", "init", "bursar.test/tools"),
            ("mod", "edit", "-require", f"{package}@{version}"),
            ("install", package),
        ):
            error = _failure([go, *arguments], folder)
            if error:
                say(f"go {arguments[0]} {name}: {error}")
                return


def _failure(command: list[str], folder: str) -> str:
    """Why a command of Go failed, nothing when it did not."""
    environ = {**os.environ, "GOFLAGS": "-mod=mod", "GOBIN": str(BUILT), "CGO_ENABLED": "0"}
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            check=False,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BUILD_S,
        )
    except subprocess.TimeoutExpired:
        return f"not done within {BUILD_S} s"
    return "" if done.returncode == 0 else f"ended with {done.returncode}: {done.stdout.strip()[-500:]}"


if __name__ == "__main__":
    sys.exit(main())
