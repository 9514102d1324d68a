"""Servers of the benchmark, started once for all of its tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import server
from bench.comparison import Running


@pytest.fixture(scope="session", autouse=True)
def _logs_in_a_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "LOG_DIR", tmp_path_factory.mktemp("logs"))
        yield


@pytest.fixture(scope="session")
def upstream_url() -> Iterator[str]:
    upstream = server.UpstreamServer()
    try:
        yield upstream.start()
    finally:
        upstream.stop()


@pytest.fixture(scope="session")
def bare(upstream_url: str) -> Iterator[Running]:
    proxy = server.BareProxyServer()
    try:
        yield Running(proxy, proxy.start(upstream_url))
    finally:
        proxy.stop()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "build" / "bench.json"
