"""The journal: one writer's append-only, hash-chained record of what happened, on disk before anything acts on it."""

import fcntl
import hashlib
import mmap
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson

from domain.ids import uuid7
from ledger.records import HEADER, HEADER_BYTES, PAYLOAD_BYTES_MAX, SNAPSHOT, CorruptJournal
from ledger.reserve import Reserve
from ledger.segments import Cursor, segment_path, segment_paths

__all__ = ["CorruptJournal", "Journal", "JournalError", "JournalFailed", "JournalFull", "JournalLocked"]

SEGMENT_BYTES = 64 << 20
BYTES_MAX = 8 << 30
FSYNC_INTERVAL_MS = 10
HOLD_BYTES = 8 << 10
_RETRY_S = 1.0
_QUIET_TURNS = 100
_KIND = re.compile(r"[a-z][a-z_]{0,63}")
_OWN_KEYS = frozenset({"seq", "kind"})
_SEQ_BYTES = len('{"seq":') + 20
RECORD_BYTES_MAX = 1 << 20


# JournalError
# ├── JournalLocked   another process writes this journal
# ├── JournalFull     no room is left, and none can be allocated
# └── JournalFailed   the disk refused a write or an fsync: nothing more is taken
# CorruptJournal (records.py) stands apart: what was written is damaged.
class JournalError(Exception):
    """The journal cannot take records."""


class JournalLocked(JournalError):
    """Another process holds the journal's directory."""


class JournalFull(JournalError):
    """The record does not fit and no further segment can be allocated."""


class JournalFailed(JournalError):
    """A write or an fsync failed earlier; what the disk holds behind it is unknown."""


