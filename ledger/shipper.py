"""The shipper: carries records from the journals into the store, each exactly once, and lets old segments go."""

import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise, takewhile
from pathlib import Path
from typing import NamedTuple

import orjson

from domain.ids import uuid7
from ledger.batch import Batch, lines, token_of
from ledger.destination import Destination, InsertFailed, StoreAway
from ledger.disk import SYSTEM, Disk
from ledger.mending import lacking, mend
from ledger.records import HEADER_BYTES, CorruptJournal
from ledger.segments import Cursor, Place, first_seq, segment_paths
from ledger.tables import BY_KIND, EVENTS, IN_ORDER, Table

BATCH_ROWS_MAX = 50_000
BATCH_BYTES_MAX = 64 << 20
BATCH_AGE_S = 5.0  # a round has a price of its own, about 50 ms of CPU for one request with its rollups
RETENTION_S = 7 * 86_400
RETRY_S_MIN = 0.5
RETRY_S_MAX = 30.0
LAG_ROWS_MAX = 100_000
_LAG_BYTES_MAX = 64 << 20
_FAILURES_MAX = 10
_SPLIT_MIN = 2

_log = logging.getLogger("ledger.shipper")


@dataclass(slots=True)
class _Route:
    """One writer's way into the store."""

    directory: Path
    cursor: Cursor | None = None
    opening: str = ""
    watermarks: dict[str, int] = field(default_factory=dict)
    pending: list[Batch] = field(default_factory=list)
    shipped_place: Place | None = None
    head: tuple[Path, bytes] | None = None
    stalled: str = ""
    failures: int = 0
    retry_at_s: float = 0.0
    is_mended: bool = False


class Lag(NamedTuple):
    """How many records of a writer are not in the store yet (counted up to a bound), and the age of the oldest."""

    rows: int
    age_s: float


class JournalReplaced(Exception):
    """The store has records of a writer that its journal does not have."""


