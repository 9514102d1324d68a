"""`python -m runtime.sim`: serve the simulator until SIGTERM."""

import argparse
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import uvicorn

from runtime.sim.config import EngineConfig
from runtime.sim.server import SimServer

_BACKLOG: Final = 4_096
_GRACE_S: Final = 5


class _PortFileServer(uvicorn.Server):
    """A server that writes its pid and port to a file, as JSON, once it accepts connections."""

    def __init__(self, config: uvicorn.Config, port_file: Path | None) -> None:
        super().__init__(config)
        self._port_file = port_file

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._port_file is not None and sockets:
            _write_whole(self._port_file, json.dumps({"pid": os.getpid(), "port": sockets[0].getsockname()[1]}))


def _write_whole(path: Path, text: str) -> None:
    """A reader of the file sees all of the text or no file."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    draft.write_text(text)
    draft.replace(path)


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, SimServer]:
    parser = argparse.ArgumentParser(prog="python -m runtime.sim", description="Serve a simulated LLM runtime.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--port-file", type=Path, help="written with the port once listening")
    parser.add_argument("--model", required=True, help="names, separated by commas; each has an engine of its own")
    parser.add_argument("--time-scale", type=float, default=1.0, help="how many times as fast as real time")
    parser.add_argument("--telemetry", type=Path, help="a folder for what each step computed (runtime.telemetry)")
    defaults = EngineConfig()
    for knob in fields(EngineConfig):
        default = getattr(defaults, knob.name)
        kind: dict[str, Any] = {"type": type(default)}
        if isinstance(default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        parser.add_argument(f"--{knob.name.replace('_', '-')}", default=default, **kind)
    options = parser.parse_args(arguments)
    try:
        config = EngineConfig(**{knob.name: getattr(options, knob.name) for knob in fields(EngineConfig)})
        models = [name.strip() for name in options.model.split(",")]
        return options, SimServer(models, config, options.time_scale, options.telemetry)
    except ValueError as error:
        parser.error(str(error))


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then end as killed by it; wrong arguments end the process with code 2."""
    options, app = _parse(arguments)
    serving = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_GRACE_S,
    )
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.create_server((options.host, options.port), family=family, backlog=_BACKLOG) as listener:
        _PortFileServer(serving, options.port_file).run(sockets=[listener])


if __name__ == "__main__":
    main()
