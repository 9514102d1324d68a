"""Tasks: how those of an event loop are ended."""

import asyncio
from collections.abc import Iterable
from typing import Any

AGAIN_S = 1.0


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
