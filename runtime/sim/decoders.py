"""The requests that decode, counted together: a step costs the same however many they are."""

from heapq import heappop, heappush

from runtime.sim.job import Job, Stage


class Decoders:
    """Those that compute one token in each step, all in step.

    One clock counts the steps, and what a request has computed is `base` + clock. Who ends is found by the clock of its
    last step, and how many begin a block by the clock modulo the block size, so that a step asks nobody and many steps
    at once come to the same as one after another.
    """

    def __init__(self, block_size: int) -> None:
        self.clock = 0
        self.size = 0
        self.context = 0
        """The tokens that are computed of all of them: what the next step reads."""
        self._block_size = block_size
        self._starts = [0] * block_size
        self._sealing: dict[int, dict[Job, None]] = {}
        self._ends: dict[int, dict[Job, None]] = {}
        self._end_clocks: list[int] = []

    def add(self, job: Job, steps: int) -> None:
        """Take in a request that has `steps` steps to its end, counted from the next; 0 when its end is on its way."""
        block_size, clock = self._block_size, self.clock
        job.stage = Stage.DECODE
        job.base = job.computed - clock
        job.end = clock + steps
        self.size += 1
        self.context += job.computed
        self._starts[-job.base % block_size] += 1
        if job.sealed < len(job.hashes):
            self._sealing.setdefault((-job.base - 1) % block_size, {})[job] = None
        if steps > 0:
            ends = self._ends.get(job.end)
            if ends is None:
                ends = self._ends[job.end] = {}
                heappush(self._end_clocks, job.end)
            ends[job] = None

    def remove(self, job: Job) -> None:
        """Let a request go, and write down how far it has come."""
        job.computed = job.base + self.clock
        job.length = job.computed + 1
        self.size -= 1
        self.context -= job.computed
        self._starts[-job.base % self._block_size] -= 1
        self._stop_sealing(job)
        ends = self._ends.get(job.end)
        if ends is not None:
            ends.pop(job, None)
            if not ends:
                del self._ends[job.end]

    def starting(self) -> int:
        """How many begin a block in the next step."""
        return self._starts[self.clock % self._block_size]

    def starting_within(self, steps: int) -> int:
        """How many blocks are begun in the next steps."""
        cycles, rest = divmod(steps, self._block_size)
        phase = self.clock % self._block_size
        end = phase + rest
        starts = self._starts
        if end <= self._block_size:
            return cycles * self.size + sum(starts[phase:end])
        return cycles * self.size + sum(starts[phase:]) + sum(starts[: end - self._block_size])

    def steps_within(self, blocks: int, steps: int) -> int:
        """How many of the next steps can be taken with so many blocks, at most `steps`."""
        if self.starting_within(steps) <= blocks:
            return steps
        low, high = 0, steps  # low can, high cannot
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.starting_within(middle) <= blocks else (low, middle)
        return low

    def steps_to_end(self) -> int:
        """The steps up to that in which one ends, that one included; a large number when none is to end."""
        clocks, ends = self._end_clocks, self._ends
        while clocks and clocks[0] not in ends:
            heappop(clocks)
        return clocks[0] - self.clock if clocks else 1 << 62

    @property
    def seals(self) -> bool:
        """Whether any of them has blocks left that are to be findable."""
        return bool(self._sealing)

    def steps_to_seal(self) -> int:
        """The steps before that in which a block is filled and sealed; a large number when none is."""
        clock, block_size = self.clock, self._block_size
        return min(((phase - clock) % block_size for phase in self._sealing), default=1 << 62)

    def fill(self) -> list[tuple[Job, int]]:
        """Those that fill a block in the next step whose hash is known, and which of their blocks that is."""
        filled = [(job, job.sealed) for job in self._sealing.get(self.clock % self._block_size, ())]
        for job, _ in filled:
            job.sealed += 1
            if job.sealed == len(job.hashes):
                self._stop_sealing(job)
        return filled

    def advance(self, steps: int) -> list[Job]:
        """Let time pass, not beyond `steps_to_end`; returns those whose last token comes out of the last step."""
        self.clock += steps
        self.context += self.size * steps
        return list(self._ends.pop(self.clock, ()))

    def _stop_sealing(self, job: Job) -> None:
        phase = (-job.base - 1) % self._block_size
        jobs = self._sealing.get(phase)
        if jobs is not None:
            jobs.pop(job, None)
            if not jobs:
                del self._sealing[phase]
