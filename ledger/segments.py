"""Segments: the files of a journal, read in order with every hash checked, also while they are being written."""

import json
import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from ledger.disk import SECTOR_BYTES, SYSTEM, Disk, store_again
from ledger.records import (
    GENESIS_SHA256,
    HEADER,
    HEADER_BYTES,
    LENGTH_BYTES,
    PAYLOAD_BYTES_MAX,
    SNAPSHOT,
    CorruptJournal,
    Record,
    chained,
    envelope,
)

CHUNK_BYTES = 1 << 20
_NAME_DIGITS = 20
_SUFFIX = ".seg"
_BATCH_RECORDS = 10_000
_BATCH_BYTES = 8 << 20
# Two NULs stand in every length of a record; a run this long was a block that a power loss kept from the disk.
_LOST_WRITE = re.compile(rb"\0{8}")
_NULS = re.compile(rb"\0+")


class Place(NamedTuple):
    """Where a cursor stands: the last record passed, and where in which segment the next one begins."""

    segment: Path
    offset: int
    seq: int
    sha256: bytes


class _Incomplete(Exception):
    """What stands here was not written whole, so far or ever."""


def segment_path(directory: Path, first_seq: int) -> Path:
    """The file of the segment whose first record has this seq."""
    return directory / f"{first_seq:0{_NAME_DIGITS}d}{_SUFFIX}"


def first_seq(path: Path) -> int:
    """The seq of a segment's first record, which is its name."""
    return int(path.stem)


def segment_paths(directory: Path, disk: Disk = SYSTEM) -> list[Path]:
    """All segments of a journal, oldest first; none when the directory does not exist."""
    try:
        names = disk.names(directory)
    except FileNotFoundError:
        return []
    return [directory / name for name in sorted(names) if name.endswith(_SUFFIX) and len(name) == _NAME_DIGITS + 4]