class Shipper:
    """Tails every `journals/*/`. `run` is a loop for one thread; the rest may be called from any thread."""

    def __init__(
        self,
        journals: Path,
        store: Destination,
        *,
        batch_age_s: float = BATCH_AGE_S,
        retention_s: float = RETENTION_S,
        sealed: Callable[[Batch], None] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
        disk: Disk = SYSTEM,
    ) -> None:
        """`sealed` is called in `round`'s thread with each batch, in order, once all tables have it.

        After a restart the batches that are in the store already are not told again. `monotonic` and `now` are the
        clocks, in seconds; `chance`, from 0 to 1, spreads retries.
        """
        self._journals = journals
        self._store = store
        self._batch_age_s = batch_age_s
        self._retention_s = retention_s
        self._sealed = sealed
        self._monotonic = monotonic
        self._now = now
        self._chance = chance
        self._disk = disk
        self._routes: dict[str, _Route] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._rounds = threading.Condition()
        self._rounds_begun = 0
        self._rounds_done = 0
        self.rows_total = 0

    def run(self) -> None:
        """Ships until `stop`, and then once more all that is there."""
        while not self._stop.is_set():
            self._wake.wait(self._batch_age_s)
            self._wake.clear()
            self.round()
        self.round()

    def stop(self) -> None:
        """Ends `run` after a last round."""
        self._stop.set()
        self._wake.set()

    def flush(self, timeout_s: float) -> bool:
        """Waits until all that is in the journals now is in the store; False when that takes longer or cannot be."""
        with self._rounds:
            round_needed = self._rounds_begun + 1
            self._wake.set()
            done = self._rounds.wait_for(lambda: self._rounds_done >= round_needed, timeout_s)
        return done and not self.stalled()

    def shipped(self) -> dict[str, int]:
        """For each writer the seq up to which the store has everything."""
        return {name: route.watermarks.get(EVENTS.name, 0) for name, route in list(self._routes.items())}

    def stalled(self) -> dict[str, str]:
        """The writers whose records cannot be shipped, and why."""
        return {name: route.stalled for name, route in list(self._routes.items()) if route.stalled}

    def lag(self) -> dict[str, Lag]:
        """How far the store is behind the journal of each writer."""
        found = {}
        for directory in self._directories():
            route = self._routes.get(directory.name)
            rows, ts_us = _behind(directory, route.shipped_place if route is not None else None, self._disk)
            found[directory.name] = Lag(rows, max(0.0, self._now() - ts_us / 1e6) if rows else 0.0)
        return found

    def round(self) -> None:
        """Ships what every journal holds, batch by batch."""
        with self._rounds:
            self._rounds_begun += 1
            this_round = self._rounds_begun
        directories = self._directories()
        self._forget_others({directory.name for directory in directories})
        for directory in directories:
            route = self._routes.setdefault(directory.name, _Route(directory))
            if self._monotonic() >= route.retry_at_s:
                self._ship_route(route)
        with self._rounds:
            self._rounds_done = this_round
            self._rounds.notify_all()

    def _forget_others(self, writers: set[str]) -> None:
        """A writer whose journal was moved away keeps nobody waiting."""
        for name in self._routes.keys() - writers:
            self._close(self._routes.pop(name))

    def _directories(self) -> list[Path]:
        return self._disk.directories(self._journals)

    def _ship_route(self, route: _Route) -> None:
        try:
            if not route.pending and route.head is not None and self._head(route.head[0]) != route.head:
                # The journal has been replaced, and what is read on would be of the file that is gone.
                self._close(route)
                route.shipped_place = None
            if route.cursor is None:
                self._open(route)
            while self._ship_batch(route):
                pass
            self._remember_head(route)
            self._retire(route)
        except (CorruptJournal, JournalReplaced, InsertFailed, StoreAway) as error:
            self._stall(route, str(error))
        except OSError as error:
            path = error.filename or route.directory
            self._stall(route, f"{path}: {error.strerror or error}; free space there or mend the disk")
        else:
            route.stalled, route.failures = "", 0

    def _stall(self, route: _Route, why: str) -> None:
        """Leaves a route for a while, each time longer; a batch that was begun stays, to be sent as it was."""
        if route.stalled != why:
            _log.error("the journal %s is not shipped: %s", route.directory.name, why)
        route.stalled = why
        wait_s = min(RETRY_S_MIN * 2**route.failures, RETRY_S_MAX)
        route.failures = min(route.failures + 1, _FAILURES_MAX)
        route.retry_at_s = self._monotonic() + wait_s * (0.5 + self._chance() / 2)
        if not route.pending:
            self._close(route)

    def _close(self, route: _Route) -> None:
        """Has a route opened anew when it is next shipped."""
        if route.cursor is not None:
            route.cursor.close()
        route.cursor = route.head = None

    def _head(self, segment: Path) -> tuple[Path, bytes]:
        """What a segment begins with, its first record's hash included: no other file begins so."""
        try:
            fd = self._disk.open(segment)
        except FileNotFoundError:
            return segment, b""
        try:
            return segment, self._disk.read(fd, HEADER_BYTES, 0)
        finally:
            self._disk.close(fd)

    def _remember_head(self, route: _Route) -> None:
        place = route.shipped_place
        if place is not None and place.offset > 0 and (route.head is None or route.head[0] != place.segment):
            route.head = self._head(place.segment)

    def _open(self, route: _Route) -> None:
        """Stands the cursor where the store ends, after seeing that store and journal tell the same story."""
        writer = route.directory.name
        if not route.is_mended:
            self._store.settle(writer)
        route.opening = uuid7()
        route.watermarks = self._store.watermarks(writer)
        after = route.watermarks[EVENTS.name]
        cursor = Cursor(route.directory, after, disk=self._disk)
        paths = segment_paths(route.directory, self._disk)
        kept_from = first_seq(paths[0]) if cursor.segment is not None else after + 1
        if after and (cursor.segment is None or cursor.seq < after):
            cursor.close()
            raise JournalReplaced(f"the store has {after} records, the journal does not join on to them: {_ADVICE}")
        if after >= kept_from and self._store.sha256_at(writer, after) != cursor.sha256.hex():
            cursor.close()
            raise JournalReplaced(f"record {after} is not the one that the store has: {_ADVICE}")
        if kept_from > after + 1:
            _log.warning(_LACKS, after + 1, kept_from - 1, writer)
        route.cursor, route.shipped_place = cursor, cursor.place()
        if not route.is_mended:
            self._mend(route)

    def _mend(self, route: _Route) -> None:
        """Fills, once for each writer, what was lost of the store since it was shipped."""
        insert = partial(self._insert_rows, route.opening)
        for line in mend(self._store, route.directory, self._disk, route.watermarks, insert):
            _log.warning("%s", line)
        route.is_mended = True

    def _insert_rows(self, opening: str, table: Table, batch: Batch) -> None:
        """Inserts all of a batch into one table, in as many parts as it takes."""
        try:
            token = token_of(batch.writer, table, batch.records, opening)
            self._store.insert(table, lines(batch.writer, table, batch.records), token)
        except InsertFailed as error:
            if not error.spans_partitions or len(batch.records) < _SPLIT_MIN:
                raise
            for half in batch.halves():
                self._insert_rows(opening, table, half)

    def _ship_batch(self, route: _Route) -> bool:
        """Ships one batch, a failed one again first; False when the journal has been seen to its end.

        Whoever writes on while it ships does not keep it from ending: their records wait for the next round. A batch
        over a change of month is cut for good, because what is sent again has to be what was sent.
        """
        assert route.cursor is not None
        more = True
        if not route.pending:
            records = route.cursor.take(BATCH_ROWS_MAX, BATCH_BYTES_MAX)
            if not records:
                return False
            size_bytes = sum(len(record.payload) for record in records)
            more = len(records) >= BATCH_ROWS_MAX or size_bytes >= BATCH_BYTES_MAX
            # What the store has must never be lost from the journal: its seqs would be given out again.
            route.cursor.sync()
            route.pending.append(Batch(route.directory.name, tuple(records)))
        while route.pending:
            batch = route.pending[0]
            try:
                self._insert(route, batch)
            except InsertFailed as error:
                if not error.spans_partitions or len(batch.records) < _SPLIT_MIN:
                    raise
                route.pending[:1] = batch.halves()
                continue
            del route.pending[0]
            self.rows_total += len(batch.records)
            if self._sealed is not None:
                self._sealed(batch)
        route.shipped_place = route.cursor.place()
        return more

    def _insert(self, route: _Route, batch: Batch) -> None:
        for table, rows, token in batch.inserts(route.watermarks, route.opening):
            self._store.insert(table, rows, token)
            route.watermarks[table.name] = batch.last_seq
        for table in IN_ORDER:
            route.watermarks[table.name] = max(route.watermarks[table.name], batch.last_seq)

    def _retire(self, route: _Route) -> None:
        """Deletes segments that are old, in the store, and not needed by the writer to start from."""
        going = list(takewhile(partial(self._may_go, route), pairwise(segment_paths(route.directory, self._disk))))
        if going and self._is_lost(route, first_seq(going[-1][1]) - 1):
            _log.error("the store has lost records of %s that it had: no segment goes", route.directory.name)
            self._close(route)
            route.is_mended = False
            return
        for path, _ in going:
            self._disk.unlink(path)
            # One by one also on the medium: a power loss must not bring an older one back and leave a hole behind it.
            self._disk.sync_directory(route.directory)

    def _may_go(self, route: _Route, pair: tuple[Path, Path]) -> bool:
        """Whether the first of two segments has been shipped and is old."""
        path, following = pair
        age_s = self._now() - self._disk.status(path).modified_s
        return first_seq(following) <= route.watermarks[EVENTS.name] and age_s >= self._retention_s

    def _is_lost(self, route: _Route, last_seq: int) -> bool:
        """Whether the store, asked again, lacks records that the journal has; one may have put an older copy back."""
        return any(
            gap.missing > 0 and lacking(self._store, route.directory, self._disk, table, gap)
            for table in (EVENTS, *BY_KIND.values())
            for gap in self._store.gaps(table, route.directory.name, last_seq)
        )


_LACKS = "the store lacks records %d to %d of %s, which the journal has no more: restore a newer copy of it"
_ADVICE = "put the journal back, or start the gateway under another writer name"


def _behind(directory: Path, place: Place | None, disk: Disk) -> tuple[int, int]:
    """How many records stand behind a place, up to a bound, and the time of the first."""
    try:
        cursor = Cursor.at(directory, place, disk) if place is not None else Cursor(directory, disk=disk)
        try:
            records = cursor.take(LAG_ROWS_MAX, _LAG_BYTES_MAX)
        finally:
            cursor.close()
    except CorruptJournal:
        # The shipper says so by itself; the records before the damage are shipped.
        return 0, 0
    return len(records), int(orjson.loads(records[0].payload).get("ts_us", 0)) if records else 0
