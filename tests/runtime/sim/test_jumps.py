"""Many steps at once come to the same as one after another, down to what the eviction policy is told and when."""

from collections.abc import Hashable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.eviction.lru import LruEviction
from runtime.sim.config import EngineConfig
from runtime.sim.engine import Engine
from runtime.sim.request import FinishReason, SimRequest
from runtime.sim.step import Jump
from runtime.step_time import StepTime

FOREVER_US = 1 << 60


class RecordingLru(LruEviction):
    """Least recently used, with a record of all that happens to it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def insert(self, key: Hashable, now: int) -> None:
        self.calls.append(("insert", key, now))
        super().insert(key, now)

    def hit(self, key: Hashable, now: int) -> None:
        self.calls.append(("hit", key, now))
        super().hit(key, now)

    def release(self, key: Hashable, now: int) -> None:
        self.calls.append(("release", key, now))
        super().release(key, now)

    def evict(self, now: int) -> Hashable:
        key = super().evict(now)
        self.calls.append(("evict", key, now))
        return key


@st.composite
def scenarios(draw: st.DrawFn) -> tuple[EngineConfig, StepTime, int, list[tuple[int, SimRequest]]]:
    """Knobs, step time, the gap between steps, and requests by arrival."""
    block_size = draw(st.sampled_from([1, 3, 4]))
    config = EngineConfig(
        block_size=block_size,
        num_blocks=-(-48 // block_size) + draw(st.integers(0, 12)),
        max_model_len=48,
        max_num_seqs=draw(st.integers(1, 6)),
        max_num_batched_tokens=draw(st.integers(6, 40)),
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 3, 8])),
        watermark=draw(st.sampled_from([0.0, 0.1])),
        scheduler_reserve_full_isl=draw(st.booleans()),
        enable_prefix_caching=draw(st.booleans()),
        async_scheduling=draw(st.booleans()),
        scheduling_policy=draw(st.sampled_from(["fcfs", "priority"])),
    )
    times = StepTime(
        base_us=draw(st.integers(1, 100)),
        prefill_token_ns=1_300,
        prefill_context_ps=70,
        decode_request_ns=draw(st.integers(0, 3_000)),
        decode_context_ps=draw(st.sampled_from([0, 400, 77_777])),
    )
    requests = []
    now_us = 0
    for index in range(draw(st.integers(1, 14))):
        now_us += draw(st.sampled_from([0, 0, 1, 50, 700, 5_000]))
        prompt, output = draw(st.integers(1, 28)), draw(st.integers(0, 20))
        family, known = draw(st.integers(0, 2)), draw(st.integers(0, 48))
        hashes = [(family, at) for at in range(min(known, prompt + output) // config.block_size)]
        reason = draw(st.sampled_from(FinishReason))
        requests.append((now_us, SimRequest(index, prompt, output, hashes, reason, draw(st.integers(0, 2)))))
    return config, times, draw(st.sampled_from([0, 7])), requests


Outcome = tuple[list[int], dict[int, tuple[int, int]], Any, list[tuple[Any, ...]]]


def compute(scenario: Any, *, at_once: bool) -> tuple[Outcome, int]:
    """All that can be seen of a run (durations of steps, ends and hits of requests, sums, policy), and its jumps."""
    config, times, gap_us, requests = scenario
    eviction = RecordingLru()
    engine = Engine(config, times, eviction)
    waiting = list(reversed(requests))
    now_us = jumps = 0
    durations: list[int] = []
    ended: dict[int, tuple[int, int]] = {}
    while waiting or engine.has_work:
        if not engine.has_work:
            now_us = max(now_us, waiting[-1][0])
        while waiting and waiting[-1][0] <= now_us:
            at_us, request = waiting.pop()
            engine.submit(request, at_us)
        until_us = waiting[-1][0] if waiting else FOREVER_US
        done = engine.run(now_us, until_us if at_once else now_us + 1, gap_us)
        if isinstance(done, Jump):
            jumps += 1
            durations += map(int, done.durations_us)
        else:
            durations.append(done.duration_us)
        for job in done.finished:
            ended[job.request.request_id] = (engine.busy_until_us, job.cached_tokens)
        pool = engine.pool
        assert pool.blank + pool.private + pool.findable == config.num_blocks
        now_us = engine.busy_until_us + gap_us
    assert engine.pool.free_blocks == config.num_blocks
    assert set(ended) == set(range(len(requests)))
    assert engine.totals.generation_tokens == sum(request.output_tokens for _, request in requests)
    return (durations, ended, engine.totals, eviction.calls), jumps


@settings(max_examples=400, deadline=None)
@given(scenarios())
def test_steps_at_once_are_the_steps_one_by_one(scenario: Any) -> None:
    stepped, none = compute(scenario, at_once=False)
    jumped, _ = compute(scenario, at_once=True)
    assert none == 0
    assert jumped == stepped
