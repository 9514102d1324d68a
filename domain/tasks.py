"""Tasks: how those of an event loop are ended, and how long one is waited for."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

AGAIN_S = 1.0
SLICES = 5

_Result = TypeVar("_Result")


async def end(tasks: Iterable[asyncio.Task[Any]], again_s: float = AGAIN_S) -> None:
    """Cancel tasks, and again until all have ended, whatever they end with.

    Once is not enough: `asyncio.wait_for` of Python 3.11 drops a cancellation that comes when what it waits for is
    just done (mended in 3.12, https://github.com/python/cpython/issues/86296), and redis sends with it. Who is ended so
    and ends tasks in turn does it with a shorter `again_s`.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        ended, pending = await asyncio.wait(pending, timeout=again_s)
        for task in ended:
            if not task.cancelled():
                task.exception()  # else it is logged as never retrieved


async def within(timeout_s: float, work: Coroutine[Any, Any, _Result]) -> _Result:
    """What some work comes to; cancelled, with TimeoutError, once it took so long by a loop that was turning.

    A loop that was held up, by a burst of requests or by others on its machine, finds a timer run out before it has
    looked at what came meanwhile: an answer would be late that was there all the time. In slices each such halt counts
    as one of them.
    """
    task = asyncio.create_task(work)
    try:
        for _ in range(SLICES):
            await asyncio.wait((task,), timeout=timeout_s / SLICES)
            if task.done():
                return task.result()
        raise TimeoutError(f"nothing came within {timeout_s:g} s")
    finally:
        if not task.done():
            await end([task], AGAIN_S / 4)
        elif not task.cancelled():
            task.exception()  # who waits was cancelled just then; else it is logged as never retrieved