class Cursor:
    """A place in a journal that moves over its verified records and follows rotation.

    `seq` and `sha256` are those of the last record passed, `segment` and `offset` where the next one begins.
    """

    def __init__(
        self,
        directory: Path,
        after_seq: int = 0,
        *,
        segment: Path | None = None,
        disk: Disk = SYSTEM,
        follows: bool = True,
    ) -> None:
        """Stands behind `after_seq` or before the oldest record still kept; given a `segment`, before its first.

        One that does not follow stays in its segment.
        """
        self.directory = directory
        self._disk = disk
        self._follows = follows
        self.segment: Path | None = None
        self.offset = 0
        self.seq = 0
        self.sha256 = GENESIS_SHA256
        self._anchored = False
        self._fd = -1
        self._has_waited = self._is_named = self._is_stored = False
        self._read_from = 0
        self._chunk = b""
        self._chunk_at = 0
        self._seek_after = after_seq
        if segment is not None:
            self._enter(segment)
        else:
            self._find_segment()

    def _find_segment(self) -> None:
        paths = segment_paths(self.directory, self._disk)
        if not paths:
            return
        # The one that holds the record, although the next may begin right behind it: its hash is to be known.
        holding = [path for path in paths if first_seq(path) <= self._seek_after]
        self._enter(holding[-1] if holding else paths[0])
        while self.seq < self._seek_after and self.take(self._seek_after - self.seq, _BATCH_BYTES):
            pass
        self._read_from = self.offset

    def take(self, records_max: int, bytes_max: int) -> list[Record]:
        """The next records, verified; empty at an end that is still being written. CorruptJournal on damage."""
        records: list[Record] = []
        if self.segment is None:
            self._find_segment()
        elif self.offset == 0 and self._has_waited:
            # A writer that was killed as it began the segment takes it away, and makes another of that name.
            self._enter(self.segment)
        if self.segment is None:
            return records
        bytes_taken = 0
        while len(records) < records_max and bytes_taken < bytes_max:
            bytes_taken += self._take_from_chunk(records, records_max)
            if len(records) == records_max:
                break
            record = self._next()
            if record is None and not self._follow():
                break
            if record is not None:
                records.append(record)
                bytes_taken += len(record.payload)
        self._has_waited = self.offset == 0
        return records

    def place(self) -> Place | None:
        """Where it stands, to stand there again later; None while there is no segment."""
        return Place(self.segment, self.offset, self.seq, self.sha256) if self.segment is not None else None

    @classmethod
    def at(cls, directory: Path, place: Place, disk: Disk = SYSTEM) -> "Cursor":
        """A cursor that stands where another one stood."""
        cursor = cls(directory, segment=place.segment, disk=disk)
        _, cursor.offset, cursor.seq, cursor.sha256 = place
        cursor._read_from = place.offset
        cursor._anchored = place.offset > 0
        return cursor

    def torn_bytes(self) -> int:
        """How much of an unfinished write stands behind the last record; CorruptJournal when it is more than that.

        A killed writer leaves part of one record and nothing behind it; a power loss may also leave holes.
        """
        if self._fd < 0:
            return 0
        size_bytes = self._disk.size_bytes(self._fd)
        rest = self._disk.read(self._fd, size_bytes - self.offset, self.offset).rstrip(b"\0")
        claimed_bytes = HEADER_BYTES + int.from_bytes(rest[:LENGTH_BYTES], "little")
        payload = rest[HEADER_BYTES:]
        if (len(rest) > claimed_bytes or b"\0" in payload) and not self._is_lost_write(rest, claimed_bytes):
            raise self._damage("is damaged and has records after it")
        # Only where a sector ends in the length can it be lost while all behind it reached the disk.
        alone = SECTOR_BYTES - self.offset % SECTOR_BYTES
        is_lost = alone <= LENGTH_BYTES and not any(rest[:alone])
        if self.offset and not is_lost and chained(self.sha256, payload) == rest[LENGTH_BYTES:HEADER_BYTES]:
            raise self._damage("is whole, but its length was changed")
        return len(rest)

    def sync(self) -> None:
        """Makes durable all that has been read, whoever wrote it."""
        if self._fd < 0 or self.segment is None:
            return
        if not self._is_stored:
            # An fsync that failed before this file was opened here is not told, and what it left counts as written.
            store_again(self._disk, self.segment, self._read_from, self.offset)
            self._is_stored = True
        try:
            self._disk.sync(self._fd)
        except OSError:
            self._is_stored = False
            raise
        if not self._is_named:
            # A segment whose name is lost is lost with all that was read of it.
            self._disk.sync_directory(self.directory)
            self._is_named = True

    def close(self) -> None:
        """Closes the file."""
        if self._fd >= 0:
            self._disk.close(self._fd)
            self._fd = -1

    def _enter(self, path: Path) -> None:
        fd = self._disk.open(path)
        self.close()
        self._fd, self.segment, self.offset = fd, path, 0
        self._has_waited = self._is_named = self._is_stored = False
        self._read_from = 0
        self.seq = first_seq(path) - 1
        self._chunk, self._chunk_at = b"", 0

    def _follow(self) -> bool:
        """Moves to the next segment when there is one; CorruptJournal when records between are missing."""
        assert self.segment is not None
        if not self._follows:
            return False
        after = segment_path(self.directory, self.seq + 1)
        paths = segment_paths(self.directory, self._disk)
        if paths[-1:] <= [self.segment]:
            return False
        if after == paths[-1] and not self._has_begun(after):
            return False
        if after in paths and after != self.segment:
            self._enter(after)
            return True
        # Rotation may have happened since the last look: only a second look that still ends here means loss.
        self._chunk = b""
        why = "is missing, but later segments exist"
        if self._next_exists():
            try:
                self._parse()
            except _Incomplete:
                # A writer leaves a segment only when all of it is written.
                why = "is not whole, but later segments exist"
            else:
                return True
        elif after != self.segment and after in segment_paths(self.directory, self._disk):
            return True
        raise CorruptJournal(self.segment, self.offset, self.seq + 1, why)

    def _has_begun(self, path: Path) -> bool:
        """Whether a segment has its snapshot and the record that made it turn: until then a writer may take it away."""
        ahead = Cursor(self.directory, segment=path, disk=self._disk, follows=False)
        try:
            return len(ahead.take(2, 2 * PAYLOAD_BYTES_MAX)) > 1
        finally:
            ahead.close()

    def _is_lost_write(self, rest: bytes, claimed_bytes: int) -> bool:
        """Whether a part of the record that `rest` begins with never reached the disk, as after a power loss.

        Disks write whole sectors, so such a part is of NULs and ends where a sector does.
        """
        if _LOST_WRITE.search(rest) or self._is_lost_header(rest):
            return True
        frame = rest[:claimed_bytes]
        if self.offset == 0 and frame.endswith(b"\0"):
            return True  # a kill ended the copying of the snapshot, which is stored after the record behind it
        return any((self.offset + lost.end()) % SECTOR_BYTES == 0 for lost in _NULS.finditer(frame, HEADER_BYTES))

    def _is_lost_header(self, frame: bytes) -> bool:
        """Whether a header that does not fit its payload lacks only what never reached the disk."""
        in_sector = SECTOR_BYTES - self.offset % SECTOR_BYTES
        if not any(frame[: min(in_sector, LENGTH_BYTES)]):
            return True
        if self.offset == 0 or in_sector >= HEADER_BYTES:
            return False
        length, stored = HEADER.unpack_from(frame.ljust(HEADER_BYTES, b"\0"))
        wanted = chained(self.sha256, frame[HEADER_BYTES : HEADER_BYTES + length])
        return all(byte in (0, right) for byte, right in zip(stored, wanted, strict=True))

    def _next_exists(self) -> bool:
        try:
            return self._slice(LENGTH_BYTES) != bytes(LENGTH_BYTES)
        except _Incomplete:
            return False

    def _next(self) -> Record | None:
        try:
            record = self._parse()
        except (_Incomplete, CorruptJournal):
            record = None
        if record is None:
            # The chunk may be older than the writer's last write: look once more before believing it.
            if not self._disk.read(self._fd, LENGTH_BYTES, self.offset).strip(b"\0"):
                return None
            self._chunk = b""
            try:
                record = self._parse()
            except _Incomplete:
                return None
        if record is not None:
            self.seq, self.sha256, self._anchored = record.seq, record.sha256, True
            self.offset += HEADER_BYTES + len(record.payload)
        return record

    def _take_from_chunk(self, records: list[Record], records_max: int) -> int:
        """Takes the sound records that the chunk holds whole and leaves all others to `_next`; how many bytes."""
        assert self.segment is not None
        chunk, at, started_at = self._chunk, self.offset - self._chunk_at, self.offset
        if self.offset == 0 or not 0 <= at < len(chunk):
            return 0
        name, chunk_at, seq, sha256 = self.segment.name, self._chunk_at, self.seq, self.sha256
        while at + HEADER_BYTES < len(chunk) and len(records) < records_max:
            length, stored = HEADER.unpack_from(chunk, at)
            end = at + HEADER_BYTES + length
            payload = chunk[at + HEADER_BYTES : end]
            if length == 0 or end > len(chunk) or chained(sha256, payload) != stored:
                break
            try:
                said_seq, kind = envelope(payload)
            except ValueError:
                # Left to `_next`, which says what is wrong and where.
                break
            if said_seq != seq + 1:
                break
            records.append(Record(said_seq, kind, payload, stored, name, chunk_at + at))
            at, seq, sha256 = end, said_seq, stored
        self.offset, self.seq, self.sha256 = chunk_at + at, seq, sha256
        return self.offset - started_at

    def _slice(self, size: int) -> bytes:
        at = self.offset - self._chunk_at
        if at < 0 or at + size > len(self._chunk):
            self._chunk = self._disk.read(self._fd, max(CHUNK_BYTES, size), self.offset)
            self._chunk_at = self.offset
            at = 0
        if at + size > len(self._chunk):
            raise _Incomplete
        return self._chunk[at : at + size]

    def _parse(self) -> Record | None:
        """The record at this place; None at a zero length."""
        assert self.segment is not None
        length = int.from_bytes(self._slice(LENGTH_BYTES), "little")
        if length == 0:
            return None
        if length > PAYLOAD_BYTES_MAX:
            raise self._damage(f"claims {length} bytes")
        frame = self._slice(HEADER_BYTES + length)
        sha256 = HEADER.unpack_from(frame)[1]
        payload = frame[HEADER_BYTES:]
        previous = self.sha256
        if self.offset == 0:
            previous = self._head_previous(payload)
        if chained(previous, payload) != sha256:
            if b"\0" in payload or self._is_lost_header(frame):
                raise _Incomplete
            raise self._damage("does not match its hash")
        try:
            seq, kind = envelope(payload)
        except ValueError:
            raise self._damage("does not begin with its seq and kind") from None
        if seq != self.seq + 1:
            raise self._damage(f"says it is record {seq}")
        return Record(seq, kind, payload, sha256, self.segment.name, self.offset)

    def _head_previous(self, payload: bytes) -> bytes:
        """The hash that a segment's first record chains from, which it names itself so that old segments can go."""
        try:
            head = json.loads(payload)
            previous = bytes.fromhex(head["previous_sha256"])
        except (ValueError, KeyError, TypeError):
            if b"\0" in payload:
                raise _Incomplete from None
            raise self._damage("does not open its segment as a snapshot") from None
        known = self._anchored or self.seq == 0
        if head.get("kind") != SNAPSHOT or (known and previous != self.sha256):
            raise self._damage("does not follow the segment before")
        return previous

    def _damage(self, why: str) -> CorruptJournal:
        assert self.segment is not None
        return CorruptJournal(self.segment, self.offset, self.seq + 1, why)


def read(directory: Path, after_seq: int = 0, disk: Disk = SYSTEM) -> Iterator[Record]:
    """Every kept record behind `after_seq`, verified; CorruptJournal on damage in the middle."""
    cursor = Cursor(directory, after_seq, disk=disk)
    yield from _rest(cursor)


def replay_from_snapshot(directory: Path, disk: Disk = SYSTEM) -> Iterator[Record]:
    """The last snapshot and all records that follow it: what a book is rebuilt from.

    A snapshot with nothing behind it is not one yet, unless it is the first: it may tell what the record lost behind it
    would have said.
    """
    paths = segment_paths(directory, disk)
    for path in reversed(paths):
        cursor = Cursor(directory, segment=path, disk=disk)
        head = cursor.take(1, 1)
        following = cursor.take(1, 1) if head else []
        if following or (head and path == paths[0]):
            yield from (*head, *following)
            yield from takewhile(lambda record: record.kind != SNAPSHOT, _rest(cursor))
            return
        cursor.close()


def _rest(cursor: Cursor) -> Iterator[Record]:
    try:
        while records := cursor.take(_BATCH_RECORDS, _BATCH_BYTES):
            yield from records
        cursor.torn_bytes()
    finally:
        cursor.close()
