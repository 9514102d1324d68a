"""A request in the engine: how far it has come and what it holds."""

from collections.abc import Hashable, Sequence
from enum import Enum, auto
from typing import TypeAlias

from runtime.sim.request import SimRequest

Rank: TypeAlias = tuple[int, int]


class Stage(Enum):
    """Where a request stands in the engine."""

    WAITING = auto()  # not in the batch: new, or preempted
    PREFILL = auto()  # in the batch, with known tokens left to compute
    DECODE = auto()  # in the batch, computes its newest token in each step
    LAST = auto()  # in the batch, all of it scheduled: its last token is on its way
    GONE = auto()  # finished or aborted


class Job:
    """A request in flight.

    `length` are the tokens that are known, those in the step under way included; `computed` those whose keys and values
    are in its blocks once that step ends. Both stand still while it decodes: `Decoders` counts for all in step. It
    holds as many blocks as its computed tokens fill or begin; `held` are the hashes of the findable ones.
    """

    __slots__ = (
        "base",
        "cached_tokens",
        "computed",
        "end",
        "hashes",
        "held",
        "length",
        "preemptions",
        "queued_us",
        "rank",
        "request",
        "sealed",
        "stage",
        "started",
    )

    def __init__(self, request: SimRequest, rank: Rank, hashes: Sequence[Hashable], queued_us: int) -> None:
        self.request = request
        self.rank = rank
        self.hashes = hashes
        self.queued_us = queued_us
        self.stage = Stage.WAITING
        self.length = request.prompt_tokens
        self.computed = 0
        self.sealed = 0
        self.held: list[Hashable] = []
        self.cached_tokens = -1
        self.preemptions = 0
        self.started = False
        self.base = 0
        self.end = 0

    def __lt__(self, other: "Job") -> bool:
        return self.rank < other.rank
