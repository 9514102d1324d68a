"""The LiteLLM proxy as a server under measurement: a key, one worker, no database, nothing fetched."""

import os
import secrets
import socket
import time
from pathlib import Path
from typing import Final
from urllib.error import URLError
from urllib.request import urlopen

from bench import litellm_environment
from bench.errors import MeasurementError
from bench.server import Pids, Process

CONFIG: Final = Path(__file__).with_name("litellm.yaml")
START_TIMEOUT_S: Final = 120.0
PASSED_ON: Final = ("PATH", "HOME", "LANG", "TMPDIR")


class LiteLLMServer:
    """LiteLLM's own command, in its own environment."""

    def __init__(self) -> None:
        self.name = "LiteLLM"
        self._key = f"sk-{secrets.token_hex(16)}"
        self.headers = {"authorization": f"Bearer {self._key}"}
        self._process: Process | None = None

    def start(self, upstream_url: str) -> str:
        """Install LiteLLM if need be, start it and return its base URL. Raises MeasurementError."""
        executables = litellm_environment.ensure()
        port = _free_port()
        command = [
            str(executables / "litellm"),
            *("--config", str(CONFIG)),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--num_workers", "1", "--telemetry", "False"),
        ]
        self._process = Process("litellm", command, self._environment(upstream_url))
        base_url = f"http://127.0.0.1:{port}"
        self._await(base_url)
        return base_url

    def pids(self) -> Pids:
        """The one worker is the only process."""
        assert self._process is not None
        return {"worker": self._process.pid, "all": [self._process.pid]}

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def _environment(self, upstream_url: str) -> dict[str, str]:
        """Only what is named here, so that a developer's own LITELLM_ or OPENAI_ settings change no number."""
        return {
            **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
            "BENCH_UPSTREAM_URL": f"{upstream_url}/v1",
            "BENCH_UPSTREAM_KEY": "unused",
            "LITELLM_MASTER_KEY": self._key,
            "LITELLM_MODE": "PRODUCTION",  # reads no .env file
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # the price table comes with the package, it is not fetched
            "LITELLM_LOG": "ERROR",
            "NO_DOCS": "True",
        }

    def _await(self, base_url: str) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            assert self._process is not None
            self._process.check()
            if _is_alive(f"{base_url}/health/liveliness"):
                return
            time.sleep(0.2)
        raise MeasurementError(f"LiteLLM did not start within {START_TIMEOUT_S:.0f} s")


def _is_alive(url: str) -> bool:
    try:
        with urlopen(url, timeout=2) as response:  # noqa: S310  the URL is built here from http:// and loopback
            return bool(response.status == 200)
    except (URLError, TimeoutError, ConnectionError):
        return False


def _free_port() -> int:
    """A port that was free a moment ago: LiteLLM cannot pick one, and fails to start if it is taken meanwhile."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