class Journal:
    """An open journal; `append` may be called from any thread. Make one with `Journal.open`."""

    def __init__(
        self,
        directory: Path,
        lock_fd: int,
        snapshot: Callable[[], dict[str, Any]],
        reserve: Reserve,
        fsync_interval_ms: int,
        fdatasync: Callable[[int], None],
    ) -> None:
        self.directory = directory
        self.writer = directory.name
        self.fsyncs_total = 0
        self.bytes_total = 0
        self.cut_bytes = 0
        self.tail_seq = 0
        self._tail_sha256 = b""
        self._directory_fd = lock_fd
        self._snapshot = snapshot
        self._snapshot_bytes = HOLD_BYTES
        self._reserve = reserve
        self._interval_s = fsync_interval_ms / 1000
        self._fdatasync = fdatasync
        self._lock = threading.Lock()
        self._synced = threading.Condition()
        self._synced_seq = 0
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._fd = -1
        self._pages: mmap.mmap
        self._offset = 0
        self._capacity = 0
        self._dirty = False
        self._is_asleep = False
        self._retired: list[tuple[int, int]] = []
        self._failure: str | None = None
        self._closing = False
        self._heads: dict[str, bytes] = {}
        self._committer = threading.Thread(target=self._commit_forever, name=f"fsync {self.writer}", daemon=True)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        fsync_interval_ms: int = FSYNC_INTERVAL_MS,
        bytes_max: int = BYTES_MAX,
        snapshot: Callable[[], dict[str, Any]],
        fdatasync: Callable[[int], None] = os.fdatasync,
    ) -> "Journal":
        """Locks the directory, cuts a torn tail and goes on where the writer stopped.

        `snapshot()` is asked at the start of every segment for a body from which all records before it can be
        forgotten. It runs inside `append`, before the record being appended: whoever appends must do so before
        changing what the snapshot describes, and `snapshot` itself must not append.
        JournalLocked when another process has it, CorruptJournal when the last segment is damaged, JournalFull when a
        new journal finds no room for its first segment.
        """
        directory.mkdir(parents=True, exist_ok=True)
        lock_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _lock(lock_fd, directory)
            reserve = Reserve(directory, segment_bytes, bytes_max)
            journal = cls(directory, lock_fd, snapshot, reserve, fsync_interval_ms, fdatasync)
            journal._resume()
        except BaseException:
            os.close(lock_fd)
            raise
        journal._committer.start()
        return journal

    def append(self, kind: str, body: Mapping[str, Any], members: bytes = b"") -> int:
        """Writes one record and returns its seq: a kill of the process cannot lose it, the next fsync is due in 10 ms.

        `seq` and `kind` are the journal's own; `event_id` and `ts_us` are made unless the body has them. `members` are
        further members of the record's JSON object, serialised before: `"a":1,"b":2`.
        JournalFull and JournalFailed leave the journal as it was.
        """
        if not _OWN_KEYS.isdisjoint(body):
            raise ValueError("a record's body has no seq and no kind of its own")
        head = self._heads.get(kind) or self._head(kind)
        if "event_id" not in body:
            body = {"event_id": uuid7(), **body}
        if "ts_us" not in body:
            body = {"ts_us": time.time_ns() // 1000, **body}
        rest = head + orjson.dumps(body, default=_plain)[1:]
        if members:
            rest = b"%b,%b}" % (rest[:-1], members)
        size_bytes = HEADER_BYTES + _SEQ_BYTES + len(rest)
        if size_bytes > RECORD_BYTES_MAX:
            raise ValueError(f"a record of {size_bytes} bytes is over the limit of {RECORD_BYTES_MAX}")
        with self._lock:
            if self._failure is not None:
                raise JournalFailed(self._failure)
            if self._offset + size_bytes > self._capacity:
                self._rotate(size_bytes)
            self._write(rest)
            self._dirty = True
            if self._is_asleep:
                self._wake.set()
            return self.tail_seq

    def room_for(self, open_holds: int) -> bool:
        """Whether one more hold can be opened and settled without taking the room of the `open_holds` before it."""
        room_bytes = self._capacity - self._offset
        if self._reserve.ready:
            room_bytes += self._reserve.segment_bytes - 2 * self._snapshot_bytes - HOLD_BYTES
        return self._failure is None and room_bytes >= (open_holds + 2) * HOLD_BYTES

    def sync(self) -> None:
        """Waits until everything appended so far is on disk; JournalFailed when it cannot be."""
        with self._lock:
            seq = self.tail_seq
        with self._synced:
            if self._synced_seq < seq and self._failure is None:
                self._hurry.set()
                self._wake.set()
                self._synced.wait_for(lambda: self._synced_seq >= seq or self._failure is not None)
        if self._failure is not None:
            raise JournalFailed(self._failure)

    def close(self) -> None:
        """Makes everything durable and gives up the lock; JournalFailed, after giving it up, when that failed."""
        if self._closing:
            return
        self._closing = True
        self._hurry.set()
        self._wake.set()
        self._committer.join()
        self._commit()
        with self._lock:
            failure, self._failure = self._failure, f"the journal {self.writer} is closed"
        self._pages.close()
        for fd in (self._fd, self._directory_fd):
            os.close(fd)
        if failure is not None:
            raise JournalFailed(failure)

    def _head(self, kind: str) -> bytes:
        if not _KIND.fullmatch(kind):
            raise ValueError(f"not an event kind: {kind!r}")
        head = self._heads[kind] = b',"kind":"%b",' % kind.encode()
        return head

    def _write(self, rest: bytes) -> None:
        """Chains and writes one record whose payload is `{"seq":N` and `rest`. Call with the lock held."""
        seq = self.tail_seq + 1
        payload = b'{"seq":%d%b' % (seq, rest)
        digest = hashlib.sha256(self._tail_sha256 + payload).digest()
        record = HEADER.pack(len(payload), digest) + payload
        # The segment is allocated, so a store into its mapping cannot fail for want of space; like write(2) it is in
        # the page cache when this returns and survives the process, without a system call that waits for an fsync.
        end = self._offset + len(record)
        self._pages[self._offset : end] = record
        self._offset = end
        self.bytes_total += len(record)
        self.tail_seq, self._tail_sha256 = seq, digest

    def _rotate(self, record_bytes: int) -> None:
        """Begins the next segment with a snapshot. Call with the lock held."""
        snapshot = {"previous_sha256": self._tail_sha256.hex(), "event_id": uuid7(), "ts_us": time.time_ns() // 1000}
        rest = self._head(SNAPSHOT) + orjson.dumps(snapshot | self._snapshot(), default=_plain)[1:]
        head_bytes = HEADER_BYTES + _SEQ_BYTES + len(rest)
        if head_bytes > PAYLOAD_BYTES_MAX or head_bytes + record_bytes > self._reserve.segment_bytes:
            raise JournalFull(f"{self.directory}: a snapshot and a record do not fit into one segment; make it larger")
        if not self._reserve.allocate():
            raise JournalFull(f"{self.directory}: no room for another segment; free disk space or raise bytes_max")
        path = segment_path(self.directory, self.tail_seq + 1)
        if self._fd >= 0:
            self._pages.close()
            self._retired.append((self._fd, self._offset))
        self._map(self._reserve.take(path), self._reserve.segment_bytes)
        self._offset = 0
        self._snapshot_bytes = len(rest)
        self._write(rest)

    def _map(self, fd: int, capacity: int) -> None:
        self._fd, self._capacity = fd, capacity
        self._pages = mmap.mmap(fd, capacity)

    def _fail(self, error: Exception) -> str:
        if self._failure is None:
            why = error.strerror if isinstance(error, OSError) else error
            self._failure = f"{self.directory}: {why}; nothing more is taken until a restart"
        with self._synced:
            self._synced.notify_all()
        return self._failure

    def _resume(self) -> None:
        """Finds the end of the last segment that holds a record, and cuts what was not written whole behind it."""
        for path in reversed(segment_paths(self.directory)):
            cursor = Cursor(self.directory, segment=path)
            try:
                head_size = 0
                while records := cursor.take(10_000, 8 << 20):
                    head_size = head_size or len(records[0].payload)
                torn_bytes = cursor.torn_bytes()
                at_bytes = cursor.offset
            finally:
                cursor.close()
            if at_bytes == 0:
                # Rotation was cut before its snapshot stood: the segment before it goes on.
                path.unlink()
                self.cut_bytes += torn_bytes
                continue
            self.tail_seq, self._tail_sha256 = cursor.seq, cursor.sha256
            self._snapshot_bytes = head_size
            self._go_on(path, at_bytes, torn_bytes)
            break
        else:
            self._tail_sha256 = bytes(32)
            self._rotate(0)
        self._dirty = True
        self._wake.set()
        self._reserve.allocate()

    def _go_on(self, path: Path, at_bytes: int, torn_bytes: int) -> None:
        self._fd = os.open(path, os.O_RDWR)
        self._offset = at_bytes
        self._capacity = os.fstat(self._fd).st_size
        if torn_bytes:
            self.cut_bytes += torn_bytes
            os.ftruncate(self._fd, at_bytes)
            self._capacity = at_bytes
        if self._capacity < self._reserve.segment_bytes and path == segment_paths(self.directory)[-1]:
            try:
                os.posix_fallocate(self._fd, 0, self._reserve.segment_bytes)
                self._capacity = self._reserve.segment_bytes
            except OSError:
                # A full disk is an expected answer: the records that exist stand, and room_for() says no.
                self._capacity = os.fstat(self._fd).st_size
        self._map(self._fd, self._capacity)

    def _commit_forever(self) -> None:
        try:
            self._commit_until_closing()
        except Exception as error:
            # Without this thread nothing becomes durable any more: say so to whoever appends, then crash.
            self._fail(error)
            raise

    def _commit_until_closing(self) -> None:
        quiet = 0
        while not self._closing:
            # While appends come this only looks each interval, because waking a thread costs each of them more than
            # they cost; after a quiet while it sleeps until it is woken.
            if quiet > _QUIET_TURNS:
                self._sleep()
                quiet = 0
            else:
                self._hurry.wait(self._interval_s)
            if self._dirty or self._retired:
                self._commit()
                quiet = 0
            else:
                quiet += 1
            if not self._reserve.ready and not self._closing:
                self._reserve.allocate()

    def _sleep(self) -> None:
        self._is_asleep = True
        # An append that came before it could see that flag is seen here; one that comes after sets the event.
        if not self._dirty and not self._retired and not self._closing:
            self._wake.wait(None if self._reserve.ready else _RETRY_S)
        self._is_asleep = False
        self._wake.clear()

    def _commit(self) -> None:
        """Makes durable what was appended before the call, and with it the segments that were left."""
        with self._lock:
            self._dirty = False
            self._hurry.clear()
            seq, fd = self.tail_seq, self._fd
            retired, self._retired = self._retired, []
        try:
            for old_fd, used_bytes in retired:
                os.ftruncate(old_fd, used_bytes)
                self._fdatasync(old_fd)
                os.close(old_fd)
            self._fdatasync(fd)
            if retired or self._synced_seq == 0:
                os.fsync(self._directory_fd)
        except OSError as error:
            self._fail(error)
            return
        with self._synced:
            self.fsyncs_total += 1
            self._synced_seq = seq
            self._synced.notify_all()


def _plain(value: object) -> list[object]:
    """Named tuples, such as charges, as the arrays that they are in the ledger."""
    if isinstance(value, tuple):
        return list(value)
    raise TypeError(f"a record cannot hold a {type(value).__name__}")


def _lock(lock_fd: int, directory: Path) -> None:
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise JournalLocked(f"{directory} is being written by another process; stop it or use another writer") from None
