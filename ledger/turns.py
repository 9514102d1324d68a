"""Turns: how many statements run at once, so that no key can keep the others waiting."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ledger.access import Access

PER_KEY_MAX = 2
WAITING_PER_KEY_MAX = 8
WAIT_S = 30.0


class Busy(Exception):
    """Too many statements of this key wait, or this one has waited too long."""


class Turns:
    """Gives each statement its turn; one key has at most two at a time, the home's own token as many as there are.

    Who waits is counted for each key by itself, so none is turned away for what another sends.
    """

    def __init__(self, running_max: int, *, wait_s: float = WAIT_S) -> None:
        self._wait_s = wait_s
        self._all = asyncio.Semaphore(running_max)
        self._by_key: dict[str, asyncio.Semaphore] = {}
        self._users: dict[str, int] = {}

    @asynccontextmanager
    async def turn(self, access: Access) -> AsyncIterator[None]:
        """Waits for a turn and keeps it while the block lasts; Busy."""
        own = self._own(access)
        try:
            if not access.is_home and self._users[access.name] > PER_KEY_MAX + WAITING_PER_KEY_MAX:
                raise Busy
            await self._acquire(own)
            try:
                yield
            finally:
                self._all.release()
                own.release()
        finally:
            self._forget(access)

    def _own(self, access: Access) -> asyncio.Semaphore:
        self._users[access.name] = self._users.get(access.name, 0) + 1
        most = 1 << 30 if access.is_home else PER_KEY_MAX
        return self._by_key.setdefault(access.name, asyncio.Semaphore(most))

    def _forget(self, access: Access) -> None:
        self._users[access.name] -= 1
        if not self._users[access.name]:
            del self._users[access.name], self._by_key[access.name]

    async def _acquire(self, own: asyncio.Semaphore) -> None:
        try:
            async with asyncio.timeout(self._wait_s):
                await own.acquire()
                try:
                    await self._all.acquire()
                except BaseException:
                    own.release()
                    raise
        except TimeoutError:
            raise Busy from None
