"""Waiting: requests that policy lets wait a moment for a short window or a concurrency slot."""

import asyncio
from collections import deque


class Waiting:
    """A bounded first-come queue of requests waiting for a hold to end."""

    def __init__(self, waiting_max: int) -> None:
        self.waiting_max = waiting_max
        self._waiters: deque[asyncio.Future[None]] = deque()

    def __len__(self) -> int:
        return len(self._waiters)

    def can_wait(self) -> bool:
        """Whether one more may wait."""
        return len(self._waiters) < self.waiting_max

    async def wait(self, timeout_s: float) -> None:
        """Wait until a hold ends, or for `timeout_s`."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await asyncio.wait((waiter,), timeout=timeout_s)
        finally:
            if not waiter.done():
                self._waiters.remove(waiter)

    def wake(self) -> None:
        """A hold ended: the first that waits tries again."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
