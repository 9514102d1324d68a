"""`python -m ledger`: the ledger process."""

import argparse
import logging
import os
import sys
from pathlib import Path

from ledger.client import NOT_LOOPBACK, is_loopback
from ledger.destination import StoreAway
from ledger.exports import TargetRefused
from ledger.migrations import SchemaRefused
from ledger.process import LedgerProcess, PortTaken
from ledger.shipper import RETENTION_S
from ledger.signing import KeyRefused
from ledger.store import StoreLocked, StoreUnsupported

EXIT_WRONG_USAGE = 2
EXIT_UNAVAILABLE = 3


def main(arguments: list[str] | None = None) -> int:
    """Runs the ledger process; 2 for wrong usage, 3 when store, port or home cannot be used."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    options = _parser().parse_args(arguments)
    home = options.home.resolve()
    process = LedgerProcess(
        home=home,
        url=options.url or f"chdb://{home / 'ledger'}",
        host=options.host,
        port=options.port,
        port_file=options.port_file or home / "run" / "ledger.json",
        token_file=options.token_file or home / "run" / "ledger.token",
        retention_s=options.retention_s,
        while_stdin=options.while_stdin,
        announce=options.announce,
        checkpoint_targets=tuple(options.checkpoint_target),
        checkpoint_token=os.environ.get(options.checkpoint_token_env, ""),
    )
    if not (options.exposed or is_loopback(options.host)):
        sys.stderr.write(f"bursar ledger: {NOT_LOOPBACK.format(options.host)}\n")
        return EXIT_WRONG_USAGE
    try:
        return process.run()
    except (StoreUnsupported, TargetRefused, KeyRefused) as error:
        sys.stderr.write(f"bursar ledger: {error}\n")
        return EXIT_WRONG_USAGE
    except (StoreLocked, StoreAway, SchemaRefused, PortTaken) as error:
        sys.stderr.write(f"bursar ledger: {error}\n")
        return EXIT_UNAVAILABLE
    except OSError as error:
        what = f"{error.filename or home}: {error.strerror or error}"
        sys.stderr.write(f"bursar ledger: {what}; free space or mend the home, then start again\n")
        return EXIT_UNAVAILABLE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ledger", description="Ships the journals and serves the ledger.")
    parser.add_argument("--home", type=Path, required=True, help="the state directory, with journal/ in it")
    parser.add_argument("--url", help="the store, chdb:///path or clickhouse://host:8123/db (default: the home)")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=0, help="the port, 0 for a free one")
    parser.add_argument("--exposed", action="store_true", help="listen where other machines reach it, without TLS")
    parser.add_argument("--announce", action="store_true", help="say on standard output where it listens")
    parser.add_argument("--port-file", type=Path, help="where to write port and pid (default: run/ledger.json)")
    parser.add_argument("--token-file", type=Path, help="the token; made if missing (default: run/ledger.token)")
    parser.add_argument("--retention-s", type=float, default=RETENTION_S, help="how long shipped segments are kept")
    parser.add_argument("--checkpoint-target", action="append", default=[], help="a URL that checkpoints are sent to")
    parser.add_argument("--checkpoint-token-env", default="", help="the variable with the targets' bearer token")
    parser.add_argument("--while-stdin", action="store_true", help="end when standard input is closed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
