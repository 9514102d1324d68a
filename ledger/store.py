"""The store: the ClickHouse engine of the ledger, opened by one process alone."""

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import chdb
import clickhouse_connect
from clickhouse_connect.driver.client import Client

from ledger.migrations import migrate, shipped
from ledger.warehouse import Warehouse


class StoreLocked(Exception):
    """Another process has the store open."""


class StoreUnsupported(Exception):
    """The URL names no store that this Bursar can open."""


class Store(Warehouse):
    """The engine in this process, and a directory that it alone has open."""

    def __init__(self, url: str) -> None:
        """Opens `chdb:///path`, alone, with its schema up to date. StoreLocked, StoreUnsupported, SchemaRefused."""
        self.path = chdb_path(url)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock_fd = _lock(self.path)
        self._clients: list[Client] = []
        try:
            super().__init__(self.connect({}))
            self.migrated = migrate(self, shipped())
        except BaseException:
            self.close()
            raise

    def session(self) -> Any:
        """A connection for a statement of someone else's: chDB's own, which has no types."""
        return chdb.connect(str(self.path.resolve()))  # type: ignore[no-untyped-call] # chDB ships no types

    def settle(self, writer: str) -> None:
        """Returns at once: an insert into an engine in this process ends with the process."""

    def close(self) -> None:
        """Closes the engine and gives up the lock."""
        for client in self._clients:
            client.close()
        os.close(self._lock_fd)

    def connect(self, settings: Mapping[str, object]) -> Client:
        """One more connection to the engine, with these settings for good; it is closed with the store."""
        client = clickhouse_connect.get_client(interface="chdb", path=str(self.path), settings=dict(settings))
        self._clients.append(client)
        return client


def chdb_path(url: str) -> Path:
    """The directory that `chdb:///path` names; StoreUnsupported for any other kind of URL."""
    parts = urlsplit(url)
    if parts.scheme != "chdb" or parts.netloc or not parts.path.strip("/"):
        raise StoreUnsupported(f"{url}: write chdb:///path/of/a/directory")
    return Path(parts.path)


def _lock(path: Path) -> int:
    """Locks the store by a file beside it, which names the process that holds it."""
    lock_path = path.with_name(f"{path.name}.lock")
    fd = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(fd, 32).decode(errors="replace").strip()
        os.close(fd)
        raise StoreLocked(f"the ledger {path} is open in process {holder}; ask that one or stop it") from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd
