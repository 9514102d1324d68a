"""The reserve: one segment allocated ahead of need, so that settlements fit on a disk that has since filled up."""

import errno
import threading
from pathlib import Path

from ledger.disk import Disk, Pages
from ledger.segments import segment_paths

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Reserve:
    """At most one spare segment beside the journal's directory, full of zeros and within `bytes_max` in all."""

    def __init__(self, directory: Path, segment_bytes: int, bytes_max: int, disk: Disk) -> None:
        self.segment_bytes = segment_bytes
        self._directory = directory
        self._spare = directory.with_name(f"{directory.name}.spare")
        self._bytes_max = bytes_max
        self._disk = disk
        self._lock = threading.Lock()
        self._fd = -1
        # A spare left by an earlier run may have been cut short or written to: make it anew.
        disk.unlink(self._spare)
        self.ready = False

    def allocate(self) -> bool:
        """Whether a spare stands ready, after making one if the limits and the disk allow it."""
        with self._lock:
            if self.ready:
                return True
            if self._used_bytes() + self.segment_bytes > self._bytes_max:
                return False
            self.ready = self._fill()
            return self.ready

    def take(self, path: Path) -> tuple[int, Pages] | None:
        """Gives the spare its name as a segment and returns it open and mapped; `ready` must be true.

        None when the disk has no room for the name, and then it is still the spare.
        """
        with self._lock:
            assert self.ready
            pages = self._disk.map(self._fd, self.segment_bytes)
            try:
                self._disk.rename(self._spare, path)
            except OSError as error:
                pages.close()
                if error.errno in _DISK_FULL:
                    return None
                raise
            self.ready = False
            fd, self._fd = self._fd, -1
            return fd, pages

    def close(self) -> None:
        """Closes the spare, which the next run makes anew."""
        with self._lock:
            self.ready = False
            if self._fd >= 0:
                self._disk.close(self._fd)
                self._fd = -1

    def _used_bytes(self) -> int:
        used_bytes = 0
        for path in segment_paths(self._directory, self._disk):
            try:
                used_bytes += self._disk.status(path).size_bytes
            except FileNotFoundError:
                # The shipper has just let an old segment go: it takes no room.
                continue
        return used_bytes

    def _fill(self) -> bool:
        fd = -1
        try:
            fd = self._disk.create(self._spare)
            self._disk.allocate(fd, self.segment_bytes)
        except OSError:
            # A full disk is an expected answer; whatever else keeps it from allocating means the same to the caller.
            if fd >= 0:
                self._disk.close(fd)
            self._disk.unlink(self._spare)
            return False
        self._fd = fd
        return True
