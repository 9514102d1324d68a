"""Slices: long work on the event loop, cut so that requests go on meanwhile."""

import asyncio
import time

# As long as this the event loop may be kept, and as long as that it is left to others before what follows.
SLICE_S = 0.001
PAUSE_S = 0.002


class Slices:
    """Lets the event loop breathe between two pieces of work whenever a slice of time is used up."""

    def __init__(self) -> None:
        self._until_s = time.perf_counter() + SLICE_S

    async def breathe(self) -> None:
        """Go on at once within the slice, else after a pause."""
        if time.perf_counter() > self._until_s:
            await asyncio.sleep(PAUSE_S)
            self._until_s = time.perf_counter() + SLICE_S
