"""What a runtime is told of priority: the later of what policy and the caller say."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from gateway.forward import Forwarder
from tests.gateway.one_worker import OneWorker, admitted


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[OneWorker]:
    worker = OneWorker(tmp_path)
    yield worker
    await worker.close()


@pytest.mark.parametrize(
    ("policys", "callers", "told"),
    [(10, 0, 10), (10, 9, 10), (10, 11, 11), (0, 0, 0), (0, 3, 3), (None, 0, None), (None, 3, 3)],
)
async def test_the_later_priority_is_told(
    worker: OneWorker, policys: int | None, callers: int, told: int | None
) -> None:
    request = await admitted(await worker.open(), priority=callers)
    obligations = replace(request.decision.obligations, priority=policys)
    request = request._replace(decision=replace(request.decision, obligations=obligations))
    body = orjson.loads(Forwarder(b"salt").body(request, {"model": "plain", "priority": -1}))
    assert body.get("priority") == told
