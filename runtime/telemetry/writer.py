"""Writes an engine's telemetry in bounded segments with nothing but Python's own library: vLLM's plugin has it too."""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

VERSION = 1
SEGMENT_BYTES_MAX = 16 << 20
SEGMENTS_KEPT = 2
SEGMENT_MAX = 999_999_999
REQUEST_ID_CHARS_MAX = 256
CHECK_US = 1_000_000


def unix_us() -> int:
    """The wall clock in Unix microseconds."""
    return time.time_ns() // 1000


def segments(folder: Path, source: str) -> list[int]:
    """The numbers of a source's segments in a folder, the oldest first; none when there is no such folder."""
    names = [path.name for path in folder.glob(f"{source}.*.jsonl")]
    numbers = [name[len(source) + 1 : -len(".jsonl")] for name in names]
    return sorted(int(number) for number in numbers if number.isdecimal() and int(number) <= SEGMENT_MAX)


class TelemetryWriter:
    """The writer of one source, in the format of `runtime.telemetry`; made once by each start of an engine.

    Nothing here raises into the engine. What cannot be written (a full disk, a folder that is gone) is dropped and
    counted; each second a new segment is tried, whose `state` says who is in the batch by then and whose facts say with
    `lost` how many lines of this session are missing. Joins wait for the next line of another kind; every other line is
    handed to the operating system at once, so that an engine that is killed loses none. Not for several threads.
    """

    def __init__(
        self,
        folder: Path,
        source: str,
        facts: Mapping[str, Any],
        segment_bytes_max: int = SEGMENT_BYTES_MAX,
        clock_us: Callable[[], int] = unix_us,
    ) -> None:
        self.folder = folder
        self.source = source
        self.lost = 0
        self._facts = dict(facts)
        self._segment_bytes_max = segment_bytes_max
        self._clock_us = clock_us
        self._session = uuid.uuid4().hex
        self._segment = -1
        self._file = -1
        self._size_bytes = 0
        self._checked_us = 0
        self._waiting: list[str] = []
        # A context is its entry here plus the steps so far: a step then touches only those that did not decode.
        self._contexts: dict[int, int] = {}
        self._request_ids: dict[int, str] = {}
        self._steps = 0
        self._open()

    def join(self, handle: int, request_id: str, prompt_tokens: int, context_tokens: int, queued_us: int) -> None:
        """A request enters the batch with the next step; `context_tokens` were found in the prefix cache."""
        quoted = json.dumps(request_id[:REQUEST_ID_CHARS_MAX])
        self._request_ids[handle] = quoted
        self._contexts[handle] = context_tokens - self._steps
        self._waiting.append(f'["join",{handle},{quoted},{prompt_tokens},{context_tokens},{queued_us}]\n')

    def step(
        self,
        begin_us: int,
        end_us: int,
        used_blocks: int,
        running: int,
        waiting: int,
        takes: Iterable[tuple[int, int]] = (),
    ) -> None:
        """A step was computed; `takes` are the (handle, tokens) of those in the batch that did not decode one token."""
        self._steps += 1
        contexts = self._contexts
        taken = []
        for handle, tokens in takes:
            contexts[handle] += tokens - 1
            taken.append(f"[{handle},{tokens}]")
        self._write(f'["step",{begin_us},{end_us},{used_blocks},{running},{waiting},[{",".join(taken)}]]\n')

    def leave(self, handle: int, reason: str, output_tokens: int) -> None:
        """A request left the batch: `finished`, `aborted` or `preempted`."""
        del self._contexts[handle], self._request_ids[handle]
        self._write(f'["leave",{handle},"{reason}",{output_tokens}]\n')

    def finished(
        self,
        request_id: str,
        reason: str,
        *,
        prompt_tokens: int,
        cached_tokens: int,
        output_tokens: int,
        queued_us: int,
        prefill_us: int,
        decode_us: int,
        e2e_us: int,
        preemptions: int,
    ) -> None:
        """A request finished, as the runtime itself counts it."""
        counts = (prompt_tokens, cached_tokens, output_tokens, queued_us, prefill_us, decode_us, e2e_us, preemptions)
        line = json.dumps(["finished", request_id[:REQUEST_ID_CHARS_MAX], reason, *counts], separators=(",", ":"))
        self._write(line + "\n")

    def close(self) -> None:
        """The engine ends by itself; nothing may be written after it."""
        self._write(f'["close",{self._clock_us()}]\n')
        self._abandon()

    def _write(self, line: str) -> None:
        """Write what waits and this line; begin a new segment when this one is full, or cannot be written."""
        self._waiting.append(line)
        now_us = self._clock_us()
        # Also when the clock was put back. What is written into a deleted file is never read.
        if not 0 <= now_us - self._checked_us < CHECK_US:
            self._checked_us = now_us
            if self._file < 0 or self._is_deleted():
                # The state that it begins with is that after these lines, which are therefore lost.
                self._drop()
                self._open()
                return
        if self._file < 0 or not self._put("".join(self._waiting).encode()):
            self._drop()
            return
        self._waiting.clear()
        if self._size_bytes >= self._segment_bytes_max:
            self._open()

    def _put(self, data: bytes) -> bool:
        """Write all of it, or leave the segment as it was and abandon it."""
        try:
            written = os.write(self._file, data)
        except OSError:
            written = 0
        if written == len(data):
            self._size_bytes += written
            return True
        with contextlib.suppress(OSError):  # a reader skips a line that was cut short too
            os.ftruncate(self._file, self._size_bytes)
        self._abandon()
        return False

    def _drop(self) -> None:
        self.lost += len(self._waiting)
        self._waiting.clear()

    def _open(self) -> None:
        """Begin the next segment, and remove those before the last two; without a segment when that is impossible."""
        self._abandon()
        self._checked_us = self._clock_us()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            present = segments(self.folder, self.source)
            number = max([self._segment, *present]) + 1
            if number > SEGMENT_MAX:
                # No reader knows a higher one; it takes numbers that begin anew for a folder that was replaced.
                self._remove(present)
                present, number = [], 0
            path = self.folder / f"{self.source}.{number}.jsonl"
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o640)
        except OSError:
            return
        self._size_bytes = 0
        if not self._put(self._head(number)):
            with contextlib.suppress(OSError):  # an empty segment is passed over
                path.unlink()
            return
        self._segment = number
        self._remove([*present, number][:-SEGMENTS_KEPT])

    def _remove(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            with contextlib.suppress(OSError):  # tried again with the next segment
                (self.folder / f"{self.source}.{number}.jsonl").unlink()

    def _head(self, number: int) -> bytes:
        facts = {**self._facts, "lost": self.lost}
        opened = ["open", VERSION, self.source, self._session, number, self._clock_us(), facts]
        batch = ",".join(
            f"[{handle},{self._request_ids[handle]},{context + self._steps}]"
            for handle, context in self._contexts.items()
        )
        return f'{json.dumps(opened, separators=(",", ":"), default=str)}\n["state",[{batch}]]\n'.encode()

    def _is_deleted(self) -> bool:
        try:
            return os.fstat(self._file).st_nlink == 0
        except OSError:
            return True

    def _abandon(self) -> None:
        if self._file >= 0:
            with contextlib.suppress(OSError):  # what it held is written already, or lost
                os.close(self._file)
            self._file = -1
