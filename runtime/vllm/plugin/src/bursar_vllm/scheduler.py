"""vLLM's scheduler, as `--scheduler-cls bursar_vllm.scheduler.MeteredScheduler`: the same, and it tells what it did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.version import __version__

from .meter import StepMeter, Unsayable
from .request_id import sent_id
from .session import Clock, open_writer, refuse

try:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
except ImportError:  # another version: it is served without telemetry
    AsyncScheduler = Scheduler
try:
    from vllm.v1.core.sched.diffusion_scheduler import DiffusionAsyncScheduler, DiffusionScheduler
except ImportError:  # the same
    DiffusionAsyncScheduler, DiffusionScheduler = AsyncScheduler, Scheduler

NULL_BLOCKS = 1  # of the pool, never given to a request


def internal_name(request_id: str) -> str:
    """What the client called a request of the engine."""
    return sent_id(request_id, internal=True)


class Metering(Scheduler):  # type: ignore[misc]  # vLLM is in an environment of its own
    """vLLM's scheduler with a meter at its side; whatever goes wrong with the meter, the scheduler goes on without."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._meter: StepMeter | None = None
        super().__init__(*args, **kwargs)
        try:
            self._begin_metering()
        except Exception as error:  # noqa: BLE001 the engine serves whatever becomes of its telemetry
            self._stop_metering(f"the plugin failed: {error!r}")

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule the next step."""
        if self._meter is None:
            return super().schedule(*args, **kwargs)
        if self._meter.is_idle:
            self._clock.catch_up()
        begin_us = self._clock()
        output = super().schedule(*args, **kwargs)
        self._tell(lambda meter: self._tell_scheduled(meter, begin_us, output))
        return output

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        """Take in what a step computed; before that, while its requests still hold their blocks, tell the step."""
        self._tell(self._tell_computed)
        return super().update_from_output(*args, **kwargs)

    def add_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Take in a request."""
        self._tell(lambda meter: self._tell_queued(meter, request))
        return super().add_request(request, *args, **kwargs)

    def shutdown(self, *args: Any, **kwargs: Any) -> Any:
        """End the engine, and its telemetry with it."""
        if self._meter is not None:
            self._meter = None
            self._writer.close()
        return super().shutdown(*args, **kwargs)

    def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        self._tell(lambda meter: self._tell_preempted(meter, request))
        return super()._preempt_request(request, *args, **kwargs)

    def _free_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        self._tell(lambda meter: self._tell_ended(meter, request))
        return super()._free_request(request, *args, **kwargs)

    def _tell(self, note: Callable[[StepMeter], None]) -> None:
        """Tell the meter something; an error of it ends the metering, and nothing else."""
        if self._meter is not None:
            try:
                note(self._meter)
            except Exception as error:  # noqa: BLE001 the engine serves whatever becomes of its telemetry
                self._stop_metering(str(error) if isinstance(error, Unsayable) else f"the plugin failed: {error!r}")

    def _tell_scheduled(self, meter: StepMeter, begin_us: int, output: Any) -> None:
        entered = [request.req_id for request in output.scheduled_new_reqs]
        entered.extend(output.scheduled_cached_reqs.resumed_req_ids)
        chunks, tokens = output.num_scheduled_tokens, output.total_num_scheduled_tokens
        meter.scheduled(begin_us, entered, chunks, tokens, self.requests, self.get_request_counts())

    def _tell_computed(self, meter: StepMeter) -> None:
        used = self._blocks - self.kv_cache_manager.block_pool.get_num_free_blocks()
        meter.computed(used)

    def _tell_queued(self, meter: StepMeter, request: Any) -> None:
        if getattr(request, "resumable", False):
            raise Unsayable("a session streams its input, and its requests end more than once")
        meter.queued(request.request_id)

    def _tell_preempted(self, meter: StepMeter, request: Any) -> None:
        meter.left(request.request_id, "preempted", request.num_output_tokens)
        meter.queued(request.request_id)

    def _tell_ended(self, meter: StepMeter, request: Any) -> None:
        # vLLM says `abort` of what a client or a stop string ended, and `error` of what went wrong.
        why = str(request.get_finished_reason())
        meter.left(
            request.request_id, "aborted" if why in ("abort", "error") else "finished", request.num_output_tokens
        )

    def _begin_metering(self) -> None:
        self._clock = Clock()
        rank = getattr(self.vllm_config.parallel_config, "data_parallel_index", 0)
        self._source = f"engine-{rank}"
        self._writer = open_writer(self._source, __version__, self.vllm_config, self._capacity)
        if self._writer is not None:
            self._meter = StepMeter(self._writer, self._clock, internal_name)

    def _capacity(self) -> dict[str, int]:
        self._blocks = self.kv_cache_manager.block_pool.num_gpu_blocks - NULL_BLOCKS
        return {"block_size": self.block_size, "num_blocks": self._blocks}

    def _stop_metering(self, reason: str) -> None:
        was, self._meter = self._meter, None
        if was is not None:
            self._writer.close()
        refuse(getattr(self, "_source", "engine-0"), {"engine": f"vllm {__version__}"}, reason)


class MeteredDiffusion(Metering, DiffusionScheduler):  # type: ignore[misc]  # vLLM is in an environment of its own
    """The scheduler of a diffusion model, which says that it cannot be metered."""


class MeteredAsyncDiffusion(Metering, DiffusionAsyncScheduler):  # type: ignore[misc]  # vLLM is in an environment of its own
    """The same, where steps are scheduled ahead."""


class MeteredScheduler(Metering, AsyncScheduler):  # type: ignore[misc]  # vLLM is in an environment of its own
    """The metered scheduler of the kind that the configuration asks for: asynchronous, or not, or of diffusion."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make the kind that vLLM 0.32 would choose itself, were it not told one class for all."""
        config = kwargs.get("vllm_config") or (args[0] if args else None)
        ahead = getattr(getattr(config, "scheduler_config", None), "async_scheduling", None)
        if getattr(config, "diffusion_config", None) is not None:
            return (MeteredAsyncDiffusion if ahead else MeteredDiffusion)(*args, **kwargs)
        return super().__new__(cls) if ahead else Metering(*args, **kwargs)
