"""A logger of vLLM's, in its front end: what vLLM itself counted of each request that finished."""

from __future__ import annotations

from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.version import __version__

from .request_id import sent_id
from .session import open_writer, refuse


class BursarStatLogger(StatLoggerBase):  # type: ignore[misc]  # vLLM is in an environment of its own
    """Writes a line for each finished request; vLLM lists no aborted one. One for each engine and front end."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        rank = getattr(vllm_config.parallel_config, "_api_process_rank", 0)
        self._source = f"requests-{engine_index}" if rank < 1 else f"requests-{engine_index}-{rank}"
        self._writer: Any = None
        try:
            self._writer = open_writer(self._source, __version__, vllm_config)
        except Exception as error:  # noqa: BLE001 the server answers whatever becomes of its telemetry
            refuse(self._source, {}, f"the plugin failed: {error!r}")

    def record(self, scheduler_stats: Any = None, iteration_stats: Any = None, *args: Any, **kwargs: Any) -> None:
        """Take in what one step of the engine brought to this front end."""
        if self._writer is None or iteration_stats is None:
            return
        try:
            for request in iteration_stats.finished_requests:
                self._tell(request)
        except Exception as error:  # noqa: BLE001
            self._writer.close()
            self._writer = None
            refuse(self._source, {}, f"a finished request cannot be told: {error!r}")

    def log_engine_initialized(self) -> None:
        """Nothing is left to say: the facts were written when the file was opened."""

    def _tell(self, request: Any) -> None:
        self._writer.finished(
            sent_id(request.request_id, internal=False),
            str(request.finish_reason),
            prompt_tokens=request.num_prompt_tokens,
            cached_tokens=request.num_cached_tokens,
            output_tokens=request.num_generation_tokens,
            queued_us=microseconds(request.queued_time),
            prefill_us=microseconds(request.prefill_time),
            decode_us=microseconds(request.decode_time),
            e2e_us=microseconds(request.e2e_latency),
            preemptions=request.num_preemptions,
        )


def microseconds(seconds: float) -> int:
    """A duration in whole microseconds, never less than none."""
    return max(0, round(seconds * 1_000_000))
