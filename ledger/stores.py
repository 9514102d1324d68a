"""The stores that a ledger's URL may name."""

from pathlib import Path

from ledger.clickhouse import ServerStore
from ledger.store import Store

AnyStore = Store | ServerStore


def open_store(url: str, home: Path) -> AnyStore:
    """The store of a home. StoreLocked, StoreUnsupported, StoreAway, SchemaRefused."""
    return ServerStore(url, home) if url.startswith(("clickhouse://", "https://")) else Store(url)
