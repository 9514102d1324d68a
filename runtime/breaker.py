"""Circuit breaker: stops calling a runtime that keeps failing, and tries it again after a while."""

from dataclasses import dataclass


@dataclass(slots=True)
class Breaker:
    """Closed until `failures_max` failures in a row; then open for `reset_s`; then one trial call decides.

    Times are seconds of any monotonic clock, passed in.
    """

    failures_max: int
    reset_s: float
    _failures: int = 0
    _opened_at_s: float | None = None
    _trial_at_s: float | None = None

    @property
    def is_open(self) -> bool:
        return self._opened_at_s is not None

    def can_call(self, now_s: float) -> bool:
        """Whether a call may be made at `now_s`."""
        if self._opened_at_s is None:
            return True
        last_s = self._trial_at_s if self._trial_at_s is not None else self._opened_at_s
        return now_s - last_s >= self.reset_s

    def call(self, now_s: float) -> None:
        """Note that a call is made; while open it is the trial, which lapses after `reset_s` if it never reports."""
        if self._opened_at_s is not None:
            self._trial_at_s = now_s

    def succeeded(self) -> None:
        """Note that a call was answered: the breaker closes."""
        self._failures = 0
        self._opened_at_s = self._trial_at_s = None

    def failed(self, now_s: float) -> None:
        """Note that a call failed: the breaker opens at the last failure allowed, or again after a failed trial."""
        self._failures += 1
        if self._failures >= self.failures_max:
            self._opened_at_s = now_s
            self._trial_at_s = None
