"""Batches: a range of one writer's records, and the bytes that each table is sent of it, now and on every retry."""

import re
from collections.abc import Iterator, Mapping, Sequence
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


class Batch(NamedTuple):
    """A contiguous range of records of one writer, which never change: so what is made of them never does either."""

    writer: str
    records: tuple[Record, ...]

    @property
    def first_seq(self) -> int:
        """The seq that it begins with."""
        return self.records[0].seq

    @property
    def last_seq(self) -> int:
        """The seq that it ends with."""
        return self.records[-1].seq

    def halves(self) -> tuple["Batch", "Batch"]:
        """The same records as two batches, in order; there must be at least two."""
        middle = len(self.records) // 2
        return Batch(self.writer, self.records[:middle]), Batch(self.writer, self.records[middle:])

    def inserts(self, watermarks: Mapping[str, int], opening: str) -> Iterator[tuple[Table, bytes, str]]:
        """What each table still lacks of it, given the highest seq it has: JSON lines and their deduplication token.

        `opening` names the look at the store that the watermarks are from. `events` comes last. Nothing is made before
        it is asked for, so that one table's lines are in memory at a time.
        """
        for table in IN_ORDER:
            after = watermarks[table.name]
            records = [
                record
                for record in self.records
                if record.seq > after and (table is EVENTS or BY_KIND.get(record.kind) is table)
            ]
            if records:
                yield table, lines(self.writer, table, records), token_of(self.writer, table, records, opening)


def token_of(writer: str, table: Table, records: Sequence[Record], opening: str) -> str:
    """Names an insert, so that a retry is known for one.

    It ends with the opening, because the engine remembers tokens for longer than rows may live: what is lost of the
    store and sent again later is no retry, and would be dropped without a word.
    """
    return f"{writer}:{records[0].seq}-{records[-1].seq}:{table.name}:{opening}"


def lines(writer: str, table: Table, records: Sequence[Record]) -> bytes:
    """These records as the JSON lines that a table takes."""
    head = b'{"writer":' + orjson.dumps(writer) + b","
    if table is EVENTS:
        return b"\n".join([_event(head, record) for record in records])
    return b"\n".join([head + record.payload[1:] for record in records])


def _event(head: bytes, record: Record) -> bytes:
    payload = record.payload
    start = _HEAD.match(payload)
    subject = _SUBJECT.match(payload, payload.find(_SUBJECT_AT))
    if start is not None and subject is not None:
        return b'%b"sha256":"%b",%b,%b}' % (head, record.sha256.hex().encode(), start[1], subject[1])
    line = b'%b"sha256":"%b",%b' % (head, record.sha256.hex().encode(), payload[1:])
    if len(line) <= _WHOLE_BYTES_MAX:
        return line
    body = orjson.loads(line)
    return orjson.dumps({key: body[key] for key in ("writer", "sha256", *_ENVELOPE_KEYS) if key in body})
