"""Live calls: every request of a known caller, by when it must have moved, and the hold it keeps alive."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Protocol

from gateway.repeats import Attempt
from ledger.holds import Hold

# The key of an ASGI scope's extensions under which the server's protocol offers the connection of a request.
EXTENSION = "bursar.connection"


@dataclass(slots=True, eq=False)
class LiveCall:
    """One request in progress; `deadline_s` is monotonic, `stopped` says why it was interrupted.

    `on_client` is true while the gateway waits for the client: for its body, or to take what was sent to it.
    `is_recorded` says that the request needs no row any more: it was refused, or it repeats one that has its own.
    `attempt` is there where it carries an `Idempotency-Key`.
    """

    connection: "Connection"
    deadline_s: float
    hold: Hold | None = None
    stopped: str = ""
    on_client: bool = True
    is_recorded: bool = False
    attempt: Attempt | None = None

    def stop(self, why: str) -> None:
        """Interrupt the request; the first reason stays."""
        if not self.stopped:
            self.stopped = why
            self.connection.task.cancel()


class Connection(Protocol):
    """A client's connection: it interrupts the call it carries when the client leaves.

    `task` is the one that serves the request under way. `take_body` is the whole body, or None where it has to be
    received the usual way. `respond` sends a whole response in one write, or returns False where that has to go the
    usual way.
    """

    call: LiveCall | None
    task: asyncio.Task[None]

    def take_body(self, bytes_max: int) -> bytes | None: ...
    def respond(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool: ...


@dataclass(slots=True)
class Live:
    """The requests of one worker; `in_flight_max` bounds them."""

    in_flight_max: int
    is_draining: bool = False
    calls: set[LiveCall] = field(default_factory=set)

    def can_serve(self) -> bool:
        """Whether the request that has just been added may go on."""
        return not self.is_draining and len(self.calls) <= self.in_flight_max

    def stop_overdue(self) -> None:
        """Interrupt every call whose runtime, or client, has not moved in time."""
        now_s = time.monotonic()
        for call in [call for call in self.calls if call.deadline_s < now_s]:
            call.stop("client_stalled" if call.on_client else "timeout")

    def stop_all(self) -> None:
        """Interrupt every call: the drain has taken too long."""
        for call in list(self.calls):
            call.stop("drained")
