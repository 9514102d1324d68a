"""Random small deployments and workloads, one for each seed."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from runtime.eviction.lru import LruEviction
from runtime.sim.config import EngineConfig
from runtime.sim.deployment import Deployment, Overhead
from runtime.step_time import StepTime
from runtime.workload.port import Arrival

MAX_MODEL_LEN = 64


@dataclass(frozen=True)
class Listed:
    """A workload that is a list."""

    arrivals: Sequence[Arrival]
    block_tokens: int = 4
    name: str = "listed"

    def __iter__(self) -> Iterator[Arrival]:
        return iter(self.arrivals)


class LeastLoad:
    """The replica with the fewest requests, the first of those."""

    def choose(self, loads: Sequence[int], prefix: Sequence[Hashable] = ()) -> int:
        return min(range(len(loads)), key=lambda at: loads[at])


class Sticky:
    """By the first block, and no replica at all for a few."""

    def choose(self, loads: Sequence[int], prefix: Sequence[Hashable] = ()) -> int:
        first = prefix[0] if prefix else 0
        assert isinstance(first, int)
        return -1 if first % 11 == 10 else first % len(loads)


class MostRecent(LruEviction):
    """Gives up what was released last."""

    def evict(self, now: int) -> Hashable:
        return self._released.popitem()[0]


def engine_of(random: Random) -> EngineConfig:
    block_size = random.choice([2, 4, 8])
    return EngineConfig(
        block_size=block_size,
        num_blocks=MAX_MODEL_LEN // block_size + random.choice([0, 1, 3, 10, 60]),
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=random.choice([1, 2, 5, 12]),
        max_num_batched_tokens=random.choice([12, 20, 64]),
        max_waiting=random.choice([3, 100]),
        long_prefill_token_threshold=random.choice([0, 0, 5, 16]),
        watermark=random.choice([0.0, 0.0, 0.15]),
        scheduler_reserve_full_isl=random.random() < 0.5,
        enable_prefix_caching=random.random() < 0.7,
        async_scheduling=random.random() < 0.4,
        scheduling_policy=random.choice(["fcfs", "priority"]),
    )


def deployment_of(random: Random) -> Deployment:
    replicas = random.choice([1, 1, 2, 3])
    overhead = Overhead(*(random.choice([0, 0, 30, 2_000]) for _ in range(5)))
    times = StepTime(random.choice([1, 40, 900]), 9_000, 1_100, 70, random.choice([0, 2_500]), 77_777)
    return Deployment(
        engine=engine_of(random),
        step_time=times,
        overhead=overhead,
        eviction=random.choice([lambda blocks: LruEviction(), lambda blocks: MostRecent()]),
        routing=random.choice([LeastLoad, Sticky]) if replicas > 1 or random.random() < 0.3 else None,
        replicas=replicas,
        accelerators=random.choice([1, 2]),
    )


def workload_of(random: Random) -> Listed:
    block_tokens = random.choice([2, 4, 16])
    arrivals: list[Arrival] = []
    at_us = 0
    for index in range(random.randint(1, 40)):
        at_us += random.choice([0, 0, 20, 300, 4_000])
        prompt, output = random.randint(1, 44), random.randint(0, 24)  # a few do not fit the context
        family = random.randrange(5)
        ids = random.randint(0, (prompt + output) // block_tokens + 1)
        blocks = tuple(family + 11 * at if at < 3 or family < 2 else 10_000 * (index + 1) + at for at in range(ids))
        after = random.randrange(index) if index and random.random() < 0.3 else -1
        when_us = random.choice([0, 50, 5_000]) if after >= 0 else at_us
        arrivals.append(Arrival(when_us, prompt, output, blocks, random.randint(0, 2), after))
    return Listed(arrivals, block_tokens)
