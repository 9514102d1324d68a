"""Live calls: every request now at a runtime, with the time by which it must have moved and the hold it keeps alive."""

import asyncio
import time
from dataclasses import dataclass, field

from ledger.holds import Hold


@dataclass(slots=True, eq=False)
class LiveCall:
    """One call in progress; `deadline_s` is monotonic, `stopped` says why it was interrupted.

    `on_client` is true while the gateway waits for the client to take what was sent to it.
    """

    task: asyncio.Task[None]
    hold: Hold
    deadline_s: float
    stopped: str = ""
    on_client: bool = False

    def stop(self, why: str) -> None:
        """Interrupt the call; the first reason stays."""
        if not self.stopped:
            self.stopped = why
            self.task.cancel()


@dataclass(slots=True)
class Live:
    """The calls of one worker; `in_flight_max` bounds the requests between arrival and answer, read bodies included."""

    in_flight_max: int
    in_flight: int = 0
    is_draining: bool = False
    calls: set[LiveCall] = field(default_factory=set)

    def can_serve(self) -> bool:
        """Whether the request that has just been counted may go on."""
        return not self.is_draining and self.in_flight <= self.in_flight_max

    def stop_overdue(self) -> None:
        """Interrupt every call whose runtime, or client, has not moved in time."""
        now_s = time.monotonic()
        for call in [call for call in self.calls if call.deadline_s < now_s]:
            call.stop("client_stalled" if call.on_client else "timeout")

    def stop_all(self) -> None:
        """Interrupt every call: the drain has taken too long."""
        for call in list(self.calls):
            call.stop("drained")
