"""Follows the telemetry of an engine: what its folder holds now, then what is added, in order and bounded.

Nothing is written into the folder and nothing is remembered outside of this process: a follower that starts anew begins
with the oldest segment that is kept, whose `state` says who was in the batch by then.
"""

import errno
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from runtime.telemetry.records import Lost

READ_BYTES = 64 << 10
LINE_BYTES_MAX = 4 << 20
SOURCES_MAX = 64
_NAME = re.compile(r"((?:engine|requests)-\d{1,4})\.(\d{1,9})\.jsonl")


class Piece(NamedTuple):
    """Some whole lines of one source, or what is missing at this place."""

    source: str
    data: bytes
    lost: Lost | None = None


class Follower:
    """Follows all sources of one folder; for one thread at a time, because it reads files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_missing = False
        self.has_more = False
        self._sources: dict[str, _Source] = {}

    def read(self, bytes_max: int) -> list[Piece]:
        """What was added to each source since the last call, at most so many bytes of each; `has_more` says of more.

        A folder that cannot be read has no sources, and `is_missing` says so; it may come later.
        """
        listed = self._listed()
        for name in listed:
            if name not in self._sources and len(self._sources) < SOURCES_MAX:
                self._sources[name] = _Source(self.folder, name)
        pieces: list[Piece] = []
        for name, source in self._sources.items():
            pieces += source.read(listed.get(name, ()), bytes_max)
        self.has_more = any(source.has_more for source in self._sources.values())
        return pieces

    @property
    def failure(self) -> str:
        """Which segment is there and cannot be opened, and why; empty where all can."""
        return next((source.failure for source in self._sources.values() if source.failure), "")

    def close(self) -> None:
        """Let go of the files."""
        for source in self._sources.values():
            source.close()

    def _listed(self) -> dict[str, list[int]]:
        """The segments of each source, in order."""
        found: dict[str, list[int]] = {}
        try:
            names = os.listdir(self.folder)
        except OSError:
            self.is_missing = True
            return found
        self.is_missing = False
        for name in names:
            match = _NAME.fullmatch(name)
            if match is not None:
                found.setdefault(match[1], []).append(int(match[2]))
        return {name: sorted(found[name]) for name in sorted(found)}


class _Source:
    """One source: the segment that is being read, up to where, and the line that is not whole yet."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._file = -1
        self._segment = -1
        self._rest = b""
        self._is_skipping = False
        self.has_more = False
        self.failure = ""

    def read(self, segments: Iterable[int], bytes_max: int) -> list[Piece]:
        """What follows, given the segments that were there before this is called."""
        pieces: list[Piece] = []
        numbers, left = list(segments), bytes_max
        while left > 0:
            if self._file < 0 and not self._open(numbers, pieces):
                break
            try:
                data = os.read(self._file, min(left, READ_BYTES))
            except OSError:
                break  # a disk that stalls; the next call goes on here
            if data:
                left -= len(data)
                self._take(data, pieces)
            elif self._is_at_end(numbers):
                if self._rest or self._is_skipping:
                    pieces.append(Piece(self._name, b"", Lost("torn")))
                self.close()
            else:
                break
        self.has_more = left <= 0
        return pieces

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self._rest, self._is_skipping = b"", False

    def _take(self, data: bytes, pieces: list[Piece]) -> None:
        whole, newline, rest = data.rpartition(b"\n")
        if not newline:
            self._rest += data
        else:
            lines = self._rest + whole
            if self._is_skipping:
                lines = lines.partition(b"\n")[2]
                self._is_skipping = False
            self._rest = rest
            if lines:
                pieces.append(Piece(self._name, lines))
        if len(self._rest) > LINE_BYTES_MAX:
            self._rest = b""
            if not self._is_skipping:
                self._is_skipping = True
                pieces.append(Piece(self._name, b"", Lost("long")))

    def _is_at_end(self, numbers: list[int]) -> bool:
        """Whether a segment that was read to its end is over.

        Segments are listed before they are read, and the writer begins one only when it is done with that before.
        """
        return bool(numbers) and (numbers[-1] > self._segment or not self._is_current())

    def _is_current(self) -> bool:
        """Whether the file that is read is still the one of that name."""
        try:
            return os.stat(self._path(self._segment)).st_ino == os.fstat(self._file).st_ino
        except OSError:
            return False

    def _open(self, numbers: list[int], pieces: list[Piece]) -> bool:
        """Open the segment that follows, the oldest one at first; False while there is none."""
        later = [number for number in numbers if number > self._segment]
        # Numbers that begin anew are those of another folder under the same name.
        is_replaced = not later and bool(numbers)
        number = numbers[0] if is_replaced else min(later, default=-1)
        if number < 0:
            return False
        try:
            self._file = _opened(self._path(number))
        except FileNotFoundError:
            return False  # removed meanwhile: the next call lists anew
        except OSError as error:
            self.failure = f"{self._path(number)} cannot be read: {error.strerror}"
            return False
        self.failure = ""
        if is_replaced:
            pieces.append(Piece(self._name, b"", Lost("replaced")))
        elif self._segment >= 0 and number > self._segment + 1:
            pieces.append(Piece(self._name, b"", Lost("segments", number - self._segment - 1)))
        self._segment = number
        return True

    def _path(self, number: int) -> str:
        return os.fspath(self._folder / f"{self._name}.{number}.jsonl")


def _opened(path: str) -> int:
    """Open a file that is one: whoever may write the folder may not lead elsewhere, or to what never ends; OSError."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "not a regular file")
    return file
