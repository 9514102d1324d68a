"""`python -m bench`: measure, print the table, keep the rows in `build/bench.json`.

Exits 0 when everything asked for was measured, whether or not targets were met; 1 when a measurement failed; 2 on wrong
usage.
With `--only NAME` the file's other rows stay as an earlier run left them.
"""

import argparse
import importlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, cast

from rich.console import Console

from bench.errors import MeasurementError
from bench.harness import Benchmark, Harness
from bench.row import Row, replace_rows, table
from bench.server import Server
from bench.suite import SUITE

RESULTS: Final = Path("build") / "bench.json"
TABLE_WIDTH_MIN: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Bursar against references.")
    parser.add_argument("--only", default="", metavar="NAME", help="measure this row alone")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the rows are kept")
    parser.add_argument(
        "--gateway",
        default="bench.bursar_server:BursarServer",
        metavar="MODULE:CLASS",
        help="what is measured as ours; bench.server:BareProxyServer measures the noise",
    )
    options = parser.parse_args(arguments)
    chosen = [one for one in SUITE if not options.only or options.only in one.names]
    if not chosen:
        parser.error(f"there is no row {options.only!r}; there are {', '.join(n for one in SUITE for n in one.names)}")
    try:
        gateway = _load(options.gateway)
    except (ImportError, AttributeError, ValueError) as error:
        parser.error(f"--gateway {options.gateway}: {error}")
    signal.signal(signal.SIGTERM, _stop)
    rows, complete = _measure(chosen, gateway)
    replace_rows(options.results, rows, asked=[name for one in chosen for name in one.names])
    console = Console()
    console.width = max(console.width, TABLE_WIDTH_MIN)
    console.print(table(rows))
    return 0 if complete else 1


def _load(reference: str) -> Callable[[], Server]:
    module, name = reference.split(":")
    return cast("Callable[[], Server]", getattr(importlib.import_module(module), name))


def _stop(signum: int, _: object) -> None:
    sys.exit(128 + signum)  # unwinds, so that servers are stopped


def _measure(chosen: Sequence[Benchmark], gateway: Callable[[], Server]) -> tuple[list[Row], bool]:
    progress = Console(stderr=True)
    rows: list[Row] = []
    complete = True
    with Harness(gateway) as harness:
        for one in chosen:
            started_s = time.monotonic()
            try:
                measured = one.measure(harness)
            except (MeasurementError, OSError, subprocess.SubprocessError) as error:
                progress.print(f"{', '.join(one.names)}: FAILED: {error}", markup=False)
                complete = False
                continue
            assert tuple(row.name for row in measured) == one.names
            progress.print(f"{', '.join(one.names)}: measured in {time.monotonic() - started_s:.0f} s", markup=False)
            rows += measured
    return rows, complete


if __name__ == "__main__":
    sys.exit(main())
