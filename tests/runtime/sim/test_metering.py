"""What the embedded engine tells of its steps is enough to work out what each of them computed."""

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from runtime.sim.engine import Engine
from runtime.sim.metering import EngineMeter, sent_id
from runtime.sim.request import FinishReason, SimRequest
from runtime.step_time import StepTime, StepWork, prefill_pairs
from runtime.telemetry import reader
from tests.runtime.sim.conftest import running_simulator
from tests.runtime.sim.scenarios import engine_of

TIMES = StepTime(40, 9_000, 1_100, 70_000, 2_500, 77_777_000)


class Follower:
    """Follows the lines of one engine with nothing but the format's rules."""

    def __init__(self) -> None:
        self.contexts: dict[int, int] = {}
        self.names: dict[int, str] = {}
        self.works: list[tuple[StepWork, int]] = []
        self.left: Counter[tuple[str, str]] = Counter()
        self.outputs: dict[str, int] = {}

    def join(self, handle: int, name: str, prompt: int, context: int, queued_us: int) -> None:
        assert handle not in self.contexts
        assert queued_us >= 0
        self.contexts[handle], self.names[handle] = context, name

    def step(self, begin_us: int, end_us: int, used: int, running: int, waiting: int, takes: list[Any]) -> None:
        chunks = {handle: tokens for handle, tokens in takes if tokens}
        decoding = self.contexts.keys() - {handle for handle, _ in takes}
        work = StepWork(
            len(chunks),
            sum(chunks.values()),
            sum(prefill_pairs(tokens, self.contexts[handle]) for handle, tokens in chunks.items()),
            len(decoding),
            sum(self.contexts[handle] for handle in decoding),
        )
        self.works.append((work, end_us - begin_us))
        for handle in decoding:
            self.contexts[handle] += 1
        for handle, tokens in chunks.items():
            self.contexts[handle] += tokens

    def leave(self, handle: int, reason: str, output_tokens: int) -> None:
        del self.contexts[handle]
        self.outputs[self.names[handle]] = output_tokens
        self.left[self.names.pop(handle), reason] += 1


def follow(folder: Path, source: str) -> tuple[Follower, list[list[Any]]]:
    """What one source tells from its begin to its end, and its lines."""
    lines = [json.loads(line) for path in sorted(folder.glob(f"{source}.*")) for line in path.read_text().splitlines()]
    follower = Follower()
    for kind, *rest in lines:
        if kind in {"join", "step", "leave"}:
            getattr(follower, kind)(*rest)
    return follower, lines


@pytest.mark.parametrize("seed", range(40))
def test_the_lines_tell_the_work_of_each_step(seed: int, tmp_path: Path) -> None:
    """Requests that come, are preempted, stop early and are aborted at any time: each step's duration follows."""
    random = Random(seed)
    engine = Engine(engine_of(random), TIMES)
    meter = EngineMeter(tmp_path, 0, "m", engine, 1.0)
    names = [f"chatcmpl-r{index}/0#1" for index in range(random.randint(1, 25))]
    waiting, durations, aborted, finished = list(names), [], set(), {}
    while waiting or engine.has_work:
        for _ in range(random.choice([0, 0, 1, 4])):
            if waiting and engine.waiting_room:
                reason = random.choice(list(FinishReason))
                shared = [("shared", at) for at in range(random.randint(0, 5))]
                prompt, output = random.randint(20, 40), random.randint(0, 20)
                request = SimRequest(waiting.pop(0), prompt, output, shared, reason, random.randint(0, 2))
                engine.submit(request, engine.busy_until_us)
        for under_way in (False, True):
            if under_way and engine.has_work:
                step = engine.step(engine.busy_until_us)
                meter.begun(step)
                durations.append(step.duration_us)
                finished |= {sent_id(job.request.request_id): job.request.output_tokens for job in step.finished}
            if random.random() < 0.15:
                job = engine.abort(random.choice(names))
                if job is not None:
                    aborted.add(job.request.request_id)
                    meter.aborted(job)
        meter.ended()
    meter.close()
    follower, lines = follow(tmp_path, "engine-0")
    told = [duration_us for _, duration_us in follower.works]
    assert told == [duration_us for duration_us in durations if duration_us]
    assert told == [TIMES.duration_us(work) for work, _ in follower.works]
    assert not follower.contexts
    assert {name for name, reason in follower.left if reason == "finished"} == set(finished)
    assert {name: follower.outputs[name] for name in finished} == finished
    assert {name for name, reason in follower.left if reason == "aborted"} <= set(map(sent_id, aborted))
    preempted = sum(count for (_, reason), count in follower.left.items() if reason == "preempted")
    assert preempted <= engine.totals.preemptions
    assert lines[-1][0] == "close"


def test_the_served_engine_tells_its_clients_names_and_what_vllm_would_count(tmp_path: Path) -> None:
    """Over HTTP, read by Bursar's reader: finished and aborted requests under the ids that were sent."""
    folder = tmp_path / "told"
    arguments = ("--model", "m,other", "--time-scale", "20", "--telemetry", str(folder))
    with running_simulator(tmp_path, *arguments) as url, httpx.Client(base_url=url, timeout=20) as http:
        body = {"model": "m", "prompt": "x " * 40, "max_tokens": 9, "ignore_eos": True}
        usage = http.post("/v1/completions", json=body, headers={"x-request-id": "R-1"}).json()["usage"]
        with http.stream(
            "POST",
            "/v1/completions",
            json={**body, "max_tokens": 4_000, "stream": True},
            headers={"x-request-id": "R-2"},
        ) as answer:
            next(answer.iter_lines())
        http.post("/v1/embeddings", json={"model": "other", "input": "text"}, headers={"x-request-id": "R-3"})
    follower, lines = follow(folder, "engine-0")
    assert follower.left == {("R-1", "finished"): 1, ("R-2", "aborted"): 1}
    assert all(duration_us >= StepTime().base_us for _, duration_us in follower.works)
    facts = lines[0][6]
    assert (facts["engine"], facts["model"], facts["accelerators"]) == ("sim 1", "m", 1)
    assert facts["knobs"]["time_scale"] == 20
    _, ends = follow(folder, "requests-0")
    [finished] = [line for line in ends if line[0] == "finished"]
    assert finished[1:6] == ["R-1", "length", usage["prompt_tokens"], 0, 9]
    _, queued_us, prefill_us, decode_us, e2e_us, preemptions = finished[5:]
    assert queued_us + prefill_us + decode_us == e2e_us
    assert preemptions == 0
    assert decode_us >= 8 * StepTime().base_us
    other, _ = follow(folder, "engine-1")
    assert other.left == {("R-3", "finished"): 1}
    pieces = reader.Follower(folder).read(1 << 20)
    assert {piece.source for piece in pieces} == {"engine-0", "engine-1", "requests-0", "requests-1"}
    assert all(piece.lost is None for piece in pieces)
