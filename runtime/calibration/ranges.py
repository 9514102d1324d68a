"""The ranges in which a calibration was seen to hold, and what of a run lies beyond them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from runtime.calibration.trials import Trial
from runtime.sim.run import Run

PREFILL_TOKENS: Final = "prefill tokens in a step"
BATCH: Final = "requests in a step"
CONTEXT: Final = "tokens of a request"
FEATURES: Final = (PREFILL_TOKENS, BATCH, CONTEXT)


class Excess(NamedTuple):
    """A feature of a run that went beyond what the calibration saw: its highest value and the range seen."""

    feature: str
    value: int
    low: int
    high: int

    @property
    def percent(self) -> int:
        """How far beyond, in hundredths of the highest seen."""
        return round((self.value - self.high) / max(1, self.high) * 100)

    def __str__(self) -> str:
        return f"{self.feature} {self.value:,} ({self.percent} % beyond {self.low:,} to {self.high:,})"


@dataclass(frozen=True, slots=True)
class Ranges:
    """The lowest and the highest value of each feature above zero; a feature that was never seen has no range."""

    spans: Mapping[str, tuple[int, int]]

    @classmethod
    def of(cls, values: Iterable[tuple[str, int]]) -> "Ranges":
        """The ranges of some values of features."""
        spans: dict[str, tuple[int, int]] = {}
        for name, value in values:
            if value > 0:
                low, high = spans.get(name, (value, value))
                spans[name] = min(low, value), max(high, value)
        return cls(spans)

    @classmethod
    def of_trials(cls, trials: Iterable[Trial]) -> "Ranges":
        """What was seen of a real engine."""
        seen: list[tuple[str, int]] = []
        for trial in trials:
            for step in trial.steps:
                seen.append((PREFILL_TOKENS, step.work.prefill_tokens))
                seen.append((BATCH, step.work.prefill_requests + step.work.decode_requests))
            seen += [(CONTEXT, each.prompt_tokens + each.output_tokens) for each in trial.run.samples]
        return cls.of(seen)

    @classmethod
    def of_run(cls, run: Run) -> "Ranges":
        """What a simulation did."""
        requests, steps = run.requests, run.steps
        columns = {
            PREFILL_TOKENS: steps["prefill_tokens"],
            BATCH: steps["running"],
            CONTEXT: (requests["prompt_tokens"] + requests["output_tokens"])[run.finished],
        }
        extremes: list[tuple[str, int]] = []
        for name, column in columns.items():
            above = column[column > 0]
            if len(above):
                extremes += [(name, int(np.min(above))), (name, int(np.max(above)))]
        return cls.of(extremes)

    def excesses(self, run: "Ranges") -> list[Excess]:
        """What of a run lies beyond, the farthest first; a feature that was never seen lies beyond 0 to 0.

        Less than was seen is not outside: it lies between that and a step without such work, which was seen.
        """
        found = []
        for name, (_, high) in run.spans.items():
            seen_low, seen_high = self.spans.get(name, (0, 0))
            if high > seen_high:
                found.append(Excess(name, high, seen_low, seen_high))
        return sorted(found, key=lambda each: -each.percent)

    def view(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return {name: list(span) for name, span in self.spans.items()}
