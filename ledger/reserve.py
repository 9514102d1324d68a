"""The reserve: one segment allocated ahead of need, so that settlements fit on a disk that has since filled up."""

import os
import threading
from pathlib import Path

from ledger.segments import segment_paths


class Reserve:
    """At most one spare segment beside the journal's directory, full of zeros and within `bytes_max` in all."""

    def __init__(self, directory: Path, segment_bytes: int, bytes_max: int) -> None:
        self.segment_bytes = segment_bytes
        self._directory = directory
        self._spare = directory.with_name(f"{directory.name}.spare")
        self._bytes_max = bytes_max
        self._lock = threading.Lock()
        # A spare left by an earlier run may have been cut short or written to: make it anew.
        self._spare.unlink(missing_ok=True)
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

    def take(self, path: Path) -> int:
        """Gives the spare its name as a segment and returns it open for writing; `ready` must be true."""
        with self._lock:
            assert self.ready
            self.ready = False
            self._spare.rename(path)
            return os.open(path, os.O_RDWR)

    def _used_bytes(self) -> int:
        used_bytes = 0
        for path in segment_paths(self._directory):
            try:
                used_bytes += path.stat().st_size
            except FileNotFoundError:
                # The shipper has just let an old segment go: it takes no room.
                continue
        return used_bytes

    def _fill(self) -> bool:
        try:
            fd = os.open(self._spare, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                os.posix_fallocate(fd, 0, self.segment_bytes)
            finally:
                os.close(fd)
        except OSError:
            # A full disk is an expected answer; whatever else keeps it from allocating means the same to the caller.
            self._spare.unlink(missing_ok=True)
            return False
        return True
