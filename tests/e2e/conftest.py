"""The real runtimes of the end-to-end tests: vLLM servers on CPU, each started once a session by its first user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from runtime.vllm.knobs import VllmKnobs
from runtime.vllm.launcher import VllmLaunch, VllmServer
from tests.e2e.vllm_environment import MODEL, PYTHON, ROOT

MODEL_NAME = "tiny-qwen3"
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


@pytest.fixture(scope="session")
def vllm_url() -> Iterator[VllmAddress]:
    """A vLLM that generates with the tiny model; what it prints is in `build/vllm-generate.log`."""
    with serving(VllmKnobs()) as address:
        yield address


@pytest.fixture(scope="session")
def vllm_embedding_url() -> Iterator[VllmAddress]:
    """A vLLM that embeds with the tiny model, for one server does not do both; its log is `build/vllm-embed.log`."""
    with serving(VllmKnobs(task="embed")) as address:
        yield address


@contextmanager
def serving(knobs: VllmKnobs) -> Iterator[VllmAddress]:
    """Serve the tiny model with these settings for as long as the context lasts."""
    for needed in (PYTHON, MODEL):
        if not needed.exists():
            pytest.fail(f"{needed} is missing: run `make e2e`, or `python tests/e2e/vllm_environment.py` first")
    log = ROOT / "build" / f"vllm-{knobs.task}.log"
    launch = VllmLaunch(python=PYTHON, model=MODEL, served_model_name=MODEL_NAME, log=log, knobs=knobs)
    with VllmServer(launch) as server:
        yield VllmAddress(server.base_url, MODEL_NAME)
