"""Where a configured runtime is, for the commands that look at it from outside of the gateway."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

from gateway.attributing import telemetry_of
from gateway.cli.shared_store import in_force
from gateway.config import Runtime
from gateway.config_file import LoadedConfig, load
from gateway.home import Home

PROBE_TIMEOUT_S = 2.0
NOT_RUNNING, AWAY = "not running", "away"
CALIBRATIONS = "calibrations"
"""The folder of the home in which they are kept."""


class NoRuntime(Exception):
    """A runtime cannot be found, or not be reached as configured; the message says what to do. Safe to show."""


@dataclass(frozen=True, slots=True)
class Place:
    """A configured runtime: its address without `/v1`, None while it does not run, and the folder of its telemetry.

    `models` are those that it is asked for, under its own names; `gpus` are its accelerators where engines say nothing;
    `authorization` gives what Bursar itself calls it with, None without a key; NoRuntime where that cannot be read.
    """

    id: str
    owner: str
    url: str | None
    models: tuple[str, ...]
    telemetry: Path | None
    is_sim: bool
    gpus: int
    authorization: Callable[[], str | None] = field(default=lambda: None, compare=False)


def places(home: Path, config: Path, environ: Mapping[str, str] = os.environ) -> list[Place]:
    """Every configured runtime, where there is no such file those of the gateway that runs; raises ConfigError."""
    at_home = Home.found(home)
    loaded = load(in_force(at_home, config))
    return [_place(each, loaded, at_home, environ) for each in loaded.config.runtimes]


def place_of(name: str, home: Path, config: Path) -> Place:
    """The runtime of that id; NoRuntime where none has it."""
    found = {place.id: place for place in places(home, config)}
    if name not in found:
        path = in_force(Home.found(home), config)
        raise NoRuntime(f"there is no runtime {name} in {path}: it has {', '.join(sorted(found)) or 'none'}")
    return found[name]


def probed(place: Place) -> str:
    """Whether a runtime answers, in a word or two."""
    if place.url is None:
        return NOT_RUNNING
    parts = urlsplit(place.url)
    connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = connect(parts.hostname or "", parts.port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", f"{parts.path}/health")
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        return f"{AWAY}: {error}"
    finally:
        connection.close()
    return "ok" if status == 200 else f"answers {status}"


def answers(health: str) -> bool:
    """Whether a health as `probed` tells it is that of a runtime that runs."""
    return health != NOT_RUNNING and not health.startswith(AWAY)


def _place(runtime: Runtime, loaded: LoadedConfig, home: Home | None, environ: Mapping[str, str]) -> Place:
    models = tuple(dict.fromkeys(each.upstream_model for each in loaded.config.models if runtime.id in each.runtimes))
    return Place(
        id=runtime.id,
        owner=runtime.owner,
        url=url_of(runtime, home),
        models=models,
        telemetry=telemetry_folder(runtime, loaded, home),
        is_sim=runtime.is_sim,
        gpus=runtime.gpus,
        authorization=partial(_authorization, runtime, loaded.path.parent, environ),
    )


def _authorization(runtime: Runtime, base: Path, environ: Mapping[str, str]) -> str | None:
    key = environ.get(runtime.api_key_env, "") if runtime.api_key_env else ""
    if runtime.api_key_file is not None:
        try:
            key = (base / runtime.api_key_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise NoRuntime(f"the key of runtime {runtime.id} cannot be read: {error}") from error
    return f"Bearer {key}" if key else None


def url_of(runtime: Runtime, home: Home | None) -> str | None:
    """Its address without `/v1`; None while an embedded one does not run."""
    if not runtime.is_sim:
        return runtime.url.rstrip("/").removesuffix("/v1")
    name = f"sim-{runtime.id}"
    run = home.read_run(name) if home is not None and home.alive(name) else None
    return None if run is None else f"http://127.0.0.1:{run['port']}"


def telemetry_folder(runtime: Runtime, loaded: LoadedConfig, home: Home | None) -> Path | None:
    """The folder of its telemetry; that of an embedded one lies in the home, and is not there before that is."""
    if home is None:
        return None if runtime.telemetry is None else loaded.path.parent / runtime.telemetry
    return telemetry_of(runtime, loaded, home)
