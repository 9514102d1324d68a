"""Ledger lag: how far the store is behind this gateway's journal, as the ledger process says now and then."""

import asyncio
from collections.abc import Callable

from ledger.client import LedgerClient, LedgerUnavailable, QueryFailed

PERIOD_S = 5.0


class LedgerLag:
    """The last answer: how many rows the ledger is behind, and the age of the oldest in whole seconds."""

    def __init__(self, find_ledger: Callable[[], LedgerClient | None]) -> None:
        self._find_ledger = find_ledger
        self.rows = 0
        self.age_s = 0

    async def follow(self) -> None:
        """Ask until cancelled; without a ledger process the last answer stands."""
        while True:
            await asyncio.sleep(PERIOD_S)
            await asyncio.to_thread(self.ask)

    def ask(self) -> None:
        """Ask the ledger process once; it waits for the answer."""
        client = self._find_ledger()
        try:
            status = client.status() if client is not None else None
        except (LedgerUnavailable, QueryFailed):
            return
        if status is not None:
            self.rows, self.age_s = int(status["lag_rows"]), int(status["lag_s"])
