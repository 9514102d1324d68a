"""The durations of many steps at once that only decode."""

from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from runtime.step_time import StepTime

IntArray: TypeAlias = NDArray[np.int64]
_INT64_MAX: Final = (1 << 63) - 1


def decode_durations_us(step_time: StepTime, requests: int, context: int, steps: int) -> IntArray:
    """The durations of `steps` steps in a row, the first over `context`; each as `StepTime.duration_us` has it.

    Raises OverflowError where 64 bits cannot hold the sums.
    """
    _, _, _, decode_ps, decode_context_ps = step_time.variable_ps()
    first_ps = requests * decode_ps + context * decode_context_ps
    each_ps = requests * decode_context_ps
    if first_ps + each_ps * steps > _INT64_MAX:
        raise OverflowError(f"{steps} steps of {requests} requests over {context} tokens cost more than 2^63 ps")
    variable_ps = np.arange(first_ps, first_ps + each_ps * steps, each_ps) if each_ps else np.full(steps, first_ps)
    return step_time.base_us - (-variable_ps // 1_000_000)
