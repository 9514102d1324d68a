"""What a served engine tells of its steps, in the format of `runtime.telemetry`."""

import time
from pathlib import Path
from typing import Any, Final

from runtime.sim.engine import Engine
from runtime.sim.job import Job
from runtime.sim.request import FinishReason, RequestId
from runtime.sim.step import Joined, Step
from runtime.telemetry.writer import TelemetryWriter

ENGINE: Final = "sim 1"
_SIZES: Final = ("block_size", "num_blocks")


class _Life:
    """The times of one request on the engine's clock: queued, first scheduled, first token; 0 before it has one."""

    __slots__ = ("first_us", "queued_us", "scheduled_us")

    def __init__(self, queued_us: int, scheduled_us: int) -> None:
        self.queued_us = queued_us
        self.scheduled_us = scheduled_us
        self.first_us = 0


class EngineMeter:
    """Writes `engine-N` and `requests-N` of one engine, aborted and preempted requests included.

    Times are those of the engine's own clock, which begins at the wall clock's time and runs `time_scale` times as
    fast: durations are what the simulated accelerator took, not what this machine did.
    """

    def __init__(self, folder: Path, index: int, model: str, engine: Engine, time_scale: float) -> None:
        facts = _facts(model, engine, time_scale)
        self._steps = TelemetryWriter(folder, f"engine-{index}", facts)
        self._ends = TelemetryWriter(folder, f"requests-{index}", facts)
        self._begin_unix_us = time.time_ns() // 1000
        self._engine = engine
        self._on_its_way: Step | None = None
        self._handles: dict[Job, int] = {}
        self._free_handles: list[int] = []
        self._lives: dict[Job, _Life] = {}
        self._leaves: list[tuple[int, Job, str]] = []

    def begun(self, step: Step) -> None:
        """A step is under way."""
        self._on_its_way = step

    def ended(self) -> None:
        """The step that was under way is computed, and its output is there."""
        step, self._on_its_way = self._on_its_way, None
        if step is None or step.is_empty:
            return
        ended = {job: reason for _, job, reason in self._leaves}
        for job in step.preempted:
            self._write_leave(job, ended.get(job, "preempted"))
        for joined in step.joined:
            self._join(joined, step.begin_us)
        begin_us = self._begin_unix_us + step.begin_us
        takes = [(self._handles[job], tokens) for job, tokens in step.chunks]
        takes += [(self._handles[job], 0) for job in step.idle]
        self._steps.step(begin_us, begin_us + step.duration_us, step.used_blocks, step.running, step.waiting, takes)
        for job in step.firsts:
            self._lives[job].first_us = self._lives[job].first_us or step.end_us
        for job in step.finished:
            self._finish(job, step.end_us)
        self._write_due_leaves()

    def aborted(self, job: Job) -> None:
        """A request was dropped; it leaves after the steps on their way, for they may compute for it."""
        self._leave_after(self._engine.is_ahead + (self._on_its_way is not None), job, "aborted")

    def close(self) -> None:
        """The engine ends."""
        self._steps.close()
        self._ends.close()

    def _join(self, joined: Joined, begin_us: int) -> None:
        job, found_tokens, queued_us = joined
        request = job.request
        self._lives.setdefault(job, _Life(begin_us - queued_us, begin_us))
        self._handles[job] = handle = self._free_handles.pop() if self._free_handles else len(self._handles)
        self._steps.join(handle, sent_id(request.request_id), request.prompt_tokens, found_tokens, queued_us)

    def _finish(self, job: Job, end_us: int) -> None:
        request, life = job.request, self._lives[job]
        self._ends.finished(
            sent_id(request.request_id),
            request.finish_reason.value,
            prompt_tokens=request.prompt_tokens,
            cached_tokens=job.cached_tokens,
            output_tokens=request.output_tokens,
            queued_us=life.scheduled_us - life.queued_us,
            prefill_us=life.first_us - life.scheduled_us,
            decode_us=end_us - life.first_us,
            e2e_us=end_us - life.queued_us,
            preemptions=job.preemptions,
        )
        # Where the next batch is made already, whoever stops by itself is in that one too.
        stops = request.output_tokens > 0 and request.finish_reason is FinishReason.STOP
        ahead = self._engine.is_ahead and stops
        self._leave_after(1 + ahead, job, "finished")

    def _leave_after(self, steps: int, job: Job, reason: str) -> None:
        if steps:
            self._leaves.append((steps, job, reason))
        else:
            self._write_leave(job, reason)

    def _write_due_leaves(self) -> None:
        leaves, self._leaves = self._leaves, []
        for steps, job, reason in leaves:
            self._leave_after(steps - 1, job, reason)

    def _write_leave(self, job: Job, reason: str) -> None:
        """Write that a request left; one that was never in the batch, or has left it already, does not."""
        if reason != "preempted":
            self._lives.pop(job, None)
        handle = self._handles.pop(job, None)
        if handle is not None:
            # What is computed after a request's last token is thrown away.
            output_tokens = min(job.length - job.request.prompt_tokens, job.request.output_tokens)
            self._steps.leave(handle, reason, output_tokens)
            self._free_handles.append(handle)


def sent_id(request_id: RequestId) -> str:
    """What the client called the request that a sequence belongs to: `R` of `chatcmpl-R/0#7`."""
    return str(request_id).rpartition("/")[0].partition("-")[2]


def _facts(model: str, engine: Engine, time_scale: float) -> dict[str, Any]:
    config = engine.config
    knobs: dict[str, Any] = {name: getattr(config, name) for name in config.__slots__ if name not in _SIZES}
    prices = {f"step_time_{name}": getattr(engine.step_time, name) for name in engine.step_time.__slots__}
    return {
        "engine": ENGINE,
        "model": model,
        "block_size": config.block_size,
        "num_blocks": config.num_blocks,
        "accelerators": 1,
        "knobs": {**knobs, **prices, "time_scale": time_scale},
    }
