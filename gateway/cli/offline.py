"""Offline: the books, journals and keys of a home whose gateways do not run."""

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


def replicas(home: Home, config: Path) -> list[str]:
    """The gateways of a home that have a book here: one, unless they share a book and have left a journal each."""
    known = assembly.replicas(home) if load(config).config.book.is_shared else []
    return known or [assembly.REPLICA]


@contextmanager
def opened(home: Home, config: Path, replica: str | None = None) -> Iterator[tuple[Book, Controls]]:
    """The rebuilt book of a gateway, the first unless named, and the controls over it.

    Its journal is locked meanwhile, so it cannot start.
    """
    name = replica or replicas(home, config)[0]
    pseudonyms = Pseudonyms(home.secret("pseudonym"))
    book = assembly.open_book(home, load(config).config, pseudonyms, system_now_us, name)
    try:
        yield book.book, Controls(book.book, book.journal, KeyStore(home.keys), system_now_us)
    finally:
        book.journal.close()
