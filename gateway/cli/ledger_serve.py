"""`bursar ledger serve`: the ledger of a home over ClickHouse's HTTP interface, in the foreground."""

import signal
import subprocess
from typing import Annotated

import typer

from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption
from gateway.cli.output import complain, console
from gateway.config import Ledger
from gateway.config_file import load
from gateway.home import Home
from gateway.supervisor import ledger_command
from ledger.client import NOT_LOOPBACK, Address, is_loopback, running

PORT = 8123


def serve(
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
    host: Annotated[str | None, typer.Option(help="Instead of ledger.listen_host.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Instead of ledger.listen_port, or 8123; 0: a free one.")
    ] = None,
    expose: Annotated[
        bool, typer.Option("--expose", help="Listen on a host that is not loopback: keys travel in plain HTTP.")
    ] = False,
) -> None:
    """Serve the ledger to ClickHouse's clients, read-only, for whoever has a key."""
    at_home = Home(home)
    client = running(at_home.path)
    if client is not None:
        _say_where(client.address, host, port)
        return
    configured = load(config).config.ledger if config.exists() else Ledger()
    asked = {
        "listen_host": host or configured.listen_host,
        "listen_port": (configured.listen_port or PORT) if port is None else port,
        "listen_exposed": expose or configured.listen_exposed,
    }
    if not (asked["listen_exposed"] or is_loopback(str(asked["listen_host"]))):
        raise typer.BadParameter(f"{NOT_LOOPBACK.format(asked['listen_host'])} with --expose")
    raise typer.Exit(_run(ledger_command(configured.model_copy(update=asked), at_home)))


def _say_where(at: Address, host: str | None, port: int | None) -> None:
    """Says where the ledger is served already; Exit 1 when somewhere else was asked for."""
    where = f"the ledger process of this home listens on {at.host}:{at.port}"
    if port not in (None, 0, at.port) or host not in (None, at.host):
        complain(f"{where}, not where you ask: stop it, or set ledger.listen_host and ledger.listen_port")
        raise typer.Exit(1)
    console().print(f"{where} already", markup=False)


def _run(command: list[str]) -> int:
    """Runs the ledger process until it ends; told to stop, it is stopped, and should this process die, it ends too."""
    with subprocess.Popen([*command, "--announce", "--while-stdin"], stdin=subprocess.PIPE) as process:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: process.terminate())
        return process.wait()
