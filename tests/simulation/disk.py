"""A simulated disk: files with what processes see of them and what a power loss leaves, page by page.

A store into a mapping reaches the cache only. `sync` takes the pages of one file to the medium, `sync_directory` the
names in one directory. At a power loss every page and every name that was not taken there survives or not by itself,
and a page may be torn between two sectors.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ledger.disk import SECTOR_BYTES, Pages, Status
from tests.simulation.faults import Killed

PAGE_BYTES = 4096
Strike = Callable[[str, str], None]


@dataclass(eq=False, slots=True)
class File:
    """One file: the cache, the medium, and the pages of the cache that are waiting to be written."""

    modified_s: float
    cache: bytearray = field(default_factory=bytearray)
    medium: bytearray = field(default_factory=bytearray)
    dirty: set[int] = field(default_factory=set)
    errors: int = 0
    name: Path | None = None
    durable_name: Path | None = None

    def touch(self, start: int, stop: int) -> None:
        """Mark the pages of a range as waiting."""
        self.dirty.update(range(start // PAGE_BYTES, (stop + PAGE_BYTES - 1) // PAGE_BYTES))

    def resize(self, size_bytes: int) -> None:
        """Cut the cache off, or put zeros behind it."""
        if size_bytes < len(self.cache):
            self.touch(size_bytes, len(self.cache))
            del self.cache[size_bytes:]
        else:
            self.cache.extend(bytes(size_bytes - len(self.cache)))

    def write_back(self, page: int) -> None:
        """Take one page to the medium."""
        start = page * PAGE_BYTES
        content = self.cache[start : start + PAGE_BYTES]
        self.medium[start : start + PAGE_BYTES] = content.ljust(min(PAGE_BYTES, len(self.medium) - start), b"\0")


class Machine:
    """The disk of one machine and the processes that use it; `strike` is asked before and after each operation."""

    def __init__(self, dice: random.Random, now_s: Callable[[], float], strike: Strike) -> None:
        self.dice = dice
        self.now_s = now_s
        self.strike = strike
        self.capacity_bytes = 1 << 40
        self.files: list[File] = []
        self.directories_made: set[Path] = set()
        self.locks: dict[Path, ProcessDisk] = {}

    def process(self, name: str) -> ProcessDisk:
        """The disk as a new process sees it."""
        return ProcessDisk(self, name)

    def find(self, path: Path) -> File:
        """The file of that name; FileNotFoundError when there is none."""
        for file in self.files:
            if file.name == path:
                return file
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))

    def add(self, file: File) -> None:
        """A file is made; those that can never come back are forgotten."""
        self.files = [each for each in self.files if each.name is not None or each.durable_name is not None]
        self.files.append(file)

    def used_bytes(self) -> int:
        """The blocks of all files."""
        return sum(len(file.cache) for file in self.files if file.name is not None)

    def sync(self, file: File) -> None:
        """Take all pages of a file to the medium, and its size."""
        _resize(file.medium, len(file.cache))
        for page in file.dirty:
            file.write_back(page)
        file.dirty.clear()

    def sync_badly(self, file: File) -> None:
        """What a failed fsync does: some pages are written, and all count as clean from then on."""
        _resize(file.medium, max(len(file.medium), len(file.cache)))
        for page in file.dirty:
            if self.dice.random() < 0.5:
                file.write_back(page)
        file.dirty.clear()

    def evict(self) -> None:
        """Forget clean pages, which come back as the medium has them; only a failed fsync makes that matter."""
        for file in self.files:
            for page in range(len(file.cache) // PAGE_BYTES + 1):
                start = page * PAGE_BYTES
                if page not in file.dirty and self.dice.random() < 0.5:
                    size_bytes = len(file.cache[start : start + PAGE_BYTES])
                    content = bytes(file.medium[start : start + size_bytes])
                    file.cache[start : start + size_bytes] = content.ljust(size_bytes, b"\0")

    def lose_power(self) -> None:
        """Leave what reached the medium, and of the rest what chance says."""
        self.locks.clear()
        for file in self.files:
            self._lose_pages(file)
            if file.name != file.durable_name and self.dice.random() < 0.5:
                file.name = file.durable_name
            file.durable_name = file.name
        survivors: dict[Path, File] = {file.name: file for file in self.files if file.name is not None}
        self.files = list(survivors.values())

    def _lose_pages(self, file: File) -> None:
        if self.dice.random() < 0.5:
            _resize(file.medium, len(file.cache))
        for page in sorted(file.dirty):
            fate = self.dice.random()
            start, stop = page * PAGE_BYTES, min((page + 1) * PAGE_BYTES, len(file.medium), len(file.cache))
            if fate < 0.4 and start < stop:
                file.medium[start:stop] = file.cache[start:stop]
            elif fate < 0.7:
                for sector in range(start, stop, SECTOR_BYTES):
                    if self.dice.random() < 0.5:
                        end = min(sector + SECTOR_BYTES, stop)
                        file.medium[sector:end] = file.cache[sector:end]
        file.dirty.clear()
        file.cache = bytearray(file.medium)


class ProcessDisk:
    """The disk as one process sees it, until it is killed: then every operation goes on killing it."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.name = name
        self.is_dead = False
        self._machine = machine
        self._open: dict[int, File | Path] = {}
        self._errors_seen: dict[int, int] = {}
        self._next_fd = 3

    def die(self) -> None:
        """Close everything, as the system does for a process that is gone."""
        self.is_dead = True
        locks = self._machine.locks
        for path in [path for path, holder in locks.items() if holder is self]:
            del locks[path]
        self._open.clear()

    def struck(self, operation: str) -> None:
        """Let a fault strike at this operation."""
        if self.is_dead:
            raise Killed(self.name)
        self._machine.strike(self.name, operation)

    def make_directory(self, directory: Path) -> None:
        self.struck("make_directory")
        self._machine.directories_made.add(directory)
        self.struck("make_directory done")

    def lock(self, directory: Path) -> int:
        self.struck("lock")
        if directory in self._machine.locks:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self._machine.locks[directory] = self
        return self._opened(directory)

    def names(self, directory: Path) -> list[str]:
        self.struck("names")
        if directory not in self._machine.directories_made:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory))
        return [file.name.name for file in self._machine.files if file.name and file.name.parent == directory]

    def directories(self, parent: Path) -> list[Path]:
        self.struck("directories")
        return sorted(path for path in self._machine.directories_made if path.parent == parent)

    def status(self, path: Path) -> Status:
        self.struck("status")
        file = self._machine.find(path)
        return Status(len(file.cache), file.modified_s)

    def open(self, path: Path) -> int:
        self.struck("open")
        return self._opened(self._machine.find(path))

    def open_writable(self, path: Path) -> int:
        return self.open(path)

    def create(self, path: Path) -> int:
        self.struck("create")
        self._unlink(path)
        file = File(self._machine.now_s(), name=path)
        self._machine.add(file)
        self.struck("create done")
        return self._opened(file)

    def close(self, fd: int) -> None:
        self.struck("close")
        opened = self._open.pop(fd)
        if isinstance(opened, Path):
            del self._machine.locks[opened]

    def size_bytes(self, fd: int) -> int:
        self.struck("size_bytes")
        return len(self._file(fd).cache)

    def read(self, fd: int, size_bytes: int, offset: int) -> bytes:
        self.struck("read")
        return bytes(self._file(fd).cache[offset : offset + size_bytes])

    def allocate(self, fd: int, size_bytes: int) -> None:
        self.struck("allocate")
        file = self._file(fd)
        more_bytes = max(0, size_bytes - len(file.cache))
        if self._machine.used_bytes() + more_bytes > self._machine.capacity_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file.resize(max(size_bytes, len(file.cache)))
        self.struck("allocate done")

    def truncate(self, fd: int, size_bytes: int) -> None:
        self.struck("truncate")
        self._file(fd).resize(size_bytes)
        self.struck("truncate done")

    def map(self, fd: int, size_bytes: int) -> Pages:
        self.struck("map")
        file = self._file(fd)
        assert size_bytes <= len(file.cache), "a store beyond the end of a file would be SIGBUS"
        return MappedFile(self, file, self._machine)

    def sync(self, fd: int) -> None:
        file = self._file(fd)
        try:
            self.struck("sync")
        except OSError:
            self._machine.sync_badly(file)
            file.errors += 1
            self._errors_seen[fd] = file.errors
            raise
        if self._errors_seen[fd] < file.errors:
            # The system tells everyone who had the file open once.
            self._errors_seen[fd] = file.errors
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._machine.sync(file)
        self.struck("sync done")

    def sync_directory(self, directory: Path) -> None:
        self.struck("sync_directory")
        for file in self._machine.files:
            if directory in {path.parent for path in (file.name, file.durable_name) if path is not None}:
                file.durable_name = file.name
        self.struck("sync_directory done")

    def rename(self, path: Path, to: Path) -> None:
        self.struck("rename")
        file = self._machine.find(path)
        if self._machine.used_bytes() > self._machine.capacity_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._unlink(to)
        file.name = to
        self.struck("rename done")

    def unlink(self, path: Path) -> None:
        self.struck("unlink")
        self._unlink(path)
        self.struck("unlink done")

    def _unlink(self, path: Path) -> None:
        for file in self._machine.files:
            if file.name == path:
                file.name = None

    def _opened(self, what: File | Path) -> int:
        self._next_fd += 1
        self._open[self._next_fd] = what
        self._errors_seen[self._next_fd] = what.errors if isinstance(what, File) else 0
        return self._next_fd

    def _file(self, fd: int) -> File:
        if self.is_dead:
            raise Killed(self.name)
        file = self._open[fd]
        assert isinstance(file, File)
        return file


