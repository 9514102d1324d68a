"""The front end of a replica: one serial server that everything the engine puts out goes through."""

import numpy as np

from runtime.sim.deployment import Overhead
from runtime.sim.durations import IntArray


class FrontEnd:
    """Takes the outputs of steps in their order, each when it is there and the one before it is through.

    When each is through follows from Lindley's recursion, for many steps alike in closed form.
    """

    def __init__(self, overhead: Overhead) -> None:
        self._overhead = overhead
        self._free_us = 0

    def pass_one(self, end_us: int, tokens: int) -> int:
        """When the client has what a step put out at `end_us`."""
        self._free_us = max(self._free_us, end_us) + self._overhead.output_delay_us(tokens)
        return self._free_us

    def pass_many(self, ends_us: IntArray, tokens: int) -> IntArray:
        """The same for steps in a row with the same number of tokens each."""
        delay_us = self._overhead.output_delay_us(tokens)
        delays_us = np.arange(0, delay_us * len(ends_us), delay_us) if delay_us else np.zeros_like(ends_us)
        # out[i] = max(out[i-1], end[i]) + delay, so out[i] - (i+1) delay = max(free, end[j] - j delay for j up to i).
        outs_us = np.maximum.accumulate(ends_us - delays_us)
        outs_us = np.maximum(outs_us, self._free_us) + delays_us + delay_us
        self._free_us = int(outs_us[-1])
        return outs_us
