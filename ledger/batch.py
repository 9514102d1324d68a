"""Batches: a range of one writer's records frozen into the bytes that each table is sent, now and on every retry."""

import re
from typing import NamedTuple

import orjson

from ledger.records import Record
from ledger.tables import BY_KIND, EVENTS, IN_ORDER, Table

# Records longer than this, which are snapshots, go to `events` without their bodies.
_WHOLE_BYTES_MAX = 16 << 10
_ENVELOPE_KEYS = ("ts_us", "event_id", "kind", "seq", "org", "request_id")
# Of the two kinds that each request has, what `events` needs is cut out of the record: reading all of it as JSON, here
# or in the engine, costs more than its insert. A quote inside a JSON string is escaped, so these match members only.
_HEAD = re.compile(rb'\{("seq":\d+,"kind":"(?:usage|hold)","ts_us":\d+,"event_id":"[^"\\]*")')
_SUBJECT_AT = b',"request_id":"'
_SUBJECT = re.compile(rb',("request_id":"[^"\\]*","org":"[^"\\]*")')


class Line(NamedTuple):
    """One record as a JSON line."""

    seq: int
    table: Table | None
    json: bytes
    event_json: bytes


class Batch(NamedTuple):
    """A contiguous range of records of one writer."""

    writer: str
    lines: tuple[Line, ...]

    @property
    def first_seq(self) -> int:
        """The seq that it begins with."""
        return self.lines[0].seq

    @property
    def last_seq(self) -> int:
        """The seq that it ends with."""
        return self.lines[-1].seq

    def halves(self) -> tuple["Batch", "Batch"]:
        """The same records as two batches, in order; there must be at least two."""
        middle = len(self.lines) // 2
        return Batch(self.writer, self.lines[:middle]), Batch(self.writer, self.lines[middle:])

    def inserts(self, watermarks: dict[str, int]) -> list[tuple[Table, bytes, str]]:
        """What each table still lacks of it: rows and their deduplication token, `events` last."""
        found = []
        for table in IN_ORDER:
            after = watermarks[table.name]
            if table is EVENTS:
                rows = [line.event_json for line in self.lines if line.seq > after]
            else:
                rows = [line.json for line in self.lines if line.table is table and line.seq > after]
            if rows:
                first = max(self.first_seq, after + 1)
                found.append((table, b"\n".join(rows), f"{self.writer}:{first}-{self.last_seq}:{table.name}"))
        return found


def freeze(writer: str, records: list[Record]) -> Batch:
    """The batch of these records, which follow one another."""
    prefix = b'{"writer":' + orjson.dumps(writer) + b',"sha256":"%b",%b'
    lines = []
    for record in records:
        sha256 = record.sha256.hex().encode()
        line = prefix % (sha256, record.payload[1:])
        head = _HEAD.match(record.payload)
        subject = _SUBJECT.match(record.payload, record.payload.find(_SUBJECT_AT))
        if head is not None and subject is not None:
            event = prefix % (sha256, b"%b,%b}" % (head[1], subject[1]))
        else:
            event = line if len(line) <= _WHOLE_BYTES_MAX else _envelope(line)
        lines.append(Line(record.seq, BY_KIND.get(record.kind), line, event))
    return Batch(writer, tuple(lines))


def _envelope(line: bytes) -> bytes:
    body = orjson.loads(line)
    return orjson.dumps({key: body[key] for key in ("writer", "sha256", *_ENVELOPE_KEYS) if key in body})
