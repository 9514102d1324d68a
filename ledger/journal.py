"""The journal: one writer's append-only, hash-chained record of what happened, on disk before anything acts on it."""

import hashlib
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from domain.ids import uuid7
from ledger.disk import SYSTEM, Disk, Pages
from ledger.journal_errors import JournalError, JournalFailed, JournalFull, JournalLocked
from ledger.records import HEADER, HEADER_BYTES, PAYLOAD_BYTES_MAX, SNAPSHOT, CorruptJournal, plain
from ledger.reserve import Reserve
from ledger.segments import segment_path
from ledger.tail import find_tail

__all__ = ["CorruptJournal", "Journal", "JournalError", "JournalFailed", "JournalFull", "JournalLocked"]

SEGMENT_BYTES = 64 << 20
BYTES_MAX = 8 << 30
FSYNC_INTERVAL_MS = 10
HOLD_BYTES = 8 << 10
_RETRY_S = 1.0
_RETRY_TURNS = 100
_QUIET_TURNS = 100
_KIND = re.compile(r"[a-z][a-z_]{0,63}")
_OWN_KEYS = frozenset({"seq", "kind"})
_SEQ_BYTES = len('{"seq":') + 20
RECORD_BYTES_MAX = 1 << 20


def system_now_us() -> int:
    """Unix time in microseconds."""
    return time.time_ns() // 1000


