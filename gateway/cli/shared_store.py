"""Shared store: the configuration in force, and a client of the Redis of its book, for the commands that ask it."""

import os
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from gateway.assembly import REDIS_PASSWORD
from gateway.config import Book
from gateway.home import Home

TIMEOUT_S = 2.0


def in_force(home: Home | None, config: Path) -> Path:
    """The configuration named, or where there is none that of a gateway that runs on the home."""
    if config.exists() or home is None:
        return config
    runs = (home.read_run(name) for name in home.gateways() if home.alive(name))
    return next((Path(run["config"]) for run in runs if run is not None), config)


def client_of(book: Book) -> Redis:
    """A client that tries nothing twice and is answered in text; ValueError for a URL that names no server."""
    return Redis.from_url(
        book.url,
        password=os.environ.get(REDIS_PASSWORD),
        socket_connect_timeout=TIMEOUT_S,
        socket_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )
