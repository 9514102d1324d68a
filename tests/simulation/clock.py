"""The clock of a simulated run: time that only passes when the run lets it, and a wall clock that may be set back."""

from __future__ import annotations

START_US = 1_772_323_140_000_000  # 2026-02-28T23:59:00Z: a minute, an hour, a day and a month end soon


class Clock:
    """Microseconds since the run began, and what a wall clock shows, which a step sets forth or back."""

    def __init__(self) -> None:
        self.us = 0
        self.stepped_us = 0
        self.back_us = 0

    def wall_us(self) -> int:
        """Unix time in microseconds."""
        return START_US + self.us + self.stepped_us

    def wall_s(self) -> float:
        """Unix time in seconds."""
        return self.wall_us() / 1e6

    def monotonic_s(self) -> float:
        """Seconds that no step touches."""
        return self.us / 1e6

    def step(self, us: int) -> None:
        """Set the wall clock."""
        self.stepped_us += us
        self.back_us += max(0, -us)
