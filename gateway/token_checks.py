"""Token checks: what a runtime counted of completed requests, twice over, beside what they were charged.

Its scheduler counts, as the shares have it, and so does its front end, which lists each request that finished. A
difference changes no row: it is counted, and announced. Both may come in parts, one for each answer of a request, so a
difference counts only once nothing more has come for a while.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.attribution.shares import Share
from runtime.telemetry.records import Finished

OPEN_MAX = 10_000
SETTLES_US = 60_000_000
_CHARGED = ("output_tokens", "input_tokens", "cached_input_tokens")
_NOTHING = (0,) * len(_CHARGED)


@dataclass(frozen=True, slots=True)
class _Count:
    """The output, prompt and cached tokens of so many answers."""

    answers: int = 0
    tokens: tuple[int, ...] = _NOTHING

    def plus(self, answers: int, *tokens: int) -> "_Count":
        return _Count(self.answers + answers, tuple(map(sum, zip(self.tokens, tokens, strict=True))))

    def off(self, charged: tuple[int, ...]) -> tuple[int, ...]:
        """By how much each is off what was charged."""
        differences = [abs(counted - was) for counted, was in zip(self.tokens, charged, strict=True)]
        # Of several answers each has counted its prompt, and the row has it once.
        return (differences[0], *(differences[1:] if self.answers == 1 else _NOTHING[1:]))


@dataclass(slots=True)
class _Check:
    """One request: what is known of it so far; `charged` is None until a share of it has come.

    What was cut off, on either side, is not whole, and cannot be compared.
    """

    since_us: int = 0
    charged: tuple[int, ...] | None = None
    is_whole: bool = True
    scheduled: _Count = _Count()
    finished: _Count = _Count()

    @property
    def agrees(self) -> bool:
        """Whether both have counted what was charged."""
        if self.charged is None or not self.is_whole or self.finished.answers != self.scheduled.answers:
            return False
        # Else there are more answers to come, of other prompts.
        has_all = self.scheduled.tokens[1] >= self.charged[1]
        return has_all and not any(self.differences.values())

    @property
    def differences(self) -> dict[str, int]:
        if self.charged is None or not self.is_whole:
            return {}
        off = self.scheduled.off(self.charged)
        # Lines of the front end may be missing, or be of answers whose shares are.
        if self.finished.answers == self.scheduled.answers:
            off = tuple(map(max, off, self.finished.off(self.charged)))
        return dict(zip(_CHARGED, off, strict=True))


class TokenChecks:
    """The requests that are not known to agree yet, and the sums of what never did."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[str, str], _Check] = OrderedDict()
        self._drift: dict[tuple[str, str], int] = {}

    def take(self, runtime: str, row: Mapping[str, Any], share: Share, now_us: int, *, is_whole: bool) -> None:
        """Compare a share with the row of its request, where all of what it is a share of is known."""
        check = self._taken((runtime, share.request_id), now_us)
        check.charged = tuple(int(row.get(name, 0)) for name in _CHARGED)
        check.is_whole = check.is_whole and is_whole and row["status"] == "ok" and row["certainty"] == "exact"
        check.scheduled = check.scheduled.plus(
            share.answers, share.output_tokens, share.prompt_tokens, share.cached_tokens
        )
        self._put((runtime, share.request_id), check)

    def hear(self, runtime: str, request_id: str, finished: Finished, now_us: int) -> None:
        """Take what the front end of a runtime counted of one answer."""
        check = self._taken((runtime, request_id), now_us)
        check.finished = check.finished.plus(1, finished.output_tokens, finished.prompt_tokens, finished.cached_tokens)
        self._put((runtime, request_id), check)

    def drifted(self, now_us: int) -> dict[tuple[str, str], int]:
        """By runtime and quantity, how far all requests together were off that nothing more is heard of."""
        for key, check in list(self._open.items()):
            if now_us - check.since_us < SETTLES_US:
                break
            self._count(key[0], self._open.pop(key))
        return dict(self._drift)

    def _taken(self, key: tuple[str, str], now_us: int) -> _Check:
        known = self._open.pop(key, None) or _Check()
        known.since_us = now_us
        return known

    def _put(self, key: tuple[str, str], check: _Check) -> None:
        if check.agrees:
            return
        self._open[key] = check
        if len(self._open) > OPEN_MAX:
            (runtime, _), oldest = self._open.popitem(last=False)
            self._count(runtime, oldest)

    def _count(self, runtime: str, check: _Check) -> None:
        for name, difference in check.differences.items():
            if difference:
                self._drift[runtime, name] = self._drift.get((runtime, name), 0) + difference
