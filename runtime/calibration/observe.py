"""What an engine's telemetry says of its steps: the work in each, and when each request's tokens were made."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from runtime.calibration.errors import EngineLost
from runtime.step_time import StepWork
from runtime.telemetry.records import Join, Leave, Lost, Open, Record, State
from runtime.telemetry.records import Step as Seen


class Step(NamedTuple):
    """One step: its times in Unix microseconds, its work, and the state that it left.

    `gap_us` is the time since the step before where the engine had work all the while, else -1. `emitted` is how many
    requests it gave a token.
    """

    begin_us: int
    end_us: int
    work: StepWork
    used_blocks: int
    running: int
    waiting: int
    gap_us: int
    emitted: int


@dataclass(slots=True)
class Life:
    """One request in the engine: when it reached the engine, when its first step began, and the ends of the steps that
    gave it a token; Unix microseconds.
    """

    prompt_tokens: int
    arrived_us: int
    begin_us: int
    cached_tokens: int
    emitted_us: list[int] = field(default_factory=list)
    preemptions: int = 0


@dataclass(slots=True)
class _Seat:
    """A request in the batch: how much of it is computed, and at how much it gives a token."""

    request_id: str
    context: int
    tokens: int


class Observation:
    """Follows the lines of one engine's telemetry, in order, and keeps the steps and the requests since `begin`."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.lives: dict[str, Life] = {}
        self._session, self._lost = "", 0
        self._seats: dict[int, _Seat] = {}
        self._context = 0
        self._joining: list[tuple[str, int]] = []
        self._last_end_us = -1

    def begin(self) -> None:
        """Forget what was seen so far, but not who is in the batch."""
        self.steps, self.lives = [], {}
        # What goes on is not new: it has no life here, and its steps count as any others.
        self._last_end_us = -1

    def take(self, records: Iterable[Record]) -> None:
        """Take in some records; raises EngineLost when the engine was started again or some of them are missing."""
        for record in records:
            try:
                self._take(record)
            except KeyError as error:
                raise EngineLost(f"the engine's telemetry contradicts itself: nobody has handle {error}") from error

    def _take(self, record: Record) -> None:
        if isinstance(record, Seen):
            self._step(record)
        elif isinstance(record, Join):
            self._join(record)
        elif isinstance(record, Leave):
            self._leave(record)
        elif isinstance(record, Open):
            self._open(record)
        elif isinstance(record, State):
            self._state(record)
        elif isinstance(record, Lost):
            raise EngineLost(f"some of the engine's telemetry is missing ({record.why}): calibrate anew")

    def _open(self, record: Open) -> None:
        if self._session and record.session != self._session:
            raise EngineLost("the engine was started again in the middle: see its log, then calibrate anew")
        if self._session and record.lost != self._lost:
            raise EngineLost("the engine could not write some of its telemetry: is its disk full? Calibrate anew then")
        self._session, self._lost = record.session, record.lost

    def _state(self, record: State) -> None:
        if self._seats:
            return  # known already: a segment only says it again
        for handle, request_id, context in record.batch:
            self._seats[handle] = _Seat(request_id, context, 0)
            self._context += context

    def _join(self, record: Join) -> None:
        handle, request_id, prompt_tokens, context, queued_us = record
        life = self.lives.get(request_id)
        if life is None:
            self.lives[request_id] = life = Life(prompt_tokens, -1, -1, context)
            self._joining.append((request_id, queued_us))
        else:
            life.preemptions += 1
        self._seats[handle] = _Seat(request_id, context, life.prompt_tokens + len(life.emitted_us))
        self._context += context

    def _leave(self, record: Leave) -> None:
        seat = self._seats.pop(record.handle)
        self._context -= seat.context
        if not self._seats:
            self._last_end_us = -1

    def _step(self, record: Seen) -> None:
        begin_us, end_us, used_blocks, running, waiting, takes = record
        for request_id, queued_us in self._joining:
            life = self.lives[request_id]
            life.begin_us, life.arrived_us = begin_us, begin_us - queued_us
        self._joining.clear()
        decoding, context, emitted = len(self._seats), self._context, 0
        requests = tokens = pairs = 0
        listed = set()
        for handle, count in takes:
            seat = self._seats[handle]
            listed.add(handle)
            decoding -= 1
            context -= seat.context
            if count:
                requests += 1
                tokens += count
                pairs += count * seat.context + count * count // 2
                seat.context += count
                self._context += count
                if seat.context >= seat.tokens:
                    emitted += self._emit(seat, end_us)
        for handle, seat in self._seats.items():
            if handle not in listed:
                seat.context += 1
                emitted += self._emit(seat, end_us)
        self._context += decoding
        gap_us = begin_us - self._last_end_us if self._last_end_us >= 0 else -1
        work = StepWork(requests, tokens, pairs, decoding, context)
        self.steps.append(Step(begin_us, end_us, work, used_blocks, running, waiting, gap_us, emitted))
        self._last_end_us = end_us

    def _emit(self, seat: _Seat, end_us: int) -> int:
        life = self.lives.get(seat.request_id)
        if life is not None:
            life.emitted_us.append(end_us)
        seat.tokens += 1
        return 1
