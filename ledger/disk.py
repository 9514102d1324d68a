"""The disk: what a journal asks of a file system, as a port, and the system's own.

Tests stand another one in its place that loses power, fills up and fails (tests/simulation). The port is made of few
calls, because a store into `Pages` goes past it: what is appended is copied into the page cache and nothing is called.
"""

import fcntl
import mmap
import os
from pathlib import Path
from typing import NamedTuple, Protocol

# What a disk writes whole or not at all.
SECTOR_BYTES = 512


class Status(NamedTuple):
    """How large a file is, and the Unix second of its last change."""

    size_bytes: int
    modified_s: float


class Pages(Protocol):
    """The pages of a file in the system's cache: what is stored there survives the process, not the machine."""

    def __getitem__(self, where: slice, /) -> bytes: ...
    def __setitem__(self, where: slice, content: bytes, /) -> None: ...
    def close(self) -> None: ...


class Disk(Protocol):
    """A file system; every method raises OSError as the system does."""

    def make_directory(self, directory: Path) -> None:
        """Makes a directory, and those above it, so that a power loss does not take them away again."""

    def lock(self, directory: Path) -> int:
        """Opens a directory and locks it for as long as that is open; BlockingIOError when it is locked."""

    def names(self, directory: Path) -> list[str]:
        """What lies in a directory, in no order; FileNotFoundError when there is none."""

    def directories(self, parent: Path) -> list[Path]:
        """The directories in a directory, sorted; none when it does not exist."""

    def status(self, path: Path) -> Status:
        """Size and age of a file."""

    def open(self, path: Path) -> int:
        """Opens a file for reading."""

    def open_writable(self, path: Path) -> int:
        """Opens a file that is to be mapped."""

    def create(self, path: Path) -> int:
        """Opens an empty file that is to be mapped, readable by its owner alone."""

    def close(self, fd: int) -> None:
        """Closes what one of the methods above opened."""

    def size_bytes(self, fd: int) -> int:
        """The size of an open file."""

    def read(self, fd: int, size_bytes: int, offset: int) -> bytes:
        """Up to `size_bytes` from an offset; fewer at the end of the file only."""

    def allocate(self, fd: int, size_bytes: int) -> None:
        """Makes a file at least this large, with blocks behind all of it, so that no store can find the disk full."""

    def truncate(self, fd: int, size_bytes: int) -> None:
        """Cuts a file off."""

    def map(self, fd: int, size_bytes: int) -> Pages:
        """The first pages of a file, to be stored into."""

    def sync(self, fd: int) -> None:
        """Waits until what a file holds, and its size, are on the medium."""

    def sync_directory(self, directory: Path) -> None:
        """Waits until the names in a directory are on the medium."""

    def rename(self, path: Path, to: Path) -> None:
        """Gives a file another name."""

    def unlink(self, path: Path) -> None:
        """Takes a file away, if there is one."""


class SystemDisk:
    """The file system of this machine."""

    def make_directory(self, directory: Path) -> None:
        if not directory.parent.is_dir():
            self.make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        # Also where it is there already: whoever made it may have been killed before this.
        self.sync_directory(directory.parent)

    def lock(self, directory: Path) -> int:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            raise
        return fd

    def names(self, directory: Path) -> list[str]:
        return os.listdir(directory)

    def directories(self, parent: Path) -> list[Path]:
        return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []

    def status(self, path: Path) -> Status:
        found = path.stat()
        return Status(found.st_size, found.st_mtime)

    def open(self, path: Path) -> int:
        return os.open(path, os.O_RDONLY)

    def open_writable(self, path: Path) -> int:
        return os.open(path, os.O_RDWR)

    def create(self, path: Path) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)

    def close(self, fd: int) -> None:
        os.close(fd)

    def size_bytes(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def read(self, fd: int, size_bytes: int, offset: int) -> bytes:
        content = os.pread(fd, size_bytes, offset)
        while 0 < len(content) < size_bytes:
            # A short read is not the end: only one of nothing is.
            more = os.pread(fd, size_bytes - len(content), offset + len(content))
            if not more:
                break
            content += more
        return content

    def allocate(self, fd: int, size_bytes: int) -> None:
        os.posix_fallocate(fd, 0, size_bytes)

    def truncate(self, fd: int, size_bytes: int) -> None:
        os.ftruncate(fd, size_bytes)

    def map(self, fd: int, size_bytes: int) -> Pages:
        return mmap.mmap(fd, size_bytes)

    def sync(self, fd: int) -> None:
        os.fdatasync(fd)

    def sync_directory(self, directory: Path) -> None:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, path: Path, to: Path) -> None:
        path.rename(to)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)


SYSTEM = SystemDisk()


def store_again(disk: Disk, path: Path, from_bytes: int, to_bytes: int) -> None:
    """Has a part of a segment that nobody changes any more written with the next fsync.

    After one that failed, the system takes what it did not write for written, and the next one would not tell.
    """
    fd = disk.open_writable(path)
    try:
        pages = disk.map(fd, disk.size_bytes(fd))
        pages[from_bytes:to_bytes] = pages[from_bytes:to_bytes]
        pages.close()
    finally:
        disk.close(fd)
