"""A simulator process per test session, and clients for it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
ROOT = Path(__file__).parents[3]

Start = Callable[..., str]


@contextmanager
def running_simulator(folder: Path, *arguments: str) -> Iterator[str]:
    """Start `python -m runtime.sim`, yield its base URL, and end it by pid."""
    port_file = folder / "port"
    command = [sys.executable, "-m", "runtime.sim", "--port", "0", "--port-file", str(port_file), *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not port_file.exists():
            assert process.poll() is None, f"the simulator ended with {process.returncode}"
            assert time.monotonic() < deadline, "the simulator did not start in time"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{json.loads(port_file.read_text())['port']}"
    finally:
        process.terminate()
        assert process.wait(STOP_TIMEOUT_S) == -signal.SIGTERM


@pytest.fixture(scope="session")
def sim_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A simulator of two models, twenty times as fast as real time, with a context of 4,096 tokens."""
    arguments = ("--model", "sim-small,sim-large", "--time-scale", "20", "--max-model-len", "4096")
    with running_simulator(tmp_path_factory.mktemp("sim"), *arguments) as url:
        yield url


@pytest.fixture
def start_simulator(tmp_path: Path) -> Callable[..., object]:
    """Start another simulator with arguments of the test's own, as a context manager."""
    return lambda *arguments: running_simulator(tmp_path, *arguments)


@pytest.fixture
def client(sim_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{sim_url}/v1", api_key="unused", max_retries=0) as sdk:
        yield sdk


@pytest.fixture
def http(sim_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=sim_url, timeout=20) as plain:
        yield plain
