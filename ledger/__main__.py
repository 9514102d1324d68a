"""`python -m ledger`: the ledger process."""

import argparse
import logging
import sys
from pathlib import Path

from ledger.migrations import SchemaRefused
from ledger.process import LedgerProcess
from ledger.shipper import RETENTION_S
from ledger.store import StoreLocked, StoreUnsupported

EXIT_WRONG_USAGE = 2
EXIT_UNAVAILABLE = 3


def main(arguments: list[str] | None = None) -> int:
    """Runs the ledger process; 2 for wrong usage, 3 when the store is locked or of another schema."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    options = _parser().parse_args(arguments)
    home = options.home.resolve()
    process = LedgerProcess(
        home=home,
        url=options.url or f"chdb://{home / 'ledger'}",
        port=options.port,
        port_file=options.port_file or home / "run" / "ledger.json",
        token_file=options.token_file or home / "run" / "ledger.token",
        retention_s=options.retention_s,
        while_stdin=options.while_stdin,
    )
    try:
        return process.run()
    except StoreUnsupported as error:
        sys.stderr.write(f"bursar ledger: {error}\n")
        return EXIT_WRONG_USAGE
    except (StoreLocked, SchemaRefused) as error:
        sys.stderr.write(f"bursar ledger: {error}\n")
        return EXIT_UNAVAILABLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ledger", description="Ships the journals and serves the ledger.")
    parser.add_argument("--home", type=Path, required=True, help="the state directory, with journal/ in it")
    parser.add_argument("--url", help="the store, chdb:///path (default: ledger/ in the home)")
    parser.add_argument("--port", type=int, default=0, help="the loopback port, 0 for a free one")
    parser.add_argument("--port-file", type=Path, help="where to write port and pid (default: run/ledger.json)")
    parser.add_argument("--token-file", type=Path, help="the token; made if missing (default: run/ledger.token)")
    parser.add_argument("--retention-s", type=float, default=RETENTION_S, help="how long shipped segments are kept")
    parser.add_argument("--while-stdin", action="store_true", help="end when standard input is closed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
