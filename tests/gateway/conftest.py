"""One fake runtime and one real gateway process for all tests that need nothing of their own."""

import os
from collections.abc import Iterator

import pytest

from tests.gateway import fake_runtime, gateway_process
from tests.gateway.deployment import KEY_ENV, deploy
from tests.gateway.fake_runtime import FakeRuntime
from tests.gateway.gateway_process import GatewayProcess


@pytest.fixture(scope="session")
def fake() -> Iterator[FakeRuntime]:
    """The runtime behind every model."""
    with fake_runtime.running() as fake:
        yield fake


@pytest.fixture(scope="session")
def gateway(fake: FakeRuntime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with the usual deployment; tests leave nothing held and no limit used up that others need."""
    os.environ[KEY_ENV] = "runtime-secret"
    folder = tmp_path_factory.mktemp("gateway")
    with gateway_process.running(folder / "home", deploy(folder, fake.url)) as gateway:
        yield gateway
    del os.environ[KEY_ENV]
