"""What a simulation found: columns, and their digest."""

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from runtime.sim.deployment import Deployment
from runtime.sim.durations import IntArray
from runtime.sim.invariants import TimeReversed
from runtime.sim.recorder import FINISHED, REFUSED, Recorder

Mask: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Run:
    """The columns of `Recorder`, in the workload's order of requests and each replica's order of steps.

    Times are microseconds from the workload's begin: `arrival_us`, `first_us` and `end_us` as the client sees them,
    `queued_us`, `scheduled_us`, `engine_first_us` and `engine_end_us` as the engine does; -1 for what never was. The
    gaps are those between the tokens of one request as its client sees them, each with how many tokens had it.
    `refusals` are how many requests were refused by reason, `has_blocks` whether the workload says how prompts begin.
    """

    workload: str
    deployment: Deployment
    requests: Mapping[str, IntArray]
    steps: Mapping[str, IntArray]
    gaps: Mapping[str, IntArray]
    refusals: Mapping[str, int] = field(default_factory=dict)
    has_blocks: bool = True

    @classmethod
    def of(cls, workload: str, deployment: Deployment, recorder: Recorder) -> "Run":
        """What was recorded, its order of time checked; TimeReversed."""
        tables = [
            {
                name: np.frombuffer(column, np.int64) if column else np.empty(0, np.int64)
                for name, column in table.items()
            }
            for table in (recorder.requests, recorder.steps, recorder.gaps)
        ]
        for table in tables:
            for column in table.values():
                column.flags.writeable = False
        requests, steps, gaps = tables
        run = cls(workload, deployment, requests, steps, gaps, dict(recorder.refusals), recorder.has_blocks)
        run.check_order()
        return run

    @property
    def finished(self) -> Mask:
        """Which requests finished."""
        return np.equal(self.requests["status"], FINISHED)

    @property
    def refused(self) -> Mask:
        """Which requests were refused."""
        return np.equal(self.requests["status"], REFUSED)

    def check_order(self) -> None:
        """Whatever finished came, was queued, scheduled, begun and ended in that order; TimeReversed."""
        orders = (
            ("arrival_us", "queued_us", "scheduled_us", "engine_first_us", "engine_end_us", "end_us"),
            ("engine_first_us", "first_us", "end_us"),
        )
        finished = self.finished
        for order in orders:
            for earlier, later in itertools.pairwise(order):
                wrong = np.flatnonzero(finished & (self.requests[earlier] > self.requests[later]))
                if len(wrong):
                    raise TimeReversed(f"request {wrong[0]} has its {later} before its {earlier}")

    def digest(self) -> str:
        """A SHA-256 of all columns: the same for runs that are the same byte by byte."""
        summed = hashlib.sha256()
        for table in (self.requests, self.steps, self.gaps):
            for name, column in table.items():
                summed.update(f"{name} {len(column)}\n".encode())
                summed.update(column.tobytes())
        return summed.hexdigest()
