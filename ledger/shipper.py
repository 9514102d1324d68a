"""The shipper: carries records from the journals into the store, each exactly once, and lets old segments go."""

import logging
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import orjson

from ledger.batch import Batch, freeze
from ledger.records import CorruptJournal
from ledger.segments import Cursor, Place, first_seq, segment_paths
from ledger.store import InsertFailed, Store
from ledger.tables import EVENTS, IN_ORDER

BATCH_ROWS_MAX = 10_000
BATCH_BYTES_MAX = 32 << 20
BATCH_AGE_S = 2.0  # an insert has a price of its own, about 20 ms of CPU for a batch of one row
RETENTION_S = 7 * 86_400
RETRY_S = 5.0
LAG_ROWS_MAX = 100_000
_LAG_BYTES_MAX = 64 << 20

_log = logging.getLogger("ledger.shipper")


@dataclass(slots=True)
class _Route:
    """One writer's way into the store."""

    directory: Path
    cursor: Cursor | None = None
    watermarks: dict[str, int] = field(default_factory=dict)
    pending: Batch | None = None
    shipped_place: Place | None = None
    stalled: str = ""
    retry_at_s: float = 0.0


class JournalReplaced(Exception):
    """The store has records of a writer that its journal does not have."""


class Shipper:
    """Tails every `journals/*/`. `run` is a loop for one thread; the rest may be called from any thread."""

    def __init__(
        self, journals: Path, store: Store, *, batch_age_s: float = BATCH_AGE_S, retention_s: float = RETENTION_S
    ) -> None:
        self._journals = journals
        self._store = store
        self._batch_age_s = batch_age_s
        self._retention_s = retention_s
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

    def lag(self) -> tuple[int, float]:
        """How many records are not in the store yet (counted up to a bound), and the age in seconds of the oldest."""
        rows, oldest_us = 0, 0
        for directory in self._directories():
            route = self._routes.get(directory.name)
            behind, ts_us = _behind(directory, route.shipped_place if route is not None else None)
            rows += behind
            oldest_us = min(filter(None, (oldest_us, ts_us)), default=0)
        return rows, max(0.0, time.time() - oldest_us / 1e6) if oldest_us else 0.0

    def round(self) -> None:
        """Ships what every journal holds, batch by batch."""
        with self._rounds:
            self._rounds_begun += 1
            this_round = self._rounds_begun
        for directory in self._directories():
            route = self._routes.setdefault(directory.name, _Route(directory))
            if time.monotonic() >= route.retry_at_s:
                self._ship_route(route)
        with self._rounds:
            self._rounds_done = this_round
            self._rounds.notify_all()

    def _directories(self) -> list[Path]:
        if not self._journals.is_dir():
            return []
        return sorted(path for path in self._journals.iterdir() if path.is_dir())

    def _ship_route(self, route: _Route) -> None:
        try:
            if route.cursor is None:
                self._open(route)
            while self._ship_batch(route):
                pass
            self._retire(route)
        except (CorruptJournal, JournalReplaced, InsertFailed, OSError) as error:
            if route.stalled != str(error):
                _log.error("the journal %s is not shipped: %s", route.directory.name, error)
            route.stalled = str(error)
            route.retry_at_s = time.monotonic() + RETRY_S
            if route.pending is None and route.cursor is not None:
                route.cursor.close()
                route.cursor = None
        else:
            route.stalled = ""

    def _open(self, route: _Route) -> None:
        """Stands the cursor where the store ends, after seeing that store and journal tell the same story."""
        writer = route.directory.name
        route.watermarks = self._store.watermarks(writer)
        after = route.watermarks[EVENTS.name]
        cursor = Cursor(route.directory, after)
        kept_from = first_seq(segment_paths(route.directory)[0]) if cursor.segment is not None else after + 1
        if after and (cursor.segment is None or cursor.seq != after or kept_from > after + 1):
            cursor.close()
            raise JournalReplaced(f"the store has {after} records, the journal does not join on to them: {_ADVICE}")
        if after >= kept_from and self._store.sha256_at(writer, after) != cursor.sha256.hex():
            cursor.close()
            raise JournalReplaced(f"record {after} is not the one that the store has: {_ADVICE}")
        if kept_from > after + 1:
            _log.warning("the journal %s begins at record %d: those before are not in this store", writer, kept_from)
        route.cursor, route.shipped_place = cursor, cursor.place()

    def _ship_batch(self, route: _Route) -> bool:
        """Ships one batch, a failed one again first; False when the journal has been seen to its end.

        Whoever writes on while it ships does not keep it from ending: their records wait for the next round.
        """
        assert route.cursor is not None
        more = True
        if route.pending is None:
            records = route.cursor.take(BATCH_ROWS_MAX, BATCH_BYTES_MAX)
            if not records:
                return False
            size_bytes = sum(len(record.payload) for record in records)
            more = len(records) >= BATCH_ROWS_MAX or size_bytes >= BATCH_BYTES_MAX
            # What the store has must never be lost from the journal: its seqs would be given out again.
            route.cursor.sync()
            route.pending = freeze(route.directory.name, records)
        self._insert(route, route.pending)
        route.shipped_place = route.cursor.place()
        self.rows_total += len(route.pending.lines)
        route.pending = None
        return more

    def _insert(self, route: _Route, batch: Batch) -> None:
        try:
            for table, rows, token in batch.inserts(route.watermarks):
                self._store.insert(table, rows, token)
                route.watermarks[table.name] = batch.last_seq
        except InsertFailed as error:
            if not error.spans_partitions or len(batch.lines) < 2:
                raise
            for half in batch.halves():
                self._insert(route, half)
            return
        for table in IN_ORDER:
            route.watermarks[table.name] = max(route.watermarks[table.name], batch.last_seq)

    def _retire(self, route: _Route) -> None:
        """Deletes segments that are old, in the store, and not needed by the writer to start from."""
        shipped_seq = route.watermarks[EVENTS.name]
        paths = segment_paths(route.directory)
        for path, following in pairwise(paths):
            if first_seq(following) > shipped_seq or time.time() - path.stat().st_mtime < self._retention_s:
                return
            path.unlink()


_ADVICE = "put the journal back, or start the gateway under another writer name"


def _behind(directory: Path, place: Place | None) -> tuple[int, int]:
    """How many records stand behind a place, up to a bound, and the time of the first."""
    try:
        cursor = Cursor.at(directory, place) if place is not None else Cursor(directory)
        try:
            records = cursor.take(LAG_ROWS_MAX, _LAG_BYTES_MAX)
        finally:
            cursor.close()
    except CorruptJournal:
        # The shipper says so by itself; the records before the damage are shipped.
        return 0, 0
    return len(records), int(orjson.loads(records[0].payload).get("ts_us", 0)) if records else 0
