"""Windows: the spans of time over which a budget's limit counts, in calendar UTC or rolling."""

import calendar
import re
import time
from dataclasses import dataclass
from typing import Literal

ROLLING_CELLS = 60
FOREVER_S = 1 << 62
SHORT_WINDOW_S = 3600

_DURATION = re.compile(r"rolling:(\d+)([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_FIXED_S = {"minute": 60, "hour": 3600, "day": 86400}


@dataclass(frozen=True, slots=True)
class Window:
    """One kind of window; `cell_s` is the width of a rolling window's cells and 0 for the others."""

    kind: Literal["minute", "hour", "day", "month", "rolling", "total"]
    duration_s: int
    cell_s: int = 0

    @property
    def text(self) -> str:
        """The window as a budget's `window` names it."""
        return f"rolling:{self.duration_s}s" if self.kind == "rolling" else self.kind

    @property
    def is_short(self) -> bool:
        """Whether waiting for this window to pass is worth a client's while (up to an hour)."""
        return self.duration_s <= SHORT_WINDOW_S

    def cell_start_s(self, now_s: int) -> int:
        """The Unix second at which the cell holding `now_s` begins."""
        if self.kind == "total":
            return 0
        if self.kind == "month":
            now = time.gmtime(now_s)
            return calendar.timegm((now.tm_year, now.tm_mon, 1, 0, 0, 0))
        width = self.cell_s or self.duration_s
        return now_s - now_s % width

    def cell_end_s(self, at_s: int) -> int:
        """The Unix second at which charges are no longer put into the cell holding `at_s`."""
        if self.kind == "total":
            return FOREVER_S
        if self.kind == "month":
            start = time.gmtime(at_s)
            year, month = (start.tm_year + 1, 1) if start.tm_mon == 12 else (start.tm_year, start.tm_mon + 1)
            return calendar.timegm((year, month, 1, 0, 0, 0))
        return self.cell_start_s(at_s) + (self.cell_s or self.duration_s)

    def cell_gone_s(self, at_s: int) -> int:
        """The Unix second from which the cell holding `at_s` no longer counts against the limit.

        A rolling cell counts until its last instant is a whole window old, so no span of the window's length can ever
        exceed the limit.
        """
        end_s = self.cell_end_s(at_s)
        return end_s + self.duration_s if self.kind == "rolling" else end_s


def parse_window(text: str) -> Window:
    """The window that a budget's `window` names; raises ValueError with what is allowed."""
    if text in _FIXED_S:
        return Window(text, _FIXED_S[text])  # type: ignore[arg-type]  # the keys of _FIXED_S are such literals
    if text == "month":
        return Window("month", 31 * 86400)
    if text == "total":
        return Window("total", FOREVER_S)
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"window {text!r} is none of minute, hour, day, month, total, rolling:<n><s|m|h|d>")
    duration_s = int(match[1]) * _UNIT_S[match[2]]
    if duration_s < ROLLING_CELLS or duration_s % ROLLING_CELLS:
        raise ValueError(
            f"a rolling window needs a duration divisible into {ROLLING_CELLS} whole seconds, not {text!r}"
        )
    return Window("rolling", duration_s, duration_s // ROLLING_CELLS)
