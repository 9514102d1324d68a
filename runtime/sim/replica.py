"""One simulated replica: an engine, what reaches it, and what its clients see of it."""

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final

import numpy as np

from runtime.sim.content import BlockMap
from runtime.sim.deployment import Deployment
from runtime.sim.engine import Engine
from runtime.sim.front_end import FrontEnd
from runtime.sim.invariants import TimeReversed, check_at_rest, check_block_sum, check_holdings
from runtime.sim.job import Job
from runtime.sim.recorder import FINISHED, PENDING, Recorder
from runtime.sim.request import SimRequest, Submission
from runtime.sim.step import Jump, Step
from runtime.sim.witness import Witness
from runtime.workload.port import Arrival

NEVER_US: Final = 1 << 62
_AUDIT_EVERY: Final = 4_096

Ended = Callable[[int, int], None]
"""Is told the index of a request that ended, and when its client saw it."""


class Replica:
    """Computes its requests in simulated time, writes down what happened, and checks what must hold."""

    def __init__(
        self,
        index: int,
        deployment: Deployment,
        block_map: BlockMap | None,
        witness: Witness,
        recorder: Recorder,
        ended: Ended,
    ) -> None:
        self.next_us = NEVER_US
        """When it next takes in a request or begins a step; never while it has nothing to do."""
        self.next_end_us = NEVER_US
        """Before this none of its requests ends."""
        self._index = index
        self._overhead = deployment.overhead
        self._engine = Engine(
            deployment.engine, deployment.step_time, deployment.eviction(deployment.engine.num_blocks)
        )
        self._front_end = FrontEnd(deployment.overhead)
        self._block_map = block_map
        self._witness = witness
        self._recorder = recorder
        self._columns = recorder.requests
        self._ended = ended
        self._inbox: list[tuple[int, int, Arrival]] = []
        self._in_flight = 0
        self._ending: deque[tuple[int, int]] = deque()
        self._needed_tokens = self._output_tokens = 0
        self._ready_us = self._end_us = 0
        self._last_out_us = 0
        self._held_back: dict[Job, int] = {}
        self._preempted: dict[Job, int] = {}
        self._unaudited = 0

    def load(self, now_us: int) -> int:
        """Requests on their way here that have not ended by then, as their clients see it."""
        while self._ending and self._ending[0][0] <= now_us:
            self._in_flight -= self._ending.popleft()[1]
        return self._in_flight

    def accept(self, index: int, arrival: Arrival, now_us: int) -> None:
        """A request comes: it is in the engine's queue when it is tokenized."""
        due_us = now_us + self._overhead.arrival_delay_us(arrival.prompt_tokens)
        self._columns["replica"][index] = self._index
        self._columns["queued_us"][index] = due_us
        heappush(self._inbox, (due_us, index, arrival))
        self._in_flight += 1
        self._plan()

    def advance(self, until_us: int, *, jumping: bool) -> None:
        """Take in the next request, or compute the next step; with `jumping` also those like it that begin in time."""
        if self._inbox and self._inbox[0][0] <= self.next_us:
            self._submit(*heappop(self._inbox))
        else:
            self._compute(until_us if jumping else self.next_us + 1)
        self._plan()

    def close(self) -> None:
        """Check what must hold when there is nothing left to compute."""
        check_at_rest(self._engine, self._needed_tokens, self._output_tokens)

    def _plan(self) -> None:
        due_us = self._inbox[0][0] if self._inbox else NEVER_US
        begin_us = self._ready_us if self._engine.has_work else NEVER_US
        self.next_us = min(due_us, begin_us)
        self.next_end_us = min(due_us, begin_us + self._engine.step_time.base_us)

    def _compute(self, until_us: int) -> None:
        """Compute from now on; requests that are due later are not known to the engine before."""
        begin_us = self.next_us
        if self._inbox:
            until_us = min(until_us, self._inbox[0][0])
        gap_us = self._overhead.gap_after_us(self._engine.num_decoding)
        done = self._engine.run(begin_us, until_us, gap_us)
        if begin_us < self._end_us:
            raise TimeReversed(f"a step began at {begin_us} us, and the one before it ends at {self._end_us} us")
        self._end_us = self._engine.busy_until_us
        if isinstance(done, Step):
            self._record_step(done)
            tokens = done.output_tokens
        else:
            self._record_jump(done)
            tokens = done.decoding
        self._ready_us = self._end_us + self._overhead.gap_after_us(tokens)
        self._check()

    def _submit(self, due_us: int, index: int, arrival: Arrival) -> None:
        if not self._engine.has_work:
            self._ready_us = max(self._ready_us, due_us)
        hashes = () if self._block_map is None else self._block_map.hashes(arrival)
        request = SimRequest(index, arrival.prompt_tokens, arrival.output_tokens, hashes, priority=arrival.priority)
        answer = self._engine.submit(request, due_us)
        if answer is Submission.ACCEPTED:
            self._needed_tokens += arrival.prompt_tokens + max(0, arrival.output_tokens - 1)
            self._output_tokens += arrival.output_tokens
            self._witness.expect(index, arrival)
        else:
            self._recorder.refuse(index, answer.value)
            self._in_flight -= 1
            self._ended(index, due_us)

    def _check(self) -> None:
        check_block_sum(self._engine)
        self._unaudited += 1
        if self._unaudited == _AUDIT_EVERY:
            self._unaudited = 0
            check_holdings(self._engine)

    def _record_step(self, step: Step) -> None:
        end_us, tokens = step.end_us, step.output_tokens
        self._witness.observe(step, self._engine)
        columns = self._columns
        for job, found_tokens, _ in step.joined:
            index = int(job.request.request_id)
            if columns["scheduled_us"][index] < 0:
                columns["scheduled_us"][index] = step.begin_us
                columns["cached_tokens"][index] = found_tokens
        previous_us = self._last_out_us
        for job in step.preempted:
            columns["preemptions"][int(job.request.request_id)] += 1
            if self._has_spoken(job) and job not in self._preempted and not self._has_ended(job):
                self._preempted[job] = self._held_back.pop(job, previous_us)
        out_us = end_us
        if tokens or step.finished:
            out_us = self._last_out_us = self._front_end.pass_one(end_us, tokens)
        self._record_firsts(step, out_us)
        self._record_gaps(step, out_us, previous_us)
        self._recorder.add_step(
            *(self._index, step.begin_us, end_us, step.duration_us, 1, step.prefill_tokens, step.decoding),
            *(step.running, step.waiting, step.used_blocks),
        )
        self._record_ends(step.finished, end_us, out_us)

    def _has_spoken(self, job: Job) -> bool:
        """Whether a token of a request came out of the steps that are recorded."""
        return self._columns["engine_first_us"][int(job.request.request_id)] >= 0

    def _has_ended(self, job: Job) -> bool:
        """Whether a request ended with a step that is recorded, as one may that gave way meanwhile."""
        return self._columns["status"][int(job.request.request_id)] != PENDING

    def _record_firsts(self, step: Step, out_us: int) -> None:
        columns = self._columns
        for job in step.firsts:
            index = int(job.request.request_id)
            if job in self._preempted:
                self._recorder.add_gap(out_us - self._preempted.pop(job), 1)
            else:
                columns["engine_first_us"][index] = step.end_us
                columns["first_us"][index] = out_us

    def _record_gaps(self, step: Step, out_us: int, previous_us: int) -> None:
        """The gaps of those that decode: since the step before, or since their last one if they were held back."""
        late = [job for job in self._held_back if job not in step.idle]
        for job in late:
            self._recorder.add_gap(out_us - self._held_back.pop(job), 1)
        self._recorder.add_gap(out_us - previous_us, step.decoding - step.dropped - len(late))
        for job in step.idle:
            if self._has_spoken(job) and job not in self._preempted:
                self._held_back.setdefault(job, previous_us)

    def _record_jump(self, jump: Jump) -> None:
        ends_us = jump.begins_us + jump.durations_us
        outs_us = self._front_end.pass_many(ends_us, jump.decoding)
        first_us = int(outs_us[0])
        for last_us in self._held_back.values():
            self._recorder.add_gap(first_us - last_us, 1)
        self._recorder.add_gap(first_us - self._last_out_us, jump.decoding - len(self._held_back))
        self._held_back.clear()
        self._recorder.add_gaps(np.diff(outs_us), jump.decoding)
        self._last_out_us = int(outs_us[-1])
        steps = len(ends_us)
        end_us = int(ends_us[-1])
        self._recorder.add_step(
            *(self._index, int(jump.begins_us[0]), end_us, int(jump.durations_us.sum()), steps, 0),
            *(steps * jump.decoding, jump.running, jump.waiting, jump.used_blocks),
        )
        self._witness.forget(jump.finished)
        self._record_ends(jump.finished, end_us, self._last_out_us)

    def _record_ends(self, finished: list[Job], end_us: int, out_us: int) -> None:
        if not finished:
            return
        columns = self._columns
        for job in finished:
            index = int(job.request.request_id)
            columns["engine_end_us"][index] = end_us
            columns["end_us"][index] = out_us
            columns["status"][index] = FINISHED
        self._ending.append((out_us, len(finished)))
        for job in finished:
            self._ended(int(job.request.request_id), out_us)
