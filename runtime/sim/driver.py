"""Runs an engine in real time."""

import asyncio
from collections.abc import Sequence
from time import perf_counter

from runtime.sim.engine import Engine
from runtime.sim.mailbox import Mailbox
from runtime.sim.metering import EngineMeter
from runtime.sim.metrics import EngineMetrics
from runtime.sim.request import Emission, RequestId, SimRequest, Submission

_SLEEP_S_MIN = 0.001
"""uvloop's timers have this resolution; shorter waits only yield, and the deadline carries the difference over."""


class _Flight:
    """A sequence in flight: where its emissions go, and its times in seconds of the performance counter."""

    __slots__ = ("arrived_s", "index", "last_s", "mailbox")

    def __init__(self, mailbox: Mailbox, index: int, arrived_s: float) -> None:
        self.mailbox = mailbox
        self.index = index
        self.arrived_s = arrived_s
        self.last_s: float | None = None


class EngineDriver:
    """One task that steps an engine as fast as its step times say, and rests while there is nothing to do."""

    def __init__(self, model: str, engine: Engine, time_scale: float, meter: EngineMeter | None = None) -> None:
        if not time_scale > 0:
            raise ValueError("time_scale must be above 0")
        self.engine = engine
        self.metrics = EngineMetrics(model, engine)
        self._time_scale = time_scale
        self._meter = meter
        self._began_s = perf_counter()
        self._flights: dict[RequestId, _Flight] = {}
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether the engine is being stepped."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begin; needs a running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._stopped)

    async def stop(self) -> None:
        """End; whoever still waits is told that the engine stopped."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def submit(self, requests: Sequence[SimRequest], mailbox: Mailbox) -> bool:
        """Queue all the sequences of one HTTP request, or none of them when the queue has no room for all."""
        if self.engine.waiting_room < len(requests):
            return False
        now_s = perf_counter()
        now_us = self._engine_us(now_s)
        for index, request in enumerate(requests):
            answer = self.engine.submit(request, now_us)
            if answer is not Submission.ACCEPTED:
                raise RuntimeError(f"a request that was checked before is refused: {answer}")
            self._flights[request.request_id] = _Flight(mailbox, index, now_s)
        self._work.set()
        return True

    def abort(self, requests: Sequence[SimRequest]) -> None:
        """Drop those of the requests that are still in flight."""
        for request in requests:
            job = self.engine.abort(request.request_id)
            if job is not None and self._meter is not None:
                self._meter.aborted(job)
            self._flights.pop(request.request_id, None)

    async def _run(self) -> None:
        deadline_s = perf_counter()
        while True:
            if not self.engine.has_work:
                self._work.clear()
                await self._work.wait()
                deadline_s = perf_counter()
            now_s = perf_counter()
            # A late step is not made up for: what the host cannot keep up with shows as latency.
            deadline_s = max(deadline_s, now_s - _SLEEP_S_MIN)
            step = self.engine.step(max(self.engine.busy_until_us, self._engine_us(now_s)))
            if self._meter is not None:
                self._meter.begun(step)
            deadline_s += step.duration_us / 1e6 / self._time_scale
            rest_s = deadline_s - perf_counter()
            await asyncio.sleep(rest_s if rest_s >= _SLEEP_S_MIN else 0)
            self._publish(step.emissions())
            if self._meter is not None:
                self._meter.ended()

    def _engine_us(self, now_s: float) -> int:
        """The time of the engine's own clock, unless its last step ends later."""
        return int((now_s - self._began_s) * self._time_scale * 1e6)

    def _publish(self, emissions: Sequence[Emission]) -> None:
        now_s = perf_counter()
        for emission in emissions:
            flight = self._flights.get(emission.request_id)
            if flight is not None:  # else it was aborted while its step ran
                self._observe(flight, emission, now_s)
                flight.mailbox.put(flight.index, emission)

    def _observe(self, flight: _Flight, emission: Emission, now_s: float) -> None:
        if flight.last_s is None:
            self.metrics.time_to_first_token_s.observe(now_s - flight.arrived_s)
        else:
            self.metrics.inter_token_latency_s.observe(now_s - flight.last_s)
        flight.last_s = now_s
        if emission.finish_reason is not None:
            self.metrics.finished(emission.finish_reason, now_s - flight.arrived_s)
            del self._flights[emission.request_id]

    def _stopped(self, task: asyncio.Task[None]) -> None:
        if self._meter is not None:
            self._meter.close()
        for flight in self._flights.values():
            flight.mailbox.fail()
        self._flights.clear()
        if not task.cancelled():
            asyncio.get_running_loop().call_exception_handler(
                {"message": "the engine failed", "exception": task.exception(), "task": task}
            )
