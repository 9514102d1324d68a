"""What the engine computed: one step, or many at once that only decode."""

from typing import NamedTuple, TypeAlias

from runtime.sim.durations import IntArray
from runtime.sim.job import Job, Stage
from runtime.sim.request import Emission
from runtime.step_time import StepWork, prefill_pairs


class Joined(NamedTuple):
    """A request that was admitted: how many of its tokens were in the prefix cache, and how long it has waited."""

    job: Job
    found_tokens: int
    queued_us: int


Filled: TypeAlias = tuple[Job, int]
"""A request, and which of its blocks is filled."""


class Step:
    """One batch: who came in and went out when it was scheduled, what each computes, and what came out of it."""

    __slots__ = (
        "begin_us",
        "chunks",
        "decode_context",
        "decoding",
        "dropped",
        "duration_us",
        "emitting",
        "filled",
        "finished",
        "firsts",
        "idle",
        "joined",
        "last",
        "output_tokens",
        "preempted",
        "prefill_pairs",
        "prefill_tokens",
        "running",
        "used_blocks",
        "waiting",
    )

    def __init__(self) -> None:
        self.begin_us = 0
        self.duration_us = 0
        self.joined: list[Joined] = []
        self.preempted: list[Job] = []
        self.chunks: list[tuple[Job, int]] = []
        """The prefill chunks and their tokens."""
        self.idle: list[Job] = []
        """Those of the batch for which the token budget or the blocks did not do."""
        self.firsts: list[Job] = []
        """Those whose known tokens are all computed with this step: their next token comes out of it."""
        self.last: list[Job] = []
        """Those whose last token comes out of this step."""
        self.finished: list[Job] = []
        self.filled: list[Filled] = []
        """Blocks that decoding fills, to be sealed when the step is done (only with asynchronous scheduling)."""
        self.decoding = 0
        self.decode_context = 0
        self.prefill_tokens = 0
        self.prefill_pairs = 0
        self.dropped = 0
        """Of those that decode, who ended otherwise before their token came out (only with asynchronous scheduling)."""
        self.running = self.waiting = self.used_blocks = 0
        """As they were when the batch was scheduled."""
        self.output_tokens = 0
        """How many tokens came out of it."""
        self.emitting: list[Job] = []

    def add_chunk(self, job: Job, tokens: int) -> None:
        """A request computes `tokens` of those that are known of it."""
        self.chunks.append((job, tokens))
        self.prefill_tokens += tokens
        self.prefill_pairs += prefill_pairs(tokens, job.computed)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is computed."""
        return not self.chunks and not self.decoding

    @property
    def only_decodes(self) -> bool:
        """Whether it is as the one before it was and the one after it may be: nobody comes, begins, waits or ends."""
        return not (self.chunks or self.joined or self.preempted or self.idle or self.last or self.dropped)

    @property
    def work(self) -> StepWork:
        """What its duration depends on."""
        return StepWork(len(self.chunks), self.prefill_tokens, self.prefill_pairs, self.decoding, self.decode_context)

    @property
    def end_us(self) -> int:
        """When its output is there."""
        return self.begin_us + self.duration_us

    @property
    def preemptions(self) -> int:
        """How many gave way when it was scheduled."""
        return len(self.preempted)

    def emissions(self) -> list[Emission]:
        """What each request that was not aborted got, in the order of the batch; only after `Engine.step`."""
        finished = set(self.finished)
        return [
            Emission(
                job.request.request_id,
                1 if job.request.output_tokens else 0,
                job.request.finish_reason if job in finished else None,
                job.cached_tokens,
            )
            for job in self.emitting
            if job.stage is not Stage.GONE or job in finished
        ]


class Jump(NamedTuple):
    """Steps in a row in each of which the same requests decoded one token each, and nothing else happened."""

    begins_us: IntArray
    durations_us: IntArray
    decoding: int
    finished: list[Job]
    """Those whose last token came out of the last step."""
    running: int
    waiting: int
    used_blocks: int
    """When the last step was scheduled."""
