"""Store: the ledger of a home that is there, for the commands that ask it."""

from contextlib import AbstractContextManager
from pathlib import Path

from gateway.config_file import load
from gateway.home import Home
from ledger.client import LedgerClient, open_ledger


def ledger_of(home: Path, config: Path) -> AbstractContextManager[LedgerClient]:
    """The ledger of a home, opened for as long as the block lasts. HomeError, ConfigError, LedgerUnavailable."""
    return open_ledger(Home.at(home).path, ledger_url(home, config))


def ledger_url(home: Path, config: Path) -> str:
    """The store's URL; without a configuration file it is the home's own. ConfigError."""
    if not config.exists():
        return f"chdb://{home.absolute() / 'ledger'}"
    return load(config).config.ledger.store_url(home.absolute())
