"""Synthetic workloads: sessions that begin as arrivals say, drawn from a seed, the same bytes each time."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from runtime.workload.arrivals import Arrivals, Closed
from runtime.workload.contexts import Ids
from runtime.workload.draws import Dice, Part, pause_us
from runtime.workload.port import Arrival
from runtime.workload.sessions import Sessions, Step

REQUESTS_MAX = 100_000_000
Name = Annotated[str, Field(pattern=r"^\S(.{0,126}\S)?$")]


class Synthetic(Part):
    """What is drawn: `requests` of them, in sessions that begin as `arrivals` say."""

    kind: Literal["synthetic"]
    requests: Annotated[int, Field(ge=1, le=REQUESTS_MAX)]
    arrivals: Arrivals
    sessions: Sessions
    name: Name = "synthetic"
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 0
    block_tokens: Annotated[int, Field(ge=1, le=1 << 16)] = 16


@dataclass(frozen=True, slots=True)
class SyntheticWorkload:
    """The workload that a description and a seed make.

    A session's requests follow its first one. When sessions begin and what is in them is drawn apart, so that another
    rate has the same sessions.
    """

    drawn: Synthetic
    seed: int

    @property
    def name(self) -> str:
        """The description's."""
        return self.drawn.name

    @property
    def block_tokens(self) -> int:
        """The description's."""
        return self.drawn.block_tokens

    def __iter__(self) -> Iterator[Arrival]:
        """The requests in order, the same each time. WorkloadError, TraceError."""
        begins, content = (np.random.default_rng(each) for each in np.random.SeedSequence(self.seed).spawn(2))
        sessions = self.drawn.sessions.sessions(content, Ids(self.block_tokens))
        arrivals = self.drawn.arrivals
        if isinstance(arrivals, Closed):
            drawn = _closed(arrivals, begins, sessions)
        else:
            drawn = _open(arrivals.times_us(begins), sessions)
        return islice(drawn, self.drawn.requests)


def _open(times_us: Iterator[int], sessions: Iterator[list[Step]]) -> Iterator[Arrival]:
    index = 0
    for at_us, steps in zip(times_us, sessions, strict=False):
        yield from _arrivals(steps, index, at_us, -1)
        index += len(steps)


def _closed(closed: Closed, dice: Dice, sessions: Iterator[list[Step]]) -> Iterator[Arrival]:
    """Each user's next session in turn, so that none is far ahead of another."""
    think = closed.think_s.sampler(dice)
    index, last = 0, [-1] * closed.users
    pauses_us = sorted(pause_us(think) for _ in last)
    while True:
        for user, steps in zip(range(closed.users), sessions, strict=False):
            yield from _arrivals(steps, index, pauses_us[user], last[user])
            index += len(steps)
            last[user], pauses_us[user] = index - 1, pause_us(think)


def _arrivals(steps: list[Step], index: int, at_us: int, after: int) -> Iterator[Arrival]:
    """The steps of a session whose first has this index and comes then."""
    for step in steps:
        is_first = step.after == -1
        yield Arrival(
            at_us if is_first else step.pause_us,
            step.prompt_tokens,
            step.output_tokens,
            step.blocks,
            after=after if is_first else index + step.after,
        )
