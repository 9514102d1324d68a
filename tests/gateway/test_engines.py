"""Engines are looked after as long as they serve, whatever goes wrong meanwhile."""

import asyncio
from typing import Any

import pytest

from gateway import engines
from gateway.engines import Engines
from policy.opa import OpaEngine, OpaServer


class Faulty(OpaEngine):
    """Fails twice in a way that nobody has thought of, then goes on."""

    def __init__(self) -> None:
        super().__init__(OpaServer("http://127.0.0.1:1"))
        self.runs = 0
        self.goes_on = asyncio.Event()

    async def run(self, changed: Any = None) -> None:
        self.runs += 1
        if self.runs < 3:
            raise AttributeError("nobody thought of this")
        self.goes_on.set()
        await asyncio.Event().wait()


async def test_an_opa_is_looked_after_again_after_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "FOLLOW_AGAIN_S", 0.01)
    of, engine = Engines({}), Faulty()
    of.follow(engine)
    async with asyncio.timeout(30):
        await engine.goes_on.wait()
    assert engine.runs == 3
    another = Faulty()
    of.follow(another)
    async with asyncio.timeout(30):
        await another.goes_on.wait()
    assert engine.runs == 3
    assert of._following is not None
    of._following.cancel()
