"""What a simulation writes down while it runs: columns of integers, for requests, for steps and for gaps."""

from array import array
from typing import Final

from runtime.sim.durations import IntArray

REQUEST_COLUMNS: Final = (
    "arrival_us",
    "queued_us",
    "scheduled_us",
    "engine_first_us",
    "engine_end_us",
    "first_us",
    "end_us",
    "prompt_tokens",
    "output_tokens",
    "cached_tokens",
    "preemptions",
    "replica",
    "status",
)
STEP_COLUMNS: Final = (
    "replica",
    "begin_us",
    "end_us",
    "busy_us",
    "steps",
    "prefill_tokens",
    "decode_tokens",
    "running",
    "waiting",
    "used_blocks",
)
GAP_COLUMNS: Final = ("gap_us", "tokens")

PENDING, FINISHED, REFUSED = 0, 1, 2
"""The values of `status`."""
NOT_ROUTED: Final = "not_routed"
"""The reason of a request that the routing policy gave to no replica."""


class Recorder:
    """Columns that grow. A time that has not come is -1.

    A row of `steps` is one step, or a jump of several that are alike: then its end is the last one's, its busy time and
    tokens are the sums, and the rest is as it was when the last was scheduled. A row of `gaps` says that so many tokens
    came so long after the token before them of the same request. `refusals` says how many were refused and why,
    `has_blocks` whether any request said how its prompt begins.
    """

    def __init__(self) -> None:
        self.requests: dict[str, array[int]] = {name: array("q") for name in REQUEST_COLUMNS}
        self.steps: dict[str, array[int]] = {name: array("q") for name in STEP_COLUMNS}
        self.gaps: dict[str, array[int]] = {name: array("q") for name in GAP_COLUMNS}
        self.refusals: dict[str, int] = {}
        self.has_blocks = False
        self._request_columns = list(self.requests.values())
        self._step_columns = list(self.steps.values())
        self._gap_us, self._gap_tokens = self.gaps["gap_us"], self.gaps["tokens"]

    def add_request(self, prompt_tokens: int, output_tokens: int) -> int:
        """A request of the workload, before it comes; returns its index."""
        row = (-1, -1, -1, -1, -1, -1, -1, prompt_tokens, output_tokens, 0, 0, -1, PENDING)
        for column, value in zip(self._request_columns, row, strict=True):
            column.append(value)
        return len(self._request_columns[0]) - 1

    def refuse(self, index: int, reason: str) -> None:
        """A request is refused, for a reason of `Submission` or because no replica takes it."""
        self.requests["status"][index] = REFUSED
        self.refusals[reason] = self.refusals.get(reason, 0) + 1

    def add_step(self, *row: int) -> None:
        """A step or a jump, in the order of STEP_COLUMNS."""
        for column, value in zip(self._step_columns, row, strict=True):
            column.append(value)

    def add_gap(self, gap_us: int, tokens: int) -> None:
        """So many tokens came so long after those before them."""
        if tokens:
            self._gap_us.append(gap_us)
            self._gap_tokens.append(tokens)

    def add_gaps(self, gaps_us: IntArray, tokens: int) -> None:
        """The same for steps in a row with the same number of tokens each."""
        self._gap_us.frombytes(gaps_us.tobytes())
        self._gap_tokens.extend([tokens] * len(gaps_us))
