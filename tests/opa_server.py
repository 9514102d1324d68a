"""A real OPA for tests: found on PATH or in build/bin.

Only the standard library is imported, so that `.ci/opa.py` can ask with the same code whether there is one.
"""

import http.client
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.local_server import HOST, LocalServer, version_of

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "build" / "bin"
OPA_MIN = (1, 21, 3)
INSTALL = (
    f"put opa {'.'.join(map(str, OPA_MIN))} or newer and regal on PATH, from your package manager or the releases of "
    "github.com/open-policy-agent/opa and github.com/open-policy-agent/regal, or install Go and run `make opa`"
)
REQUEST_S = 10.0
_LABEL = "bursar_test"
_VERSION = re.compile(r"Version:\s*(\d+)\.(\d+)\.(\d+)")


class OpaMissing(Exception):
    """A binary that the tests need is not on this machine, or too old; the message says how to get it."""


def binary() -> Path:
    """The `opa` that tests use, PATH before what was built here; OpaMissing."""
    for path in _candidates("opa"):
        if version_of([str(path), "version"], _VERSION) >= OPA_MIN:
            return path
    raise OpaMissing(f"There is no opa for the tests: {INSTALL}.")


def regal() -> Path:
    """The `regal` that lints the policies, PATH before what was built here; OpaMissing."""
    for path in _candidates("regal"):
        return path
    raise OpaMissing(f"There is no regal for the policies: {INSTALL}.")


class OpaServer(LocalServer):
    """One `opa run --server`.

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
        self._executable = binary()
        self._config = dict(config or {})
        self._arguments = [*options, *(["--bundle"] if are_bundles else []), *map(str, paths)]
        self._headers = dict(headers or {})
        self._label = ""
        super().__init__("opa", {**os.environ, **(environ or {})})

    @property
    def url(self) -> str:
        """Where it answers, as the configuration takes it."""
        return f"http://{HOST}:{self.port}"

    def command(self) -> list[str]:
        """What starts it, with a label of its own in its configuration."""
        self._label = uuid.uuid4().hex
        config = {**self._config, "labels": {**self._config.get("labels", {}), _LABEL: self._label}}
        file = self.folder / "config.json"
        file.write_text(json.dumps(config), encoding="utf-8")
        command = [str(self._executable), "run", "--server", "--addr", f"{HOST}:{self.port}", "--skip-version-check"]
        return [*command, "--log-level", "error", "--config-file", str(file), *self._arguments]

    def answers(self) -> bool:
        """Whether what answers has the label of this process."""
        try:
            status, said = self.get("/v1/config")
        except (OSError, http.client.HTTPException, ValueError):
            return False
        return status == 200 and said["result"]["labels"].get(_LABEL) == self._label

    def get(self, path: str) -> tuple[int, Any]:
        """The status and the JSON of a GET; OSError where nothing answers."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=REQUEST_S)
        try:
            connection.request("GET", path, headers=self._headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        finally:
            connection.close()


def _candidates(name: str) -> list[Path]:
    on_path = shutil.which(name)
    built = BUILT / name
    return [*([Path(on_path)] if on_path else []), *([built] if built.exists() else [])]
