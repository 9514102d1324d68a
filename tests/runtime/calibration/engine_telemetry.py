"""Telemetry as an engine of a known step time would write it, with noise, for the tests of what is fitted to it."""

from __future__ import annotations

from random import Random

from runtime.calibration.observe import Observation, Step
from runtime.step_time import StepTime, StepWork
from runtime.telemetry.records import Join, Leave, Open, Record, State
from runtime.telemetry.records import Step as Told

TRUE = StepTime(
    base_us=3_000,
    prefill_request_ns=1_500_000,
    prefill_token_ns=20_000,
    prefill_context_ps=9_000,
    decode_request_ns=200_000,
    decode_context_ps=300_000,
)


def works(seed: int, count: int) -> list[StepWork]:
    """Steps of every kind: prefills alone, decodes alone, both, over short and long contexts."""
    random = Random(seed)
    found = []
    for _ in range(count):
        chunks = random.choice((0, 0, 1, 1, 2, 4))
        tokens = sum(random.randrange(1, 800) for _ in range(chunks))
        decoding = random.choice((0, 1, 2, 4, 8, 16)) if chunks else random.choice((1, 2, 4, 8, 16))
        found.append(
            StepWork(
                chunks,
                tokens,
                tokens * random.randrange(0, 2_000),
                decoding,
                sum(random.randrange(16, 3_000) for _ in range(decoding)),
            )
        )
    return found


def observed(seed: int, count: int, noise: float = 0.0, stalls: float = 0.0) -> list[Step]:
    """Steps that took what `TRUE` says times one plus normal noise; that part of them stalls, ten times as long."""
    random = Random(f"{seed}/times")
    steps, now_us = [], 1_000_000
    for work in works(seed, count):
        took = TRUE.duration_us(work) * max(0.1, random.gauss(1, noise))
        if random.random() < stalls:
            took *= 10
        steps.append(Step(now_us, now_us + round(took), work, 1, 1, 0, 200, 1))
        now_us += round(took) + 200
    return steps


def opened(session: str = "s", segment: int = 0, lost: int = 0) -> list[Record]:
    """How a segment begins, nobody in the batch."""
    return [Open("engine-0", session, segment, 0, "vllm 0.32", "m", 1, 16, 64, lost), State(())]


__all__ = ["TRUE", "Join", "Leave", "Observation", "Told", "observed", "opened", "works"]
