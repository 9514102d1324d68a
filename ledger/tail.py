"""The tail of a journal: where its writer stopped, and what behind that place was never written whole."""

from pathlib import Path
from typing import NamedTuple

from ledger.disk import Disk
from ledger.records import GENESIS_SHA256, HEADER_BYTES
from ledger.segments import Cursor, segment_paths


class Tail(NamedTuple):
    """The segment that goes on, None in a journal without a record, and its last record.

    It is whole up to `at_bytes`; `torn_bytes` behind that are not. `cut` are segments that never began, and `cut_bytes`
    what stood in them.
    """

    segment: Path | None
    at_bytes: int
    torn_bytes: int
    head_bytes: int
    seq: int
    sha256: bytes
    cut: tuple[Path, ...]
    cut_bytes: int


def find_tail(directory: Path, disk: Disk) -> Tail:
    """Reads the last segment that has begun to its end; CorruptJournal when it is damaged. Changes nothing.

    A segment begins with a snapshot and the record that made it turn. Where one of the two is not whole, rotation was
    cut, and the segment before it goes on; only the first of all has nothing but a snapshot.
    """
    paths = segment_paths(directory, disk)
    cut: list[Path] = []
    cut_bytes = 0
    for path in reversed(paths):
        cursor = Cursor(directory, segment=path, disk=disk, follows=False)
        try:
            head = cursor.take(1, 1)
            head_bytes = len(head[0].payload) if head else 0
            while cursor.take(10_000, 8 << 20):
                pass
            torn_bytes = cursor.torn_bytes()
        finally:
            cursor.close()
        is_alone = cursor.offset <= HEADER_BYTES + head_bytes
        if head and not (is_alone and path != paths[0]):
            return Tail(path, cursor.offset, torn_bytes, head_bytes, cursor.seq, cursor.sha256, tuple(cut), cut_bytes)
        cut.append(path)
        cut_bytes += torn_bytes
    return Tail(None, 0, 0, 0, 0, GENESIS_SHA256, tuple(cut), cut_bytes)
