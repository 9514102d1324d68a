"""The engine core: continuous batching over paged KV blocks. No I/O and no clock; time is passed in.

It schedules as vLLM 0.32 does (`vllm/v1/core/sched/scheduler.py`, `vllm/v1/core/kv_cache_manager.py`), on lengths and
hashes instead of tokens. What is computed at once comes to the same as step by step, down to the eviction policy.
"""

from typing import Final

import numpy as np

from runtime.eviction.lru import LruEviction
from runtime.eviction.port import EvictionPolicy
from runtime.sim.batching import Batcher
from runtime.sim.blocks import BlockPool
from runtime.sim.config import EngineConfig
from runtime.sim.durations import IntArray, decode_durations_us
from runtime.sim.job import Job, Stage
from runtime.sim.request import EngineTotals, RequestId, SimRequest, Submission
from runtime.sim.step import Jump, Step
from runtime.step_time import StepTime

JUMP_STEPS_MAX: Final = 1 << 16


class Engine:
    """Computes requests step by step, or many steps at once: chunked prefill, prefix caching, preemption by recompute.

    With `async_scheduling` the batch that follows is scheduled when a step begins, as vLLM does where the accelerator
    works while the scheduler thinks: what arrives during a step is scheduled one step later, and who ends keeps its
    seat and its blocks for one step more. vLLM 0.32 never does so on CPU (`vllm/platforms/cpu.py`).
    """

    def __init__(
        self, config: EngineConfig, step_time: StepTime | None = None, eviction: EvictionPolicy | None = None
    ) -> None:
        self.config = config
        self.step_time = StepTime() if step_time is None else step_time
        self.pool = BlockPool(config.num_blocks, LruEviction() if eviction is None else eviction)
        self.totals = EngineTotals()
        self.busy_until_us = 0
        """When the last step ends; the next may not begin before."""
        self._batcher = Batcher(config, self.pool, self.totals)
        self._jobs: dict[RequestId, Job] = {}
        self._serial = 0
        self._pending: Step | None = None
        self._gave_way: list[Job] = []

    @property
    def num_running(self) -> int:
        """Requests in the batch."""
        return len(self._batcher.running)

    @property
    def num_decoding(self) -> int:
        """Requests in the batch that compute their newest token."""
        return self._batcher.decoders.size

    @property
    def num_waiting(self) -> int:
        """Requests not in the batch, preempted ones included."""
        return self._batcher.num_waiting

    @property
    def waiting_room(self) -> int:
        """How many more requests `submit` will take now."""
        return max(0, self.config.max_waiting - self.num_waiting)

    @property
    def is_ahead(self) -> bool:
        """Whether the batch of the next step is made already."""
        return self._pending is not None

    @property
    def has_work(self) -> bool:
        """Whether a step would compute anything."""
        return bool(self._jobs) or self._pending is not None

    def jobs(self) -> list[Job]:
        """The requests in the batch, in its order."""
        return list(self._batcher.running)

    def computed_tokens(self, job: Job) -> int:
        """How many tokens of a request its blocks hold, once the step under way has ended."""
        return job.base + self._batcher.decoders.clock if job.stage is Stage.DECODE else job.computed

    def submit(self, request: SimRequest, now_us: int = 0) -> Submission:
        """Queue a request; a refused one leaves no trace. Raises ValueError when its id is in flight already."""
        if request.request_id in self._jobs:
            raise ValueError(f"request id {request.request_id} is in flight already")
        if request.prompt_tokens + request.output_tokens > self.config.max_model_len:
            return Submission.CONTEXT_EXCEEDED
        if self.num_waiting >= self.config.max_waiting:
            return Submission.QUEUE_FULL
        self._serial += 1
        priority = request.priority if self.config.scheduling_policy == "priority" else 0
        hashes = request.block_hashes if self.config.enable_prefix_caching else ()
        job = self._jobs[request.request_id] = Job(request, (priority, self._serial), hashes, now_us)
        self._batcher.enqueue(job)
        return Submission.ACCEPTED

    def abort(self, request_id: RequestId) -> Job | None:
        """Drop a request and free its blocks; None when it is not in flight (any more)."""
        job = self._jobs.get(request_id)
        if job is None:
            return None
        self.totals.lost_tokens += self._drop(job, self.busy_until_us)
        return job

    def step(self, now_us: int) -> Step:
        """Compute one batch that starts at `now_us` and tell who emits; an empty step when there is nothing to compute.

        Raises ValueError when the step before has not ended by then.
        """
        return self._step(now_us, listing=True)

    def run(self, now_us: int, until_us: int, gap_us: int = 0) -> Step | Jump:
        """Compute at once the steps that are alike and begin before `until_us`, but at least the one at `now_us`.

        Between two steps `gap_us` pass. What it returns tells no emissions: whoever decodes emits in each step.
        """
        steps = self._alike()
        if steps > 1:
            batch = self._pending
            context = self._batcher.decoders.context if batch is None else batch.decode_context
            jump = self._jump(now_us, until_us, gap_us, context, steps)
            if jump is not None:
                return jump
        return self._step(now_us, listing=False)

    def _step(self, now_us: int, *, listing: bool) -> Step:
        if now_us < self.busy_until_us:
            raise ValueError(f"a step at {now_us} us overlaps the one that ends at {self.busy_until_us} us")
        if not self.has_work:
            return Step()
        step, self._pending = self._pending, None
        while step is None:
            preemptions = self.totals.preemptions
            step = self._schedule(now_us, listing=listing)
            if step is None and self.totals.preemptions == preemptions:
                raise RuntimeError("there are requests, and none could be scheduled")
        if self.config.async_scheduling:
            self._pending = self._schedule(now_us, listing=listing)
        self._complete(step, now_us)
        return step

    def _schedule(self, now_us: int, *, listing: bool) -> Step | None:
        """The next batch; None when somebody gave way and nobody came of it, or when all that runs is under way."""
        step = self._batcher.schedule(now_us, listing=listing)
        step.preempted[:0] = self._gave_way
        self._gave_way = step.preempted if step.is_empty else []
        return None if step.is_empty else step

    def _complete(self, step: Step, now_us: int) -> None:
        step.begin_us = now_us
        step.duration_us = self.step_time.duration_us(step.work)
        self.busy_until_us = step.end_us
        totals = self.totals
        totals.busy_us += step.duration_us
        totals.steps += 1
        self._batcher.seal(step.filled, now_us)
        firsts = [job for job in step.firsts if job.stage is not Stage.GONE]
        for job in firsts:
            if not job.started:
                job.started = True
                totals.prompt_tokens += job.request.prompt_tokens
        step.output_tokens = step.decoding - step.dropped + sum(job.request.output_tokens > 0 for job in firsts)
        totals.generation_tokens += step.output_tokens
        step.finished = [job for job in step.last if job.stage is not Stage.GONE]
        for job in step.finished:
            self._drop(job, step.end_us)

    def _drop(self, job: Job, now_us: int) -> int:
        """Forget a request; what the batch that is scheduled already computes of it is thrown away."""
        del self._jobs[job.request.request_id]
        batch = self._pending
        if batch is not None and (job.stage is Stage.DECODE or job in batch.last):
            batch.dropped += job not in batch.firsts and job not in batch.idle
        return self._batcher.leave(job, now_us)

    def _alike(self) -> int:
        """How many of the next steps are alike, as far as the requests go; 1 when not even the next is plain."""
        batcher = self._batcher
        decoders = batcher.decoders
        if not (decoders.size and batcher.only_decodes) or (batcher.num_waiting and not batcher.closed):
            return 1
        if self.config.async_scheduling:
            batch = self._pending
            if batch is None or not batch.only_decodes or batch.decoding != decoders.size:
                return 1
        steps = decoders.steps_to_end()
        if not batcher.num_waiting:
            return steps
        if self._pending is not None and self._pending.filled:
            return 1
        # What is sealed may let in the queue's head, which then finds more; and where only its first chunk has to fit,
        # so may what is given up, for it then begins its chunk earlier.
        steps = min(steps, decoders.steps_to_seal())
        return steps if self.config.scheduler_reserve_full_isl else decoders.steps_within(self.pool.blank, steps)

    def _jump(self, now_us: int, until_us: int, gap_us: int, context: int, steps: int) -> Jump | None:
        """Compute up to so many steps at once; None when only one begins in time or finds blocks."""
        if now_us < self.busy_until_us:
            raise ValueError(f"a step at {now_us} us overlaps the one that ends at {self.busy_until_us} us")
        batcher = self._batcher
        size = batcher.decoders.size
        shortest_us = self.step_time.decode_duration_us(size, context) + gap_us
        steps = min(steps, JUMP_STEPS_MAX, -((now_us - until_us) // shortest_us))
        steps = batcher.decoders.steps_within(self.pool.free_blocks, steps)
        if steps < 2:
            return None
        durations_us = decode_durations_us(self.step_time, size, context, steps)
        begins_us = np.cumsum(durations_us + gap_us)
        begins_us += now_us - durations_us - gap_us
        if begins_us[-1] >= until_us:
            steps = int(np.searchsorted(begins_us, until_us))
            if steps < 2:
                return None
            begins_us, durations_us = begins_us[:steps], durations_us[:steps]
        return self._decode(begins_us, durations_us, context)

    def _decode(self, begins_us: IntArray, durations_us: IntArray, context: int) -> Jump:
        batcher, totals = self._batcher, self.totals
        size, steps = batcher.decoders.size, len(begins_us)
        filled = [] if self._pending is None else self._pending.filled
        last = batcher.decode(steps, lambda at: int(begins_us[at]), filled)
        used_blocks = self.pool.used_blocks
        self.busy_until_us = end_us = int(begins_us[-1] + durations_us[-1])
        totals.busy_us += int(durations_us.sum())
        totals.steps += steps
        totals.computed_tokens += size * steps
        totals.generation_tokens += size * steps
        running, waiting = len(batcher.running), batcher.num_waiting
        if self.config.async_scheduling:
            self._pending = self._following(last, context + size * steps, size)
            self._pending.filled = filled
            last = []
        for job in last:
            self._drop(job, end_us)
        return Jump(begins_us, durations_us, size, last, running, waiting, used_blocks)

    def _following(self, last: list[Job], context: int, size: int) -> Step:
        """The batch that was scheduled when the last step of a jump began."""
        batch = Step()
        batch.decoding, batch.decode_context, batch.last = size, context, last
        batch.running, batch.waiting = len(self._batcher.running), self._batcher.num_waiting
        batch.used_blocks = self.pool.used_blocks
        return batch
