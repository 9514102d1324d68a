"""`bursar up` and `bursar serve`: everything embedded under one supervisor, or the gateway alone."""

import asyncio
import gc
import logging
import os
import re
import sys
from typing import Annotated

import structlog
import typer
import uvloop

from gateway.assembly import REPLICA
from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption
from gateway.cli.output import console
from gateway.composition import Unready
from gateway.config_file import LoadedConfig, load
from gateway.home import Home
from gateway.supervisor import Supervisor, parts_of
from gateway.worker import Worker

PortOption = Annotated[
    int | None, typer.Option("--port", min=0, max=65535, help="Instead of listen.port; 0: a free one.")
]
AdminPortOption = Annotated[
    int | None, typer.Option("--admin-port", min=0, max=65535, help="Instead of listen.admin_port.")
]

_GC_THRESHOLDS = (20_000, 20, 50)
_REPLICA = re.compile(r"[a-z][a-z0-9-]{0,31}")


def up(
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
    port: PortOption = None,
    admin_port: AdminPortOption = None,
    is_demo: Annotated[bool, typer.Option("--demo", help="Use the demo configuration and send demo traffic.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Exit after the demo's report.")] = False,
) -> None:
    """Run everything that the configuration embeds: ledger, simulators and gateway."""
    if once and not is_demo:
        raise typer.BadParameter("--once goes with --demo")
    _log_to_stderr()
    path = config
    if is_demo:
        try:
            # The OpenAI SDK comes with the extra `demo`; nothing else needs it, or should load it for half a second.
            from gateway import demo  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise Unready(f"the demo needs {error.name}: install Bursar with its extra `demo`") from error
        path = config if config.exists() else demo.CONFIG
    loaded = load(path)
    at_home = Home(home)
    overrides = _overrides(port, admin_port)
    supervisor = Supervisor(at_home, parts_of(loaded.config, path, at_home, overrides))
    try:
        supervisor.start()
        run = at_home.read_run("gateway")
        assert run is not None
        console().print(
            f"Bursar serves http://{run['host']}:{run['port']}/v1; logs lie in {at_home.logs}", markup=False
        )
        if is_demo:
            demo.show(at_home, run, console())
        if not once:
            supervisor.watch()
    finally:
        supervisor.stop()


def serve(
    home: HomeOption = HOME,
    config: ConfigOption = CONFIG,
    port: PortOption = None,
    admin_port: AdminPortOption = None,
    replica: Annotated[
        str, typer.Option(help="The name of this gateway among those of this home that share a book.")
    ] = REPLICA,
) -> None:
    """Run the gateway alone, against runtimes that run already."""
    if not _REPLICA.fullmatch(replica):
        raise typer.BadParameter("a name is made of small letters, digits and dashes, and begins with a letter")
    _log_to_stderr()
    environ = {**os.environ}
    if port is not None:
        environ["BURSAR_LISTEN__PORT"] = str(port)
    if admin_port is not None:
        environ["BURSAR_LISTEN__ADMIN_PORT"] = str(admin_port)
    at_home = Home(home)
    loaded = load(config, environ)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_work(at_home, loaded, environ, replica))


async def _work(home: Home, loaded: LoadedConfig, environ: dict[str, str], replica: str) -> None:
    worker = Worker(home, loaded, _sim_urls(home, loaded), environ, replica)
    # What is imported and built by now lives as long as the process: the collector need not walk it again, and requests
    # leave few cycles behind.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    await worker.run()


def _sim_urls(home: Home, loaded: LoadedConfig) -> dict[str, str]:
    """Where the embedded runtimes that `bursar up` started listen, by runtime id."""
    runs = {runtime.id: home.read_run(f"sim-{runtime.id}") for runtime in loaded.config.runtimes if runtime.is_sim}
    return {name: f"http://127.0.0.1:{run['port']}" for name, run in runs.items() if run is not None}


def _overrides(port: int | None, admin_port: int | None) -> list[str]:
    overrides = [] if port is None else ["--port", str(port)]
    return overrides + ([] if admin_port is None else ["--admin-port", str(admin_port)])


def _log_to_stderr() -> None:
    """Logs are JSON lines on standard error; what is printed for people goes to standard output."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
