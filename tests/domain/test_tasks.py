"""Ending tasks, also one that a single cancellation does not reach; and waiting for one, also in a loop that halts."""

import asyncio
import gc
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import uvloop

from domain.tasks import end, within

LIMIT_S = 0.3
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


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


async def test_what_comes_in_time_is_given_on_be_it_a_failure() -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("it")

    assert await within(LIMIT_S, asyncio.sleep(0, "done")) == "done"
    with pytest.raises(ValueError, match="it"):
        await within(LIMIT_S, fails())


async def test_what_does_not_come_in_time_is_ended() -> None:
    ended = False

    async def waits() -> None:
        nonlocal ended
        try:
            await asyncio.sleep(3_600)
        finally:
            ended = True

    began_s = time.monotonic()
    with pytest.raises(TimeoutError, match=r"nothing came within 0.3 s"):
        await within(LIMIT_S, waits())
    assert ended
    assert time.monotonic() - began_s >= LIMIT_S


async def test_who_is_cancelled_while_waiting_ends_what_it_waited_for() -> None:
    inner: list[asyncio.Task[None] | None] = []

    async def waits() -> None:
        inner.append(asyncio.current_task())
        await asyncio.sleep(3_600)

    outer = asyncio.create_task(within(3_600, waits()))
    await asyncio.sleep(0.01)
    await end([outer])
    (task,) = inner
    assert task is not None
    assert task.cancelled()


async def test_what_fails_just_as_who_waits_is_cancelled_is_not_logged_as_never_retrieved() -> None:
    logged: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))

    async def fails(turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        raise ValueError

    for turns in range(8):
        for later in range(1, 8):
            outer = asyncio.create_task(within(3_600, fails(turns)))
            for _ in range(later):
                await asyncio.sleep(0)
            outer.cancel()
            with suppress(asyncio.CancelledError, ValueError):
                await outer
    gc.collect()
    assert logged == []


@pytest.mark.parametrize("new_loop", LOOPS)
def test_what_came_while_the_loop_was_held_up_is_not_late(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Held up anywhere between the asking and the answer, for longer than the time there is."""

    async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        writer.write(b"?")
        return await reader.readexactly(1)

    async def asked_of(here: socket.socket) -> list[bytes]:
        reader, writer = await asyncio.open_connection(sock=here)
        answers = []
        for turns in range(5):
            asking = asyncio.create_task(within(LIMIT_S, ask(reader, writer)))
            for _ in range(turns):
                await asyncio.sleep(0)
            time.sleep(1.3 * LIMIT_S)  # noqa: ASYNC251 it holds the loop up on purpose
            answers.append(await asking)
        writer.close()
        return answers

    def echo(there: socket.socket) -> None:
        while piece := there.recv(1):
            there.sendall(piece)

    here, there = socket.socketpair()
    with there, ThreadPoolExecutor(1) as other, asyncio.Runner(loop_factory=new_loop) as runner:
        other.submit(echo, there)
        assert runner.run(asked_of(here)) == [b"?"] * 5


async def _loses_the_first() -> None:
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(3_600)
    await asyncio.sleep(3_600)
