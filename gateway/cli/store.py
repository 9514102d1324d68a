"""Store: where the ledger of a home lies, for the commands that ask it."""

from pathlib import Path

from gateway.config_file import load
from gateway.home import Home


def ledger_url(home: Path, config: Path) -> str:
    """The store's URL; without a configuration file it is the home's own. ConfigError."""
    if not config.exists():
        return f"chdb://{Home(home).path / 'ledger'}"
    return load(config).config.ledger.store_url(Home(home).path)
