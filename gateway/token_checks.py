"""Token checks: what a runtime's scheduler counted of completed requests, beside what they were charged.

A difference changes no row: it is counted, and announced. Answers of one request may come in several shares, so a
difference counts only once nothing more has come for a while.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.attribution.shares import Share

OPEN_MAX = 10_000
SETTLES_US = 60_000_000
_CHARGED = ("output_tokens", "input_tokens", "cached_input_tokens")


@dataclass(slots=True)
class _Check:
    """One request whose tokens do not agree yet: what was counted so far, by how many answers, and what was charged."""

    runtime: str
    charged: tuple[int, ...]
    counted: tuple[int, ...]
    answers: int
    since_us: int

    @property
    def differences(self) -> dict[str, int]:
        # Of several answers each has counted its prompt, and the row has it once.
        names = _CHARGED if self.answers == 1 else _CHARGED[:1]
        pairs = zip(names, self.counted, self.charged, strict=False)
        return {name: abs(counted - charged) for name, counted, charged in pairs if counted != charged}


class TokenChecks:
    """The requests that do not agree yet, and the sums of what never did."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, _Check] = OrderedDict()
        self._drift: dict[tuple[str, str], int] = {}

    def take(self, runtime: str, row: Mapping[str, Any], share: Share, now_us: int) -> None:
        """Compare a share with the row of its request; what was cut off, on either side, cannot be compared."""
        if share.reason != "finished" or share.certainty != "exact" or row["certainty"] != "exact":
            return
        if row["status"] != "ok":
            return
        known = self._open.pop(share.request_id, None)
        charged = tuple(int(row.get(name, 0)) for name in _CHARGED)
        counted = (share.output_tokens, share.prompt_tokens, share.cached_tokens)
        check = _Check(runtime, charged, counted, share.answers, now_us)
        if known is not None:
            check.counted = tuple(now + before for now, before in zip(counted, known.counted, strict=True))
            check.answers += known.answers
        if check.differences:
            self._open[share.request_id] = check
            if len(self._open) > OPEN_MAX:
                self._count(self._open.popitem(last=False)[1])

    def drifted(self, now_us: int) -> dict[tuple[str, str], int]:
        """By runtime and quantity, how far all requests together were off that nothing more is heard of."""
        for request_id, check in list(self._open.items()):
            if now_us - check.since_us < SETTLES_US:
                break
            self._count(self._open.pop(request_id))
        return dict(self._drift)

    def _count(self, check: _Check) -> None:
        for name, difference in check.differences.items():
            key = check.runtime, name
            self._drift[key] = self._drift.get(key, 0) + difference
