"""Journal records: how one event stands in a segment, and how it is bound to the one before.

A record is a little-endian u32 payload length, the 32 bytes of SHA-256(hash of the record before + payload), and the
payload: one JSON object that begins `{"seq":N,"kind":"K",`. JSON holds no NUL byte and fresh segments hold nothing
else, so a NUL inside a record always means bytes that were never written.
"""

import hashlib
import struct
from pathlib import Path
from typing import NamedTuple

HEADER = struct.Struct("<I32s")
HEADER_BYTES = HEADER.size
LENGTH_BYTES = 4
PAYLOAD_BYTES_MAX = 32 << 20
GENESIS_SHA256 = bytes(32)
SNAPSHOT = "snapshot"

_SEQ_AT = len(b'{"seq":')
_KIND_AT = len(b',"kind":"')


class CorruptJournal(Exception):
    """A record that was written whole is no longer what was written."""

    def __init__(self, file: Path, offset: int, seq: int, why: str) -> None:
        super().__init__(f"{file}: record {seq} at byte {offset} {why}; restore the file from a copy, then start again")
        self.file = file
        self.offset = offset
        self.seq = seq
        self.why = why

    def __reduce__(self) -> tuple[type["CorruptJournal"], tuple[Path, int, int, str]]:
        """Pickles by its parts, so that it crosses process borders whole."""
        return (CorruptJournal, (self.file, self.offset, self.seq, self.why))


class Record(NamedTuple):
    """One verified record; `offset` is where it begins in the file `segment`."""

    seq: int
    kind: str
    payload: bytes
    sha256: bytes
    segment: str
    offset: int


def chained(previous_sha256: bytes, payload: bytes) -> bytes:
    """The hash of a record that follows the one whose hash is given."""
    return hashlib.sha256(previous_sha256 + payload).digest()


def envelope(payload: bytes) -> tuple[int, str]:
    """The seq and the kind that a payload begins with; ValueError when it does not begin with them."""
    comma = payload.index(b",", _SEQ_AT)
    kind_at = comma + _KIND_AT
    return int(payload[_SEQ_AT:comma]), payload[kind_at : payload.index(b'"', kind_at)].decode()


def plain(value: object) -> list[object]:
    """Named tuples, such as charges, as the arrays that they are in the ledger."""
    if isinstance(value, tuple):
        return list(value)
    raise TypeError(f"a record cannot hold a {type(value).__name__}")
