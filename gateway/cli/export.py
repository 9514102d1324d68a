"""`bursar ledger export`: the ledger as charges that FinOps tools read, and their check; and as a workload."""

import csv
import errno
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from domain.prices import Prices
from gateway.cli.ledger_query import readers_may_leave
from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption, JsonOption
from gateway.cli.output import complain, console, counted, print_json, print_rows
from gateway.cli.shared_store import in_force
from gateway.cli.store import ledger_of
from gateway.config_file import load
from gateway.home import Home
from gateway.trace_export import TrafficWorkload
from ledger import focus_rules
from ledger.client import LedgerClient
from ledger.focus import COLUMNS, Ask, Basis, Charge, Granularity, Period, Terms, charges
from ledger.reports import moment
from ledger.traffic import Span, requests_of, traffic_of
from runtime.workload.bursar import write_trace

# Far behind every charge that there can be.
_END_S = 1 << 32
_US = 1_000_000
_FINDING_COLUMNS = ("row", "rule", "text")


class Format(StrEnum):
    """What the ledger can be exported as."""

    FOCUS = "focus"
    TRACE = "trace"


def export(
    form: Annotated[Format, typer.Argument(metavar="focus|trace", help="FOCUS 1.2 as CSV, or a workload's trace.")],
    since: Annotated[str, typer.Option(help="From when: 7d, a date, or by default this month.")] = "",
    until: Annotated[str, typer.Option(help="Before when: a date, or by default now.")] = "",
    out: Annotated[
        Path | None, typer.Option(help="The file to write, whole or not at all; or standard output.")
    ] = None,
    granularity: Annotated[Granularity, typer.Option(help="What a charge covers.")] = Granularity.DAY,
    basis: Annotated[Basis, typer.Option(help="Which cost is billed: of tokens, or of accelerators.")] = Basis.LIST,
    provider: Annotated[str, typer.Option(help="Who provides and invoices.")] = "Bursar",
    model: Annotated[str, typer.Option(help="Of a trace: whose requests, where several models served.")] = "",
    check: Annotated[Path | None, typer.Option(help="Check this file by the rules of FOCUS 1.2 instead.")] = None,
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
    as_json: JsonOption = False,
) -> None:
    """Export charges as FOCUS 1.2, or check a file of such charges, or export what came as a trace without any text.

    What is in the journal now is shipped first.
    """
    if check is not None:
        _check(check, as_json=as_json)
        return
    now = datetime.now(UTC)
    start = moment(since, now) if since else now.replace(day=1, hour=0, minute=0, second=0)
    end = moment(until, now) if until else None
    if form is Format.TRACE:
        span = Span(int(start.timestamp()) * _US, int((end or now).timestamp() * _US))
        with ledger_of(home, config) as client:
            _export_trace(client, span, model, out)
        return
    end_s = int(end.timestamp()) if end else _END_S
    prices, rates = _priced(in_force(Home.at(home), config))
    terms = Terms(granularity, basis, provider, prices, rates)
    with ledger_of(home, config) as client:
        client.flush()
        found = charges(_asking(client), terms, Period(int(start.timestamp()), end_s))
        if out is None:
            with readers_may_leave():
                _write(sys.stdout, found)
                sys.stdout.flush()
            return
        with _whole(out) as file:
            count = _write(file, found)
    console().print(f"{count:,} charges in {out}")


def _priced(config: Path) -> tuple[dict[str, Prices], dict[str, int]]:
    """The prices by version and the rates per hour by runtime; none, and a word of it, without a configuration."""
    if not config.exists():
        complain(f"there is no {config}, so no price is known, and every cost is a Difference: name it with --config")
        return {}, {}
    loaded = load(config).config
    prices = {each.version: each for table in loaded.price_tables.values() for _, each in table}
    return prices, {name: rate.nusd_per_hour for name, rate in loaded.gpu_rates.items()}


def _export_trace(client: LedgerClient, span: Span, model: str, out: Path | None) -> None:
    client.flush()
    ask = _asking(client)
    traffic = traffic_of(ask, span, model)
    workload = TrafficWorkload(traffic.model, lambda: requests_of(ask, traffic))
    if out is None:
        with readers_may_leave():
            write_trace(sys.stdout.buffer, workload)
            sys.stdout.buffer.flush()
        _say_unrecorded(workload)
        return
    with _whole(out) as file:
        count = write_trace(file.buffer, workload)
    unknown = f"; {counted(traffic.unknown, 'request')} left out, whose tokens are not known" * bool(traffic.unknown)
    console().print(f"{counted(count, 'request')} of {traffic.model} in {out}{unknown}")
    _say_unrecorded(workload)


def _say_unrecorded(workload: TrafficWorkload) -> None:
    if workload.unrecorded:
        complain(
            f"{counted(workload.unrecorded, 'request')} without prefixes, as where ledger.prompt_blocks is off: "
            "nothing of them can be found in a simulated cache"
        )


def _asking(client: LedgerClient) -> Ask:
    def ask(sql: str, parameters: dict[str, str]) -> list[dict[str, Any]]:
        return client.rows(sql, **parameters)

    return ask


def _write(file: TextIO, found: Iterable[Charge]) -> int:
    """Write charges as CSV, null as an empty field, and return how many there were."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    count = 0
    for charge in found:
        writer.writerow([charge[column] for column in COLUMNS])
        count += 1
    return count


@contextmanager
def _whole(path: Path) -> Iterator[TextIO]:
    """A draft beside the file, which takes its place once all of it is written and is gone when that fails. OSError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder, and a file is asked for")
        with draft.open("x", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)


def _check(path: Path, *, as_json: bool) -> None:
    with path.open(encoding="utf-8-sig", newline="", errors="replace") as file:
        found = focus_rules.check(file)
    rows = [finding._asdict() for finding in found.findings]
    if as_json:
        print_json({"rows": found.rows, "broken": dict(found.broken), "findings": rows})
    elif rows:
        print_rows(f"{path} by the rules of FOCUS 1.2", rows, _FINDING_COLUMNS, as_json=False)
        left_out = found.broken.total() - len(rows)
        console().print(
            f"{found.rows:,} rows, {found.broken.total():,} findings" + (", the first shown" * bool(left_out))
        )
    else:
        console().print(f"{found.rows:,} rows: nothing breaks the rules of FOCUS 1.2")
    if found.broken:
        raise typer.Exit(1)
