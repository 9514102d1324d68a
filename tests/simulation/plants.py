"""Bugs that are planted into a run on purpose: each is a promise that somebody could forget to keep."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

from domain.charges import Charge
from ledger import recovery
from ledger.book import Book
from ledger.records import Record
from ledger.sequences import Sequences
from ledger.tables import Table
from tests.simulation.disk import ProcessDisk
from tests.simulation.store import Connection
from tests.simulation.world import Planted


class LazyDisk:
    """A disk of which one operation does nothing."""

    def __init__(self, disk: ProcessDisk, skipped: str) -> None:
        self._disk = disk
        self._skipped = skipped

    def __getattr__(self, name: str) -> Any:
        return (lambda *_: None) if name == self._skipped else getattr(self._disk, name)


class TokenlessStore:
    """A store whose client makes up a new token for every try."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._tries = itertools.count()

    def insert(self, table: Table, rows: bytes, token: str) -> None:
        self._connection.insert(table, rows, f"{token}:{id(self)}:{next(self._tries)}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


class UnmendedStore(TokenlessStore):
    """A store whose rollups are taken to be right whatever happened."""

    def insert(self, table: Table, rows: bytes, token: str) -> None:
        self._connection.insert(table, rows, token)

    def mend_rollups(self, writer: str) -> int:
        return 0


def settled_twice(book: Book, records: Iterable[Record], now_s: int, sequences: Sequences) -> int:
    """A recovery that applies the last settlement once more."""
    read = list(records)
    ownerless = recovery.rebuild(book, read, now_s, sequences)
    settlements = [json.loads(record.payload) for record in read if record.kind == "usage"]
    charged = [body["charges"] for body in settlements if body.get("charges")]
    if charged:
        recovery.restore_spent(book, (Charge(*charge) for charge in charged[-1]), now_s)
    return ownerless


def holds_forgotten(book: Book, records: Iterable[Record], now_s: int, sequences: Sequences) -> int:
    """A recovery that does not take up what was held."""
    recovery.rebuild(book, records, now_s, sequences)
    for hold_id in list(book.holds):
        book.void(hold_id)
    return 0


PLANTED = {
    "a journal that never syncs": Planted(disk=lambda disk: LazyDisk(disk, "sync")),
    "a journal that never syncs its directory": Planted(disk=lambda disk: LazyDisk(disk, "sync_directory")),
    "a shipper that forgets its tokens": Planted(store=TokenlessStore),
    "a ledger that never mends its rollups": Planted(store=UnmendedStore),
    "a recovery that settles twice": Planted(rebuild=settled_twice),
    "a recovery that forgets holds": Planted(rebuild=holds_forgotten),
}
