"""The engine core: continuous batching over paged KV blocks. No I/O and no clock; time is passed in."""

from bisect import insort
from dataclasses import dataclass, field
from heapq import heappop, heappush

from runtime.sim.blocks import BlockPool, chain_hashes, root_hash
from runtime.sim.request import Emission, EngineTotals, FinishReason, SimRequest, StepOutput, Submission
from runtime.sim.scheduling import PriorityFcfs, Rank, SchedulingPolicy
from runtime.sim.step_time import StepTime


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The engine's knobs, under vLLM's names where it has them."""

    block_size: int = 16
    num_blocks: int = 16_384
    max_model_len: int = 32_768
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8_192
    max_waiting: int = 4_096
    step_time: StepTime = field(default_factory=StepTime)

    def __post_init__(self) -> None:
        for name in (
            "block_size",
            "num_blocks",
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "max_waiting",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1")
        if self.num_blocks * self.block_size < self.max_model_len:
            raise ValueError("num_blocks x block_size must hold one request of max_model_len tokens")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError("max_num_batched_tokens must be at least max_num_seqs")


class _Sequence:
    """A request in flight: the tokens it has, how many of them are computed, and the blocks that hold them."""

    __slots__ = (
        "blocks",
        "cached_tokens",
        "computed",
        "emitted",
        "hashes",
        "next_seal",
        "rank",
        "request",
        "take",
        "tokens",
    )

    def __init__(self, request: SimRequest, rank: Rank, block_size: int) -> None:
        self.request = request
        self.rank = rank
        self.tokens = list(request.prompt_tokens)
        self.hashes = chain_hashes(root_hash(request.cache_salt), self.tokens, block_size)
        self.blocks: list[int] = []
        self.next_seal = block_size
        self.computed = 0
        self.emitted = 0
        self.take = 0
        self.cached_tokens: int | None = None

    def __lt__(self, other: "_Sequence") -> bool:
        return self.rank < other.rank


class Engine:
    """Schedules requests step by step: chunked prefill, prefix caching, preemption by recompute.

    `running` is kept in rank order, so whoever gives way is the last and has never been scheduled in this step already.
    """

    def __init__(self, config: EngineConfig, scheduling: SchedulingPolicy | None = None) -> None:
        self.config = config
        self.pool = BlockPool(config.num_blocks)
        self.totals = EngineTotals()
        self._scheduling: SchedulingPolicy = PriorityFcfs() if scheduling is None else scheduling
        self._by_id: dict[str, _Sequence] = {}
        self._running: list[_Sequence] = []
        self._waiting: list[_Sequence] = []
        self._serial = 0
        self.busy_until_us = 0
        """When the last step ends; the next may not begin before."""

    @property
    def num_running(self) -> int:
        """Requests in the batch."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests not in the batch, preempted ones included."""
        return len(self._by_id) - len(self._running)

    @property
    def waiting_room(self) -> int:
        """How many more requests `submit` will take now."""
        return max(0, self.config.max_waiting - self.num_waiting)

    @property
    def has_work(self) -> bool:
        """Whether a step would compute anything."""
        return bool(self._by_id)

    def submit(self, request: SimRequest) -> Submission:
        """Queue a request; a refused one leaves no trace. Raises ValueError when its id is in flight already."""
        if request.request_id in self._by_id:
            raise ValueError(f"request id {request.request_id} is in flight already")
        if len(request.prompt_tokens) + len(request.output_tokens) > self.config.max_model_len:
            return Submission.CONTEXT_EXCEEDED
        if self.waiting_room == 0:
            return Submission.QUEUE_FULL
        self._serial += 1
        sequence = _Sequence(request, self._scheduling.rank(request, self._serial), self.config.block_size)
        self._by_id[request.request_id] = sequence
        heappush(self._waiting, sequence)
        return Submission.ACCEPTED

    def abort(self, request_id: str) -> bool:
        """Drop a request and free its blocks; False when it is not in flight (any more)."""
        sequence = self._by_id.pop(request_id, None)
        if sequence is None:
            return False
        if sequence.blocks:
            self._running.remove(sequence)
            self.pool.free(sequence.blocks)
        else:
            self._waiting.remove(sequence)
            self._waiting.sort()
        return True

    def step(self, now_us: int) -> StepOutput:
        """Compute one batch that starts at `now_us`; raises ValueError when the step before has not ended by then."""
        if now_us < self.busy_until_us:
            raise ValueError(f"a step at {now_us} us overlaps the one that ends at {self.busy_until_us} us")
        if not self._by_id:
            return StepOutput([], 0, 0, 0, 0)
        batch, budget, preemptions = self._schedule_running()
        if preemptions == 0:
            self._admit_waiting(batch, budget)
        if not batch:
            raise RuntimeError("there are requests, and none could be scheduled")
        output = self._advance(batch, preemptions)
        self.busy_until_us = now_us + output.duration_us
        return output

    def _schedule_running(self) -> tuple[list[_Sequence], int, int]:
        running, pool, block_size = self._running, self.pool, self.config.block_size
        batch: list[_Sequence] = []
        budget, preemptions, index = self.config.max_num_batched_tokens, 0, 0
        while index < len(running) and budget > 0:
            sequence = running[index]
            index += 1
            take = min(len(sequence.tokens) - sequence.computed, budget)
            end = sequence.computed + take
            missing = -(-end // block_size) - len(sequence.blocks)
            while missing > 0 and index <= len(running) and not pool.can_allocate(missing):
                self._preempt(running.pop())
                preemptions += 1
            if index > len(running):
                break
            if missing > 0:
                sequence.blocks += pool.allocate(missing)
            sequence.take = take
            if end >= sequence.next_seal:
                self._seal(sequence)
            budget -= take
            batch.append(sequence)
        return batch, budget, preemptions

    def _preempt(self, sequence: _Sequence) -> None:
        self.pool.free(sequence.blocks)
        sequence.blocks = []
        sequence.computed = 0
        sequence.next_seal = self.config.block_size
        self.totals.preemptions += 1
        heappush(self._waiting, sequence)

    def _admit_waiting(self, batch: list[_Sequence], budget: int) -> None:
        while self._waiting and budget > 0 and len(self._running) < self.config.max_num_seqs:
            sequence = self._waiting[0]
            take = self._place(sequence, budget)
            if take == 0:
                return
            heappop(self._waiting)
            insort(self._running, sequence)
            self._seal(sequence)
            budget -= take
            batch.append(sequence)

    def _place(self, sequence: _Sequence, budget: int) -> int:
        """Hold the blocks of a waiting sequence's first chunk; returns its tokens, 0 when there is no room."""
        block_size = self.config.block_size
        length = len(sequence.tokens)
        prefix: list[int] = []
        if sequence.request.read_prefix_cache:
            # The last token is always computed, since its logits are what the next token is sampled from.
            prefix = self.pool.cached_prefix(sequence.hashes, (length - 1) // block_size)
        hit = len(prefix) * block_size
        take = min(length - hit, budget)
        missing = -(-(hit + take) // block_size) - len(prefix)
        if not self.pool.can_allocate(missing, prefix):
            return 0
        sequence.blocks = self.pool.allocate(missing, prefix)
        sequence.computed, sequence.take = hit, take
        sequence.next_seal = hit + block_size
        if sequence.cached_tokens is None:
            sequence.cached_tokens = hit
            if sequence.request.read_prefix_cache:
                self.totals.prefix_query_tokens += length
                self.totals.prefix_hit_tokens += hit
        return take

    def _seal(self, sequence: _Sequence) -> None:
        """Make the blocks that this step fills findable: they are computed by the time a later one reads them."""
        block_size = self.config.block_size
        full = (sequence.computed + sequence.take) // block_size
        if full > len(sequence.hashes):
            self._extend_hashes(sequence)
        for at in range(sequence.next_seal // block_size - 1, full):
            self.pool.seal(sequence.blocks[at], sequence.hashes[at])
        sequence.next_seal = (full + 1) * block_size

    def _extend_hashes(self, sequence: _Sequence) -> None:
        parent = sequence.hashes[-1] if sequence.hashes else root_hash(sequence.request.cache_salt)
        start = len(sequence.hashes) * self.config.block_size
        sequence.hashes += chain_hashes(parent, sequence.tokens[start:], self.config.block_size)

    def _advance(self, batch: list[_Sequence], preemptions: int) -> StepOutput:
        emissions: list[Emission] = []
        prefill_tokens = decode_sequences = kv_tokens = 0
        for sequence in batch:
            take = sequence.take
            if take == 1 and sequence.emitted:
                decode_sequences += 1
            else:
                prefill_tokens += take
            sequence.computed += take
            kv_tokens += sequence.computed
            if sequence.computed == len(sequence.tokens):
                emissions.append(self._emit(sequence))
        duration_us = self.config.step_time.duration_us(prefill_tokens, decode_sequences, kv_tokens)
        self.totals.busy_us += duration_us
        return StepOutput(emissions, duration_us, prefill_tokens, decode_sequences, preemptions)

    def _emit(self, sequence: _Sequence) -> Emission:
        request = sequence.request
        outputs = request.output_tokens
        token: int | None = None
        if sequence.emitted == 0:
            self.totals.prompt_tokens += len(request.prompt_tokens)
        if outputs:
            token = outputs[sequence.emitted]
            sequence.tokens.append(token)
            sequence.emitted += 1
            self.totals.generation_tokens += 1
        finish: FinishReason | None = None
        if sequence.emitted == len(outputs):
            finish = request.finish_reason
            self._finish(sequence)
        return Emission(request.request_id, token, finish, sequence.cached_tokens or 0)

    def _finish(self, sequence: _Sequence) -> None:
        del self._by_id[sequence.request.request_id]
        self._running.remove(sequence)
        self.pool.free(sequence.blocks)
