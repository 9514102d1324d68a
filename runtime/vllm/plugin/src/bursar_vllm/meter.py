"""What the scheduler did, put into the order that the telemetry's format asks for; knows nothing of vLLM.

With two batches in flight the next step is scheduled before the last one is known, and a request may end while a step
that still computes for it is on its way. So each scheduled step keeps who joins with it and who leaves after it, and
all is written when the step is done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol


class Unsayable(Exception):
    """The engine did what the telemetry's format has no words for."""


class Writer(Protocol):
    """What the meter needs of `TelemetryWriter`."""

    def join(self, handle: int, request_id: str, prompt_tokens: int, context_tokens: int, queued_us: int) -> None:
        """A request enters the batch."""

    def step(
        self,
        begin_us: int,
        end_us: int,
        used_blocks: int,
        running: int,
        waiting: int,
        takes: Iterable[tuple[int, int]] = (),
    ) -> None:
        """A step was computed."""

    def leave(self, handle: int, reason: str, output_tokens: int) -> None:
        """A request left the batch."""


class Join(NamedTuple):
    """A request that enters the batch."""

    handle: int
    request_id: str
    prompt_tokens: int
    context_tokens: int
    queued_us: int


class Batch:
    """A step that was scheduled and whose result is not known yet."""

    __slots__ = ("begin_us", "counts", "joins", "leaves", "takes", "tokens")

    def __init__(
        self, begin_us: int, tokens: int, counts: tuple[int, int], joins: list[Join], takes: list[tuple[int, int]]
    ) -> None:
        self.begin_us = begin_us
        self.tokens = tokens
        self.counts = counts
        self.joins = joins
        self.takes = takes
        self.leaves: list[tuple[int, str, int]] = []


class StepMeter:
    """Follows the requests of one engine from queue to leave, and writes its steps."""

    def __init__(self, writer: Writer, clock_us: Callable[[], int], name: Callable[[str], str]) -> None:
        self._writer = writer
        self._clock_us = clock_us
        self._name = name
        self._queued_us: dict[str, int] = {}
        self._members: dict[str, int] = {}
        self._prefilling: dict[str, int] = {}
        self._free_handles: list[int] = []
        self._handles = 0
        self._batches: deque[Batch] = deque()
        self._end_us = 0

    def queued(self, request_id: str) -> None:
        """A request waits, newly or once more after it was preempted."""
        self._queued_us.setdefault(request_id, self._clock_us())

    def scheduled(
        self,
        begin_us: int,
        entered: Iterable[str],
        chunks: Mapping[str, int],
        tokens: int,
        requests: Mapping[str, Any],
        counts: tuple[int, int],
    ) -> None:
        """A step was scheduled: `chunks` are the tokens that each request computes in it, `tokens` their sum.

        `entered` are the requests that were not in the step before; `requests` are the scheduler's, which by now
        count this step's tokens as computed. `counts` are those that run and that wait now: when the step is done the
        next ones may be scheduled, and who waits in this one may be in a batch whose join is not written yet.
        """
        if not tokens:
            self._batches.append(Batch(begin_us, 0, counts, [], []))
            return
        joins = [self._join(begin_us, requests[request_id], chunks[request_id]) for request_id in entered]
        takes = []
        decoding = len(chunks)
        decoded = tokens
        for request_id, handle in list(self._prefilling.items()):
            chunk = chunks.get(request_id, 0)
            takes.append((handle, chunk))
            if chunk:
                decoding -= 1
                decoded -= chunk
                if not requests[request_id].is_prefill_chunk:
                    del self._prefilling[request_id]
        takes.extend(self._absent(chunks, takes))
        if decoded != decoding:
            raise Unsayable(f"{decoding} requests decoded {decoded} tokens in one step")
        self._batches.append(Batch(begin_us, tokens, counts, joins, takes))

    def computed(self, used_blocks: int) -> None:
        """The step that was scheduled first of those on their way is done."""
        batch = self._batches.popleft()
        if batch.tokens:
            end_us = max(self._clock_us(), self._end_us)
            for join in batch.joins:
                self._writer.join(*join)
            self._writer.step(max(batch.begin_us, self._end_us), end_us, used_blocks, *batch.counts, batch.takes)
            self._end_us = end_us
        for leave in batch.leaves:
            self._write_leave(*leave)

    def left(self, request_id: str, reason: str, output_tokens: int) -> None:
        """A request ended, or was preempted; steps on their way may still compute for it."""
        self._queued_us.pop(request_id, None)
        handle = self._members.pop(request_id, None)
        if handle is None:
            return
        self._prefilling.pop(request_id, None)
        if self._batches:
            self._batches[-1].leaves.append((handle, reason, output_tokens))
        else:
            self._write_leave(handle, reason, output_tokens)

    @property
    def is_idle(self) -> bool:
        """Whether no step is on its way."""
        return not self._batches

    def _join(self, begin_us: int, request: Any, chunk: int) -> Join:
        if self._free_handles:
            handle = self._free_handles.pop()
        else:
            handle, self._handles = self._handles, self._handles + 1
        request_id = request.request_id
        self._members[request_id] = self._prefilling[request_id] = handle
        waited_us = max(0, begin_us - self._queued_us.pop(request_id, begin_us))
        context = request.num_computed_tokens - chunk
        return Join(handle, self._name(request_id), request.num_prompt_tokens, context, waited_us)

    def _absent(self, chunks: Mapping[str, int], prefills: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those that decode and were not scheduled; looked for only when someone is missing."""
        idle_prefills = sum(1 for _, chunk in prefills if not chunk)
        missing = len(self._members) - len(chunks) - idle_prefills
        if not missing:
            return []
        listed = {handle for handle, _ in prefills}
        absent = [
            (handle, 0)
            for request_id, handle in self._members.items()
            if request_id not in chunks and handle not in listed
        ]
        if len(absent) != missing:
            raise Unsayable(f"{missing} of the batch were not scheduled, and {len(absent)} of them are known")
        return absent

    def _write_leave(self, handle: int, reason: str, output_tokens: int) -> None:
        self._writer.leave(handle, reason, output_tokens)
        self._free_handles.append(handle)
