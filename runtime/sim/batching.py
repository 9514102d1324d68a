"""Which requests compute how many tokens in the next step, and which blocks they get: vLLM's scheduler."""

from collections.abc import Callable
from heapq import heapify, heappop, heappush

from runtime.sim.blocks import BlockPool
from runtime.sim.config import EngineConfig
from runtime.sim.decoders import Decoders
from runtime.sim.job import Job, Stage
from runtime.sim.request import EngineTotals, FinishReason
from runtime.sim.step import Filled, Joined, Step


class Batcher:
    """The batch, in the order of admission, and the queue.

    Each step first serves the batch, then admits from the queue, unless somebody had to give way. Who decodes is only
    counted as long as tokens and blocks do for all; where they do not, the batch is served one by one.
    """

    def __init__(self, config: EngineConfig, pool: BlockPool, totals: EngineTotals) -> None:
        self.pool = pool
        self.running: dict[Job, None] = {}
        self.decoders = Decoders(config.block_size)
        self.closed = False
        """Whether the queue's head was found not to fit, and nothing has happened since that could change it."""
        self._config = config
        self._totals = totals
        self._waiting: list[Job] = []
        self._prefilling: dict[Job, None] = {}

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def only_decodes(self) -> bool:
        """Whether no request of the batch has known tokens left to compute."""
        return not self._prefilling

    def enqueue(self, job: Job) -> None:
        """Put a request into the queue, at the place of its rank."""
        heappush(self._waiting, job)
        self.closed = False

    def leave(self, job: Job, now_us: int) -> int:
        """Take a request out of the batch or the queue, for good; returns how many tokens its blocks held."""
        held_tokens = 0
        if job.stage is Stage.WAITING:
            self._waiting.remove(job)
            heapify(self._waiting)
        else:
            held_tokens = self._unseat(job, now_us)
        job.stage = Stage.GONE
        self.closed = False
        return held_tokens

    def schedule(self, now_us: int, *, listing: bool) -> Step:
        """Make the next batch; its tokens count as computed from here on. With `listing` it tells who will emit."""
        step = Step()
        limit = self._config.max_num_batched_tokens
        if self._config.long_prefill_token_threshold and len(self.running) + len(self._waiting) > 1:
            limit = min(limit, self._config.long_prefill_token_threshold)
        budget = self._serve(step, limit, now_us)
        if not step.preempted:
            self._admit(step, budget, limit, now_us)
        step.running, step.waiting = len(self.running), len(self._waiting)
        step.used_blocks = self.pool.used_blocks
        self._totals.computed_tokens += step.decoding + step.prefill_tokens
        if listing:
            idle = set(step.idle)
            step.emitting = [
                job
                for job in self.running
                if (job.stage is Stage.DECODE or job.stage is Stage.LAST)
                and job not in idle
                and not self._sent(job, step)
            ]
        return step

    def decode(self, steps: int, begin_us: Callable[[int], int], filled: list[Filled]) -> list[Job]:
        """Let all who decode compute `steps` tokens, for which there must be blocks; returns those who end with that.

        `begin_us` tells when each of the steps begins. No other step than the last may be the last of one of them, and
        none may seal a block while others wait, for that may let them in. Where batches are made ahead, the newest
        token is known only when the step before is done: `filled` are the blocks that the batch before these steps
        fills, and become those that the last of them fills, which are to be sealed when that is done.
        """
        decoders, pool = self.decoders, self.pool
        blocks = decoders.starting_within(steps)
        if decoders.seals or filled or blocks > pool.blank:
            ended: list[Job] = []
            for at in range(steps):
                now_us = begin_us(at)
                pool.take(decoders.starting(), now_us)
                fresh = decoders.fill()
                ended = decoders.advance(1)
                if self._config.async_scheduling:
                    self.seal(filled, now_us)
                    filled[:] = fresh
                else:
                    self.seal(fresh, now_us)
        else:
            pool.take(blocks, 0)  # all of them blank: nothing is given up, whenever it is
            ended = decoders.advance(steps)
        for job in ended:
            if not self._outstays(job):
                decoders.remove(job)
                job.stage = Stage.LAST
        return ended

    def seal(self, filled: list[Filled], now_us: int) -> None:
        """Make blocks findable that decoding has filled, of those who still hold them."""
        for job, at in filled:
            if job.stage is Stage.DECODE or job.stage is Stage.LAST:
                self.closed = False
                if self.pool.seal(job.hashes[at], now_us):
                    job.held.append(job.hashes[at])

    def _outstays(self, job: Job) -> bool:
        """Whether a request computes on after its last token, which is told from others only when it is out."""
        return self._config.async_scheduling and job.request.finish_reason is FinishReason.STOP

    def _sent(self, job: Job, step: Step) -> bool:
        """Whether all that a request of the batch has to say comes out of earlier steps."""
        return job.stage is Stage.LAST and job not in step.last

    def _serve(self, step: Step, limit: int, now_us: int) -> int:
        """Schedule the batch as it is; returns how many tokens are left for others."""
        chunks = self._chunks(self._config.max_num_batched_tokens - self.decoders.size, limit)
        if chunks is None or not self._have_room(chunks):
            return self._serve_in_order(step, limit, now_us)
        self._decode_once(step, now_us)
        for job, take in chunks:
            self.pool.take(self._fresh(job, take), now_us)
            self._compute(step, job, take, now_us)
        if self._prefilling:
            served = {job for job, _ in chunks}
            step.idle = [job for job in self._prefilling if job not in served]
        return self._config.max_num_batched_tokens - step.decoding - step.prefill_tokens

    def _chunks(self, budget: int, limit: int) -> list[tuple[Job, int]] | None:
        """What those compute that have known tokens left; None where that depends on who decodes before them."""
        if not self._prefilling:
            return []
        wants = [(job, min(job.length - job.computed, limit)) for job in self._prefilling]
        if sum(want for _, want in wants) > budget:
            latest = reversed(self.running)
            if any(next(latest) not in self._prefilling for _ in wants):
                return None
        chunks: list[tuple[Job, int]] = []
        for job, want in wants:
            if budget == 0:
                break
            chunks.append((job, min(want, budget)))
            budget -= min(want, budget)
        return chunks

    def _have_room(self, chunks: list[tuple[Job, int]]) -> bool:
        """Whether there are blocks for these chunks and all who decode."""
        blocks = self.decoders.starting() + sum(self._fresh(job, take) for job, take in chunks)
        return blocks <= self.pool.free_blocks

    def _decode_once(self, step: Step, now_us: int) -> None:
        step.decoding, step.decode_context = self.decoders.size, self.decoders.context
        if step.decoding:
            step.last += self.decode(1, lambda _: now_us, step.filled)

    def _serve_in_order(self, step: Step, limit: int, now_us: int) -> int:
        """Schedule the batch one by one: where it does not do for all, the last give way or go without."""
        running = list(self.running)
        takes: dict[Job, tuple[int, int]] = {}  # tokens, and fresh blocks
        budget, reserved, index = self._config.max_num_batched_tokens, 0, 0
        while index < len(running) and budget > 0:
            job = running[index]
            index += 1
            take = min(self._wanted(job), limit, budget)
            fresh = self._fresh(job, take)
            while fresh > self.pool.free_blocks - reserved and job.stage is not Stage.WAITING:
                at = self._victim(running)
                victim = running.pop(at)
                index -= at < index
                tokens, blocks = takes.pop(victim, (0, 0))
                budget += tokens
                reserved -= blocks
                self._preempt(step, victim, now_us)
            if job.stage is Stage.WAITING:
                break
            if take > 0:
                takes[job] = (take, fresh)
                budget -= take
                reserved += fresh
        self._compute_some(step, takes, now_us)
        return budget

    def _compute_some(self, step: Step, takes: dict[Job, tuple[int, int]], now_us: int) -> None:
        """Let time pass for those of the batch that were given tokens, and not for the others."""
        decoders = self.decoders
        step.idle = [job for job in self.running if job not in takes and job.stage is not Stage.LAST]
        held_back = [(job, job.end - decoders.clock) for job in step.idle if job.stage is Stage.DECODE]
        for job, _ in held_back:
            decoders.remove(job)
        self._decode_once(step, now_us)
        for job, steps in held_back:
            decoders.add(job, steps)
        for job, (take, fresh) in takes.items():
            if job.stage is Stage.PREFILL:
                self.pool.take(fresh, now_us)
                self._compute(step, job, take, now_us)

    def _wanted(self, job: Job) -> int:
        """How many tokens of a request of the batch could be computed now."""
        if job.stage is Stage.DECODE:
            return 1
        return job.length - job.computed if job.stage is Stage.PREFILL else 0

    def _fresh(self, job: Job, take: int) -> int:
        """How many blocks more a request of the batch needs for so many tokens more."""
        block_size = self._config.block_size
        computed = job.base + self.decoders.clock if job.stage is Stage.DECODE else job.computed
        return -(-(computed + take) // block_size) - -(-computed // block_size)

    def _victim(self, running: list[Job]) -> int:
        """Who of the batch gives way: the last, or by priority the worst of the latest to come."""
        if self._config.scheduling_policy == "fcfs":
            return len(running) - 1
        return max(range(len(running)), key=lambda at: running[at].rank)

    def _preempt(self, step: Step, job: Job, now_us: int) -> None:
        is_done = job.stage is Stage.LAST
        computed = self._unseat(job, now_us)
        if not is_done:  # else it ends with the step under way, and nothing of it is computed again
            self._totals.lost_tokens += computed
        job.stage = Stage.WAITING
        job.queued_us = now_us
        job.preemptions += 1
        self._totals.preemptions += 1
        if self._config.scheduling_policy == "fcfs":
            job.rank = (-1, -self._totals.preemptions)  # before all who wait, those preempted earlier included
        step.preempted.append(job)
        self.enqueue(job)

    def _unseat(self, job: Job, now_us: int) -> int:
        """Free the blocks of a request of the batch: nothing of it is computed any more; returns what was."""
        if job.stage is Stage.DECODE:
            self.decoders.remove(job)
        self._prefilling.pop(job, None)
        del self.running[job]
        computed = job.computed
        self.pool.free(job.held, -(-computed // self._config.block_size) - len(job.held), now_us)
        job.held = []
        job.computed = job.sealed = 0
        return computed

    def _admit(self, step: Step, budget: int, limit: int, now_us: int) -> None:
        """Take requests from the queue as long as tokens, seats and blocks do for its head."""
        seats = self._config.max_num_seqs
        while self._waiting and budget > 0 and len(self.running) < seats:
            job = self._waiting[0]
            take = self._place(job, limit, budget, now_us)
            if take == 0:
                break
            heappop(self._waiting)
            self.running[job] = None
            self._prefilling[job] = None
            job.stage = Stage.PREFILL
            step.joined.append(Joined(job, job.computed, now_us - job.queued_us))
            self._compute(step, job, take, now_us)
            budget -= take
        # With a chunk less in the next step there would be more tokens for it.
        self.closed = bool(self._waiting) and not step.chunks

    def _place(self, job: Job, limit: int, budget: int, now_us: int) -> int:
        """Hold the blocks of a waiting request's first chunk; returns its tokens, 0 when there is no room."""
        config, pool = self._config, self.pool
        block_size = config.block_size
        hits = 0
        if job.hashes and job.request.read_prefix_cache:
            # The last token is always computed, since the next one is sampled from its logits.
            hits = pool.cached_prefix(job.hashes, (job.length - 1) // block_size)
        found = hits * block_size
        wanted = min(job.length - found, limit)
        if not config.enable_chunked_prefill and wanted > budget:
            return 0
        take = min(wanted, budget)
        free = pool.free_blocks - pool.revived(job.hashes, hits)
        if self.running:
            free -= config.watermark_blocks
        fresh = -(-(found + take) // block_size) - hits
        needed = -(-job.length // block_size) - hits if config.scheduler_reserve_full_isl else fresh
        if needed > free:
            return 0
        job.held = list(job.hashes[:hits])
        pool.hold(job.held, now_us)
        pool.take(fresh, now_us)
        job.computed, job.sealed = found, hits
        self._count_hits(job, found)
        return take

    def _count_hits(self, job: Job, found: int) -> None:
        self._totals.reused_tokens += found
        if job.cached_tokens < 0:
            job.cached_tokens = found
            if job.request.read_prefix_cache and self._config.enable_prefix_caching:
                self._totals.prefix_query_tokens += job.length
                self._totals.prefix_hit_tokens += found

    def _compute(self, step: Step, job: Job, take: int, now_us: int) -> None:
        """Compute known tokens, whose blocks it has: blocks that are full can be found from here on."""
        step.add_chunk(job, take)
        job.computed += take
        for at in range(job.sealed, min(job.computed // self._config.block_size, len(job.hashes))):
            if self.pool.seal(job.hashes[at], now_us):
                job.held.append(job.hashes[at])
            job.sealed = at + 1
        if job.computed == job.length:
            self._end_prefill(step, job)

    def _end_prefill(self, step: Step, job: Job) -> None:
        """All that is known is computed: a token comes out, and the request decodes unless that is its last."""
        request = job.request
        del self._prefilling[job]
        step.firsts.append(job)
        left = request.prompt_tokens + request.output_tokens - job.length
        if left > 0:
            job.length += 1
            left -= 1
        if left == 0:
            step.last.append(job)
        if left > 0 or (request.output_tokens and self._outstays(job)):
            self.decoders.add(job, left)
        else:
            job.stage = Stage.LAST
