"""The real-time driver and the mailbox, without HTTP."""

import asyncio
from typing import Any

import pytest

from runtime.sim.config import EngineConfig
from runtime.sim.driver import EngineDriver
from runtime.sim.engine import Engine
from runtime.sim.mailbox import Mailbox
from runtime.sim.request import Emission, FinishReason, SimRequest
from runtime.sim.step import Step


class BrokenEngine(Engine):
    """Fails on its first step."""

    def step(self, now_us: int) -> Step:
        raise RuntimeError("broken")


def request(request_id: str) -> SimRequest:
    return SimRequest(request_id, 3, 4)


async def test_a_failed_engine_tells_who_waits_and_is_reported() -> None:
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
    driver = EngineDriver("m", BrokenEngine(EngineConfig()), 1.0)
    driver.start()
    mailbox = Mailbox(1, each=True)
    assert driver.submit([request("a")], mailbox)
    assert await mailbox.take() == []
    assert mailbox.failed
    assert not driver.alive
    assert [str(report["exception"]) for report in reports] == ["broken"]


async def test_stopping_tells_who_waits() -> None:
    driver = EngineDriver("m", Engine(EngineConfig()), 0.001)
    driver.start()
    mailbox = Mailbox(1, each=True)
    driver.submit([request("a")], mailbox)
    await asyncio.sleep(0)
    await driver.stop()
    assert await mailbox.take() == []
    assert mailbox.failed


async def test_the_sequences_of_one_request_are_queued_together_or_not_at_all() -> None:
    driver = EngineDriver("m", Engine(EngineConfig(max_waiting=2)), 1.0)
    assert not driver.submit([request("a"), request("b"), request("c")], Mailbox(3, each=True))
    assert driver.engine.num_waiting == 0
    assert driver.submit([request("a"), request("b")], Mailbox(2, each=True))


async def test_tokens_come_in_order_while_others_are_aborted() -> None:
    driver = EngineDriver("m", Engine(EngineConfig()), 100.0)
    driver.start()
    kept, dropped = Mailbox(1, each=True), Mailbox(1, each=True)
    driver.submit([request("kept")], kept)
    driver.submit([request("dropped")], dropped)
    emissions: list[Emission] = []
    driver.abort([request("dropped")])
    while len(emissions) < 4:
        emissions += [emission for _, emission in await kept.take()]
    last = Emission("kept", 1, FinishReason.LENGTH, 0)
    assert emissions == [*[last._replace(finish_reason=None)] * 3, last]
    assert driver.engine.pool.free_blocks == driver.engine.pool.num_blocks
    assert driver.metrics.successes["length"] == 1
    await driver.stop()


async def test_a_reader_of_whole_answers_is_woken_once_at_the_end() -> None:
    mailbox = Mailbox(2, each=False)
    reader = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    for index, finish in ((0, None), (1, FinishReason.STOP), (0, None)):
        mailbox.put(index, Emission("r", 1, finish, 0))
        await asyncio.sleep(0)
        assert not reader.done()
    mailbox.put(0, Emission("r", 1, FinishReason.LENGTH, 0))
    assert [index for index, _ in await reader] == [0, 1, 0, 0]


@pytest.mark.parametrize("each", [True, False])
async def test_a_client_that_left_ends_the_wait(each: bool) -> None:
    mailbox = Mailbox(1, each=each)
    reader = asyncio.create_task(mailbox.take())
    await asyncio.sleep(0)
    mailbox.leave()
    assert await reader == []