class MappedFile:
    """A mapping: a store into it can be cut short by a kill, and leaves the beginning of what was stored."""

    def __init__(self, disk: ProcessDisk, file: File, machine: Machine) -> None:
        self._disk = disk
        self._file = file
        self._machine = machine
        self._is_closed = False

    def __getitem__(self, where: slice) -> bytes:
        return bytes(self._file.cache[where])

    def __setitem__(self, where: slice, content: bytes) -> None:
        assert not self._is_closed, "a store into a mapping that is closed"
        start, stop = int(where.start), int(where.stop)
        assert stop - start == len(content), "a store that would change the size of the file"
        assert stop <= len(self._file.cache), "a store beyond the end of a file would be SIGBUS"
        try:
            self._disk.struck("store")
        except Killed:
            stop = start + self._machine.dice.randrange(len(content) + 1)
            self._store(start, stop, content)
            raise
        self._store(start, stop, content)
        self._disk.struck("store done")

    def close(self) -> None:
        self._is_closed = True

    def _store(self, start: int, stop: int, content: bytes) -> None:
        self._file.cache[start:stop] = content[: stop - start]
        self._file.touch(start, stop)
        self._file.modified_s = self._machine.now_s()


def _resize(content: bytearray, size_bytes: int) -> None:
    if size_bytes < len(content):
        del content[size_bytes:]
    else:
        content.extend(bytes(size_bytes - len(content)))
