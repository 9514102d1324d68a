"""Ending tasks, also one that a single cancellation does not reach."""

import asyncio
from contextlib import suppress

from domain.tasks import end


async def test_a_task_that_loses_a_cancellation_is_ended_all_the_same() -> None:
    lost = 0

    async def loses_the_first() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(3_600)
            except asyncio.CancelledError:
                lost += 1
                if lost == 2:
                    raise

    task = asyncio.create_task(loses_the_first())
    await asyncio.sleep(0)
    await end([task], again_s=0.01)
    assert task.cancelled()
    assert lost == 2


async def test_what_tasks_end_with_is_not_raised() -> None:
    async def fails() -> None:
        raise ValueError("of its own")

    failed, running = asyncio.create_task(fails()), asyncio.create_task(asyncio.sleep(3_600))
    await asyncio.sleep(0)
    await end([failed, running])
    assert running.cancelled()
    assert isinstance(failed.exception(), ValueError)
    await end([])


async def test_a_cancellation_that_comes_as_what_is_waited_for_is_done_is_not_lost() -> None:
    done = asyncio.Event()

    async def waits_for_ever() -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), 3_600)
            done.clear()

    task = asyncio.create_task(waits_for_ever())
    await asyncio.sleep(0.01)
    done.set()
    await asyncio.sleep(0)
    await end([task], again_s=0.01)
    assert task.cancelled()


async def test_what_a_task_ends_is_ended_before_the_task_is_given_up() -> None:
    inner = asyncio.create_task(_loses_the_first())

    async def owns() -> None:
        try:
            await asyncio.sleep(3_600)
        finally:
            await end([inner], again_s=0.01)

    outer = asyncio.create_task(owns())
    await asyncio.sleep(0)
    await end([outer], again_s=0.1)
    assert inner.cancelled()


async def _loses_the_first() -> None:
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(3_600)
    await asyncio.sleep(3_600)
