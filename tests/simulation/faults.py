"""Faults: what can go wrong in a simulated run, how often, and how it reaches the code under test."""

from __future__ import annotations

import random
from dataclasses import dataclass

PROCESSES = ("gateway", "ledger")


class Killed(BaseException):
    """The process that runs now is killed, or the machine loses its power; nothing it does may catch this."""

    def __init__(self, process: str, *, is_power_loss: bool = False) -> None:
        super().__init__(f"{process} is killed" if not is_power_loss else "the power is lost")
        self.process = process
        self.is_power_loss = is_power_loss


@dataclass(frozen=True, slots=True)
class Plan:
    """How often each fault strikes at an operation, and how large things are in one run."""

    kill_rate: float
    power_loss_rate: float
    eio_rate: float
    lost_request_rate: float
    lost_reply_rate: float
    delay_rate: float
    clock_step_rate: float
    full_disk_rate: float
    segment_bytes: int
    segments_max: int
    hold_ttl_s: int
    retention_s: float
    steps: int

    @classmethod
    def drawn(cls, dice: random.Random) -> Plan:
        """The plan of one seed: most runs see a few kinds of faults often rather than all of them seldom."""
        return cls(
            kill_rate=dice.choice((0.0, 0.001, 0.004, 0.015)),
            power_loss_rate=dice.choice((0.0, 0.0, 0.001, 0.005)),
            eio_rate=dice.choice((0.0, 0.0, 0.0, 0.01)),
            lost_request_rate=dice.choice((0.0, 0.1, 0.3)),
            lost_reply_rate=dice.choice((0.0, 0.1, 0.3)),
            delay_rate=dice.choice((0.0, 0.2)),
            clock_step_rate=dice.choice((0.0, 0.0, 0.02)),
            full_disk_rate=dice.choice((0.0, 0.0, 0.03)),
            segment_bytes=dice.choice((48 << 10, 64 << 10, 128 << 10)),
            segments_max=dice.choice((3, 6, 40)),
            hold_ttl_s=dice.choice((3, 9)),
            retention_s=dice.choice((0.0, 5.0, 1e9)),
            steps=dice.choice((50, 120, 240)),
        )
