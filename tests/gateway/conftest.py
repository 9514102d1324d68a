"""One fake runtime and one real gateway process for all tests that need nothing of their own."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateway import fake_runtime, gateway_process
from tests.gateway.deployment import KEY_ENV, deploy
from tests.gateway.fake_runtime import FakeRuntime
from tests.gateway.gateway_process import GatewayProcess
from tests.gateway.verified_deployment import deploy_verified, judging


@pytest.fixture(scope="session", autouse=True)
def secret() -> Iterator[None]:
    """The key of a runtime, which every configuration of these tests names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_ENV, "runtime-secret")
        yield


@pytest.fixture(scope="session")
def fake() -> Iterator[FakeRuntime]:
    """The runtime behind every model."""
    with fake_runtime.running() as fake:
        yield fake


@pytest.fixture(scope="session")
def gateway(fake: FakeRuntime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway with the usual deployment; tests leave nothing held and no limit used up that others need."""
    folder = tmp_path_factory.mktemp("gateway")
    with gateway_process.running(folder / "home", deploy(folder, fake.url)) as gateway:
        yield gateway


@pytest.fixture(scope="session")
def judge() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The runtime of a second model, and what it has been asked."""
    with judging() as judge:
        yield judge


@pytest.fixture(scope="session")
def verified(fake: FakeRuntime, judge: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway whose policy obliges checks of most of its models."""
    folder = tmp_path_factory.mktemp("verified")
    with gateway_process.running(folder / "home", deploy_verified(folder, fake.url, judge[0])) as verified:
        yield verified
