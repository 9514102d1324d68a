"""The real runtimes of the end-to-end tests: vLLM servers on CPU, each started once a session by its first user."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from runtime.vllm.control import VllmControl
from runtime.vllm.knobs import VllmKnobs
from runtime.vllm.launcher import IN_PROCESS_EXECUTOR, VllmLaunch, VllmServer
from tests.e2e.configuration import write_configuration
from tests.e2e.deployment import Deployment
from tests.e2e.governed import Governed, sampled
from tests.e2e.vllm_environment import MODEL, PYTHON, ROOT

MODEL_NAME = "tiny-qwen3"
SEATS = 8  # requests that the generating server runs at once; more wait
MIDNIGHT_MARGIN_S = 90
TEST_TIMEOUT_S = 400  # the first test of a session also waits for vLLM, about a minute on a quiet machine


@dataclass(frozen=True, slots=True)
class VllmAddress:
    """Where the server is (`base_url` has no `/v1`) and the name of the one model it serves."""

    base_url: str
    model: str


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each end-to-end test that names no time limit of its own one that has room for the server's start."""
    for item in items:
        if item.path.parent == ROOT / "tests" / "e2e" and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))


@dataclass(frozen=True, slots=True)
class VllmAddresses:
    """The two servers: one generates, the other embeds, for one server does not do both."""

    generate: VllmAddress
    embed: VllmAddress


@pytest.fixture
def away_from_midnight() -> None:
    """Let a day that is about to end, end first: its budget would hold another third."""
    left_s = 86_400 - time.time() % 86_400
    if left_s < MIDNIGHT_MARGIN_S:
        time.sleep(left_s + 1)


@pytest.fixture(scope="session")
def vllm_addresses() -> Iterator[VllmAddresses]:
    """Two vLLM servers of the tiny model, started at once because most of a start is spent on one core."""
    generate = VllmServer(vllm_launch("generate", VllmKnobs(max_num_seqs=SEATS)))
    servers = [generate, VllmServer(vllm_launch("embed", VllmKnobs(runner="pooling", convert="embed")))]
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.stop)
        with ThreadPoolExecutor(len(servers)) as starting:
            list(starting.map(VllmServer.start, servers))
        yield VllmAddresses(*(VllmAddress(server.base_url, MODEL_NAME) for server in servers))


@pytest.fixture(scope="session")
def vllm_url(vllm_addresses: VllmAddresses) -> VllmAddress:
    """A vLLM that generates with the tiny model; what it prints is in `build/vllm-generate.log`."""
    return vllm_addresses.generate


@pytest.fixture(scope="session")
def vllm_embedding_url(vllm_addresses: VllmAddresses) -> VllmAddress:
    """A vLLM that embeds with the tiny model; what it prints is in `build/vllm-embed.log`."""
    return vllm_addresses.embed


@pytest.fixture(scope="session")
def governed(vllm_addresses: VllmAddresses, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Governed]:
    """`bursar up` in front of both servers; it stops before they do."""
    folder = tmp_path_factory.mktemp("governed")
    urls = vllm_addresses.generate.base_url, vllm_addresses.embed.base_url
    with Deployment(folder / "home", write_configuration(folder, MODEL_NAME, *urls)) as deployment:
        yield Governed(deployment, *urls, started=sampled(urls[0]))


@pytest.fixture(scope="session")
def vllm_control() -> Iterator[VllmControl]:
    """A vLLM whose knobs may be changed, for tests that need settings of their own; stopped until first applied."""
    control = VllmControl(vllm_launch("changed", VllmKnobs()))
    yield control
    control.stop()


def vllm_launch(name: str, knobs: VllmKnobs) -> VllmLaunch:
    """The tiny model with these settings, metered into `build/telemetry/NAME`."""
    for needed in (PYTHON, MODEL):
        if not needed.exists():
            pytest.fail(f"{needed} is missing: run `make e2e`, or `python tests/e2e/vllm_environment.py` first")
    log, telemetry = ROOT / "build" / f"vllm-{name}.log", ROOT / "build" / "telemetry" / name
    shutil.rmtree(telemetry, ignore_errors=True)
    return VllmLaunch(PYTHON, MODEL, MODEL_NAME, log, knobs, telemetry, executor=IN_PROCESS_EXECUTOR)
