"""How long loads take, from what the first of them showed, and so how many turns a closed one may have."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final, Self

from runtime.calibration.engine import Shape
from runtime.calibration.errors import Unfit
from runtime.calibration.fit import fit_step_time
from runtime.calibration.loads import Load, Mix, closed
from runtime.calibration.observe import Step
from runtime.step_time import StepTime, StepWork, prefill_pairs

TURNS_MIN: Final = 2
"""With one turn nobody would come back, and the load would be a crowd that thins out."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The speed of an engine as far as it is known; `step_time` is None where nothing could be fitted."""

    shape: Shape
    step_time: StepTime | None

    @classmethod
    def of(cls, shape: Shape, steps: Sequence[Step]) -> Self:
        """The pace that some steps show."""
        try:
            return cls(shape, fit_step_time(steps).step_time)
        except Unfit:
            return cls(shape, None)

    def closed(self, mix: Mix, users: int, turns_max: int, lasts_s: float, seed: int) -> Load:
        """A closed load of so many turns, or of as many as last so long; of two at least."""
        turn_s = self.lasts_s(closed(self.shape, mix, users, 1, seed))
        turns = turns_max if not turn_s else min(turns_max, max(TURNS_MIN, int(lasts_s / turn_s)))
        return closed(self.shape, mix, users, turns, seed)

    def lasts_s(self, load: Load) -> float:
        """About how long the engine computes for a load of which all that may be at once are at once; 0 unknown."""
        if self.step_time is None:
            return 0.0
        batch = min(self.shape.max_num_seqs, sum(each.after < 0 for each in load.arrivals))
        computed = [max(1, each.prompt_tokens - len(each.blocks) * load.block_tokens) for each in load.arrivals]
        prefill = StepWork(len(computed), sum(computed), sum(prefill_pairs(each, 0) for each in computed))
        context = round(fmean(each.prompt_tokens + each.output_tokens / 2 for each in load.arrivals))
        steps = sum(each.output_tokens for each in load.arrivals) / batch
        decode_us = steps * self.step_time.decode_duration_us(batch, batch * context)
        return (self.step_time.duration_us(prefill) + decode_us) / 1e6
