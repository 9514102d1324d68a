"""Servers: uvicorn on sockets that are bound before anything starts, without its signal handlers."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from gateway.protocol import HeadBounds, bounded
from gateway.replies import App

BACKLOG = 2048


class Server(uvicorn.Server):
    """A uvicorn server that leaves signals to the process that runs several of them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A listening-to-be TCP socket; port 0 picks a free one. Raises OSError when the address is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
    return bound


def server(app: App, bounds: HeadBounds, *, idle_timeout_s: float, drain_timeout_s: float) -> Server:
    """A server of one ASGI application with bounded heads."""
    options: dict[str, Any] = {
        "http": bounded(bounds),
        "ws": "none",
        "lifespan": "off",
        "access_log": False,
        "log_config": None,
        "server_header": False,
        "proxy_headers": False,
        "date_header": False,
        "backlog": BACKLOG,
        "timeout_keep_alive": int(idle_timeout_s),
        "timeout_graceful_shutdown": int(drain_timeout_s) + 5,
    }
    return Server(uvicorn.Config(app, **options))
