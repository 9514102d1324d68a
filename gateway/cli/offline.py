"""Offline: the book, journal and keys of a home whose gateway does not run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway import assembly
from gateway.config_file import load
from gateway.controls import Controls
from gateway.governance import system_now_us
from gateway.home import Home
from gateway.keys import KeyStore
from gateway.pseudonyms import Pseudonyms
from ledger.book import Book


@contextmanager
def opened(home: Home, config: Path) -> Iterator[tuple[Book, Controls]]:
    """The rebuilt book and the controls over it; the journal is locked meanwhile, so no gateway can start."""
    pseudonyms = Pseudonyms(home.secret("pseudonym"))
    book = assembly.open_book(home, load(config).config, pseudonyms, system_now_us)
    try:
        yield book.book, Controls(book.book, book.journal, KeyStore(home.keys), system_now_us)
    finally:
        book.journal.close()
