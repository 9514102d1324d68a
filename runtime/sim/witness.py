"""Who has computed what, kept apart from the engine's own books, so that no hit goes unproven."""

from collections.abc import Iterable

from runtime.sim.engine import Engine
from runtime.sim.invariants import HitUncomputed
from runtime.sim.job import Job
from runtime.sim.request import RequestId
from runtime.sim.step import Step
from runtime.workload.port import Arrival


class Witness:
    """Knows how far into each of a workload's blocks anybody has computed on one replica."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._computed: dict[int, int] = {}
        self._blocks: dict[RequestId, tuple[int, ...]] = {}
        self._progress: dict[RequestId, int] = {}
        self._decoding: set[RequestId] = set()

    def expect(self, request_id: RequestId, arrival: Arrival) -> None:
        """A request was queued; one without ids is not followed."""
        if arrival.blocks:
            self._blocks[request_id] = arrival.blocks
            self._progress[request_id] = 0

    def observe(self, step: Step, engine: Engine) -> None:
        """Take in a step, those who came in with it in their order; HitUncomputed."""
        if not self._blocks:
            return
        for job in step.preempted:
            if job.request.request_id in self._decoding:
                self._decoding.discard(job.request.request_id)
                self._extend(job.request.request_id, job.length - 1)  # the newest token is known and not computed
        found = {joined.job: joined.found_tokens for joined in step.joined}
        for job, tokens in step.chunks:
            request_id = job.request.request_id
            if request_id not in self._blocks:
                continue
            if job in found:
                self._progress[request_id] = found[job]
                if found[job]:
                    self._prove(request_id, found[job], step, engine)
            self._extend(request_id, self._progress[request_id] + tokens)
        self._decoding.update(job.request.request_id for job in step.firsts if job.request.request_id in self._blocks)
        self.forget(step.finished)

    def forget(self, finished: Iterable[Job]) -> None:
        """Take in that requests have computed all that they had to."""
        for job in finished:
            request = job.request
            if request.request_id in self._blocks:
                self._extend(request.request_id, _tokens_needed(job))
                del self._blocks[request.request_id], self._progress[request.request_id]
                self._decoding.discard(request.request_id)

    def _prove(self, request_id: RequestId, found_tokens: int, step: Step, engine: Engine) -> None:
        if self._is_computed(request_id, found_tokens):
            return
        # Somebody may have just decoded it, of which no step tells.
        for other in engine.jobs():
            if other.request.request_id != request_id:
                self._extend(other.request.request_id, engine.computed_tokens(other))
        for other in step.finished:
            if other.request.request_id != request_id:
                self._extend(other.request.request_id, _tokens_needed(other))
        if not self._is_computed(request_id, found_tokens):
            raise HitUncomputed(f"request {request_id} found {found_tokens} tokens that nobody had computed")

    def _is_computed(self, request_id: RequestId, tokens: int) -> bool:
        """Whether anybody has computed so many of a request's tokens: ids are chained, so the last block tells."""
        at = (tokens - 1) // self._block_tokens
        return self._computed.get(self._blocks[request_id][at], 0) >= tokens - at * self._block_tokens

    def _extend(self, request_id: RequestId, tokens: int) -> None:
        """A request has computed so many of its tokens."""
        blocks = self._blocks.get(request_id)
        if blocks is None or tokens <= self._progress[request_id]:
            return
        size, computed = self._block_tokens, self._computed
        for at in range(self._progress[request_id] // size, min(-(-tokens // size), len(blocks))):
            computed[blocks[at]] = max(computed.get(blocks[at], 0), min(size, tokens - at * size))
        self._progress[request_id] = tokens


def _tokens_needed(job: Job) -> int:
    """What a request has computed when it finishes: its last token is put out and not computed."""
    return job.request.prompt_tokens + max(0, job.request.output_tokens - 1)