class Journal:
    """An open journal; `append` may be called from any thread. Make one with `Journal.open`."""

    def __init__(
        self,
        directory: Path,
        lock_fd: int,
        snapshot: Callable[[], dict[str, Any]],
        reserve: Reserve,
        fsync_interval_ms: int,
        disk: Disk,
        now_us: Callable[[], int],
    ) -> None:
        self.directory = directory
        self.writer = directory.name
        self.fsyncs_total = 0
        self.bytes_total = 0
        self.cut_bytes = 0
        self.tail_seq = 0
        self._tail_sha256 = b""
        self._lock_fd = lock_fd
        self._snapshot = snapshot
        self._snapshot_bytes = HOLD_BYTES
        self._expected_bytes = 0
        self._reserve = reserve
        self._interval_s = fsync_interval_ms / 1000
        self._disk = disk
        self._now_us = now_us
        self._lock = threading.Lock()
        self._synced = threading.Condition()
        self._synced_seq = 0
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._fd = -1
        self._pages: Pages
        self._offset = 0
        self._capacity = 0
        self._dirty = False
        self._is_asleep = False
        self._retired: list[tuple[int, int]] = []
        # Names given to segments, and how many of them are on the medium.
        self._names = 0
        self._names_synced = -1
        self.failure: str | None = None
        self._closing = False
        self._heads: dict[str, bytes] = {}
        self._committer: threading.Thread | None = None

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        fsync_interval_ms: int = FSYNC_INTERVAL_MS,
        bytes_max: int = BYTES_MAX,
        snapshot: Callable[[], dict[str, Any]],
        disk: Disk = SYSTEM,
        now_us: Callable[[], int] = system_now_us,
        commits_itself: bool = True,
    ) -> "Journal":
        """Locks the directory, cuts a torn tail and goes on where the writer stopped.

        `snapshot()` is asked at the start of every segment for a body from which all records before it can be
        forgotten. It runs inside `append`, before the record being appended, which it may already contain; it must not
        append itself. Unless it `commits_itself`, with a thread, whoever opened it calls `commit`.
        JournalLocked when another process has it, CorruptJournal when the last segment is damaged, JournalFull when a
        new journal finds no room for its first segment, JournalFailed when the disk does not do as it is asked.
        """
        try:
            disk.make_directory(directory)
            lock_fd = disk.lock(directory)
        except BlockingIOError:
            why = f"{directory} is being written by another process; stop it or use another writer"
            raise JournalLocked(why) from None
        except OSError as refused:
            raise JournalFailed(f"{directory}: {refused.strerror}; mend the disk, then start again") from refused
        try:
            reserve = Reserve(directory, segment_bytes, bytes_max, disk)
            journal = cls(directory, lock_fd, snapshot, reserve, fsync_interval_ms, disk, now_us)
            journal._resume()
        except OSError as failed:
            disk.close(lock_fd)
            raise JournalFailed(f"{directory}: {failed.strerror}; mend the disk, then start again") from failed
        except BaseException:
            disk.close(lock_fd)
            raise
        if commits_itself:
            name = f"fsync {journal.writer}"
            journal._committer = threading.Thread(target=journal._commit_forever, name=name, daemon=True)
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
            body = {"ts_us": self._now_us(), **body}
        rest = head + orjson.dumps(body, default=plain)[1:]
        if members:
            rest = b"%b,%b}" % (rest[:-1], members)
        size_bytes = HEADER_BYTES + _SEQ_BYTES + len(rest)
        if size_bytes > RECORD_BYTES_MAX:
            raise ValueError(f"a record of {size_bytes} bytes is over the limit of {RECORD_BYTES_MAX}")
        with self._lock:
            if self.failure is not None:
                raise JournalFailed(self.failure)
            if self._offset + size_bytes > self._capacity:
                self._rotate(rest)
            else:
                self._write(rest)
            self._dirty = True
            if self._is_asleep:
                self._wake.set()
            return self.tail_seq

    def room_for(self, open_holds: int) -> bool:
        """Whether one more hold can be opened and settled without taking the room of the `open_holds` before it."""
        room_bytes, snapshot_bytes = self._capacity - self._offset, max(self._snapshot_bytes, self._expected_bytes)
        if self._reserve.ready and snapshot_bytes <= PAYLOAD_BYTES_MAX:
            room_bytes += max(0, self._reserve.segment_bytes - 2 * snapshot_bytes - HOLD_BYTES)
        return self.failure is None and room_bytes >= (open_holds + 2) * HOLD_BYTES

    def expect_snapshot(self, size_bytes: int) -> None:
        """Says how large a snapshot would be now: `room_for` counts on no segment that it would not fit into."""
        self._expected_bytes = size_bytes

    def sync(self) -> None:
        """Waits until everything appended so far is on disk; JournalFailed when it cannot be."""
        with self._lock:
            seq = self.tail_seq
        if self._committer is None:
            self.commit()
        with self._synced:
            if self._synced_seq < seq and self.failure is None:
                self._hurry.set()
                self._wake.set()
                self._synced.wait_for(lambda: self._synced_seq >= seq or self.failure is not None)
        if self.failure is not None:
            raise JournalFailed(self.failure)

    def commit(self) -> None:
        """Makes durable what is not yet, and makes room ahead: what the thread does every interval."""
        if self._dirty or self._retired:
            self._commit()
        try:
            self._reserve.allocate()
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        """Makes everything durable and gives up the lock; JournalFailed, after giving it up, when that failed."""
        if self._closing:
            return
        self._closing = True
        self._hurry.set()
        self._wake.set()
        if self._committer is not None:
            self._committer.join()
        if self.failure is None:
            self._commit()
        with self._lock:
            failure, self.failure = self.failure, f"the journal {self.writer} is closed"
        self._pages.close()
        self._reserve.close()
        for fd in (self._fd, self._lock_fd):
            self._disk.close(fd)
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

    def _rotate(self, rest: bytes) -> None:
        """Begins the next segment with a snapshot and, behind it, what `_write` would write. Call with the lock held.

        The snapshot may hold already what that record says, so neither may outlive the other. The record is stored
        first: no kill leaves the snapshot alone. A power loss may, and then `_resume` takes the segment away.
        """
        now_us = self._now_us()
        envelope = {"previous_sha256": self._tail_sha256.hex(), "event_id": uuid7(now_us // 1000), "ts_us": now_us}
        head = self._head(SNAPSHOT) + orjson.dumps(envelope | self._snapshot(), default=plain)[1:]
        seq = self.tail_seq + 1
        payload = b'{"seq":%d%b' % (seq, head)
        size_bytes = HEADER_BYTES + len(payload)
        needed_bytes = size_bytes + HEADER_BYTES + _SEQ_BYTES + len(rest)
        if len(payload) > PAYLOAD_BYTES_MAX or needed_bytes > self._reserve.segment_bytes:
            why = f"a snapshot of {size_bytes >> 20} MiB and a record do not fit into one segment"
            raise JournalFull(f"{self.directory}: {why}; make segment_bytes larger, or have fewer counters")
        self._enter(segment_path(self.directory, seq))
        digest = hashlib.sha256(self._tail_sha256 + payload).digest()
        self._snapshot_bytes = len(payload)
        self._offset, self.bytes_total = size_bytes, self.bytes_total + size_bytes
        self.tail_seq, self._tail_sha256 = seq, digest
        if rest:
            self._write(rest)
        self._pages[0:size_bytes] = HEADER.pack(len(payload), digest) + payload

    def _enter(self, path: Path) -> None:
        """Leaves the segment for a new one of that name; JournalFull leaves everything as it was."""
        full = f"{self.directory}: no room for another segment; free disk space or raise bytes_max"
        try:
            if not self._reserve.allocate():
                raise JournalFull(full)
            self._settle_names()
            taken = self._reserve.take(path)
        except OSError as error:
            self._store_again()
            raise JournalFailed(self._fail(error)) from error
        if taken is None:
            raise JournalFull(full)
        if self._fd >= 0:
            self._pages.close()
            self._retired.append((self._fd, self._offset))
        self._fd, self._pages = taken
        self._capacity = self._reserve.segment_bytes
        self._names += 1

    def _settle_names(self) -> None:
        """Makes the segment durable, its name too, before another follows it.

        No power loss can then keep a later segment and lose records of an earlier one: such a journal would not join.
        """
        if self._fd >= 0 and self._synced_seq < self.tail_seq:
            self._disk.sync(self._fd)
        if self._fd >= 0 and self._names_synced < self._names:
            self._disk.sync_directory(self.directory)
            self._names_synced = self._names

    def _fail(self, error: Exception) -> str:
        if self.failure is None:
            why = error.strerror if isinstance(error, OSError) else error
            self.failure = f"{self.directory}: {why}; nothing more is taken until a restart"
        with self._synced:
            self._synced.notify_all()
        return self.failure

    def _resume(self) -> None:
        """Goes on where the writer stopped, and cuts what was not written whole behind that."""
        tail = find_tail(self.directory, self._disk)
        for path in tail.cut:
            self._disk.unlink(path)
        self.cut_bytes = tail.cut_bytes + tail.torn_bytes
        self.tail_seq, self._tail_sha256 = tail.seq, tail.sha256
        if tail.segment is None:
            self._rotate(b"")
        else:
            self._snapshot_bytes = tail.head_bytes
            self._go_on(tail.segment, tail.at_bytes, tail.torn_bytes)
        self._dirty = True
        self._reserve.allocate()

    def _go_on(self, path: Path, at_bytes: int, torn_bytes: int) -> None:
        self._fd = self._disk.open_writable(path)
        if torn_bytes:
            self._disk.truncate(self._fd, at_bytes)
        self._offset, self._capacity = at_bytes, self._disk.size_bytes(self._fd)
        if self._capacity < self._reserve.segment_bytes:
            # A full disk is an expected answer: the records that exist stand, and room_for() says no.
            with suppress(OSError):
                self._disk.allocate(self._fd, self._reserve.segment_bytes)
            self._capacity = self._disk.size_bytes(self._fd)
        self._pages = self._disk.map(self._fd, self._capacity)
        # What an fsync of the last run failed to write is written now, and what was cut goes from the medium before
        # anything is stored in its place: it must not come back behind that.
        self._store_again()
        self._disk.sync(self._fd)

    def _store_again(self) -> None:
        """Has all of the segment written with the next fsync, as `Cursor.sync` has what it read."""
        if self._fd >= 0:
            self._pages[0 : self._offset] = self._pages[0 : self._offset]

    def _commit_forever(self) -> None:
        try:
            self._commit_until_closing()
        except Exception as error:
            # Without this thread nothing becomes durable any more: say so to whoever appends, then crash.
            self._fail(error)
            raise

    def _commit_until_closing(self) -> None:
        quiet, turn, retry_turn = 0, 0, 0
        while not self._closing:
            # While appends come this only looks each interval, because waking a thread costs each of them more than
            # they cost; after a quiet while it sleeps until it is woken.
            turn += 1
            if quiet > _QUIET_TURNS:
                self._sleep()
                quiet, retry_turn = 0, turn
            else:
                self._hurry.wait(self._interval_s)
            if self._dirty or self._retired:
                self._commit()
                quiet = 0
            else:
                quiet += 1
            if not self._reserve.ready and not self._closing and turn >= retry_turn and not self._reserve.allocate():
                retry_turn = turn + _RETRY_TURNS

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
            seq, fd, names = self.tail_seq, self._fd, self._names
            retired, self._retired = self._retired, []
        try:
            for old_fd, used_bytes in retired:
                self._disk.truncate(old_fd, used_bytes)
                self._disk.close(old_fd)
            self._disk.sync(fd)
            if self._names_synced < names:
                self._disk.sync_directory(self.directory)
                self._names_synced = names
        except OSError as error:
            self._fail(error)
            with self._lock:
                self._store_again()
            return
        with self._synced:
            self.fsyncs_total += 1
            self._synced_seq = seq
            self._synced.notify_all()
