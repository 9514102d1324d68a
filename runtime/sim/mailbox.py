"""Where the engine's driver leaves what it produced for one HTTP request."""

import asyncio

from runtime.sim.request import Emission

Delivery = tuple[int, Emission]
"""The index of the sequence within its HTTP request, and what it emitted."""


class Mailbox:
    """Hands the emissions of one HTTP request's sequences to the one coroutine that answers it.

    Bounded by the output lengths of its sequences. Without `each` the reader is only woken when all have finished.
    """

    def __init__(self, sequences: int, *, each: bool) -> None:
        self.client_left = False
        self.failed = False
        self._each = each
        self._unfinished = sequences
        self._deliveries: list[Delivery] = []
        self._reader: asyncio.Future[None] | None = None

    def put(self, index: int, emission: Emission) -> None:
        """Leave an emission of sequence `index`."""
        self._deliveries.append((index, emission))
        if emission.finish_reason is not None:
            self._unfinished -= 1
        if self._each or self._unfinished == 0:
            self._wake()

    def leave(self) -> None:
        """Tell the reader that its client is gone."""
        self.client_left = True
        self._wake()

    def fail(self) -> None:
        """Tell the reader that the engine stopped and nothing more will come."""
        self.failed = True
        self._wake()

    async def take(self) -> list[Delivery]:
        """All emissions not taken yet, after waiting for one; [] when the client left or the engine failed."""
        while not self._ready():
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
            self._reader = None
        if self.client_left or self.failed:
            return []
        taken, self._deliveries = self._deliveries, []
        return taken

    def _ready(self) -> bool:
        if self.client_left or self.failed:
            return True
        return bool(self._deliveries) and (self._each or self._unfinished == 0)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
