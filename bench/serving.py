"""How the fake upstream and the bare proxy are served: the same uvicorn, uvloop and httptools settings as Bursar's."""

import argparse
import os
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import uvicorn

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HOST = "127.0.0.1"
BACKLOG = 2048


def add_port_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--port` (0 picks a free one) and `--port-file` (written with the port in use once connections are taken)."""
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--port-file", type=Path, default=None)


def serve(app: App, port: int, port_file: Path | None) -> None:
    """Serve `app` on loopback until SIGTERM or SIGINT."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((HOST, port))
    listener.listen(BACKLOG)  # before the port is announced, so that nobody who reads it is refused
    if port_file is not None:
        partial = port_file.with_suffix(".partial")
        partial.write_text(str(listener.getsockname()[1]))
        os.replace(partial, port_file)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run(sockets=[listener])


async def read_body(receive: Receive) -> bytes:
    """The whole request body."""
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if not message.get("more_body", False):
            return body
