"""`bursar doctor`: every dependency and its state."""

import asyncio
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Container, Iterator
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

import typer
from redis import Redis
from redis.exceptions import RedisError, ResponseError

from gateway import compiled
from gateway.assembly import replicas
from gateway.cli.options import CONFIG, HOME, ConfigOption, HomeOption, JsonOption
from gateway.cli.output import brief, counted, print_rows
from gateway.cli.runtime_metering import metered
from gateway.cli.runtime_place import telemetry_folder, url_of
from gateway.cli.shared_store import client_of, in_force
from gateway.composition import Unready, bundle_of
from gateway.config import Book, Policy, Runtime
from gateway.config_file import ConfigError, LoadedConfig, load
from gateway.engines import server_of
from gateway.home import Home, run_name
from gateway.keys import KeyFileError, KeyStore
from ledger.client import running
from ledger.shared_store import SYNCED
from policy.bundle import load as load_bundle
from policy.checks.named import named
from policy.checks.port import LIBRARIES, PII, SECRETS
from policy.child import Child
from policy.opa import OpaEngine, OpaServer, OpaState
from policy.port import BundleError

PACKAGES = ("chdb", "clickhouse-connect", "regopy", "aiohttp", "uvicorn", "fastapi", "opentelemetry-sdk", "tokenizers")
FREE_BYTES_MIN = 1 << 30
PROBE_TIMEOUT_S = 2.0
ALWAYS = "appendfsync always"
OK, AWAY, OPTIONAL = "ok", "away", "optional"


@dataclass(frozen=True, slots=True)
class Finding:
    """One dependency: whether it is there and what to know about it."""

    dependency: str
    state: str
    detail: str


def doctor(home: HomeOption = HOME, config: ConfigOption = CONFIG, as_json: JsonOption = False) -> None:
    """Check every dependency; exit 3 when one that is needed is away."""
    at_home = Home.found(home)
    findings = [*_software(), *_configured(at_home, in_force(at_home, config))]
    if at_home is None:
        findings.append(Finding("home", OPTIONAL, f"there is none at {home} yet; `bursar up` makes it"))
    else:
        findings += [*_kept(at_home), *_running(at_home)]
    rows = [asdict(finding) for finding in findings]
    print_rows("Doctor", rows, ("dependency", "state", "detail"), as_json=as_json)
    if any(finding.state == AWAY for finding in findings):
        raise typer.Exit(3)


def _software() -> Iterator[Finding]:
    yield Finding("python", OK if sys.version_info >= (3, 11) else AWAY, sys.version.split()[0])
    for package in PACKAGES:
        version = _version(package)
        yield Finding(package, OK if version else AWAY, version or f"install it: pip install {package}")
    where = f"in use, from {compiled.BUILD.folder}" if compiled.in_use() else "not in use, see `make compile`"
    yield Finding("compiled modules", OK if compiled.in_use() else OPTIONAL, where)
    opa = shutil.which("opa")
    yield Finding("opa", OK if opa else OPTIONAL, opa or "not on PATH; policies are tested on the embedded engine only")


def _configured(home: Home | None, config: Path) -> Iterator[Finding]:
    try:
        loaded = load(config)
    except ConfigError as error:
        yield Finding("configuration", AWAY, str(error))
        return
    yield Finding("configuration", OK, f"{config}, digest {loaded.digest[:16]}")
    yield from _policy(loaded)
    if loaded.config.book.is_shared:
        yield _book(loaded.config.book)
    for runtime in loaded.config.runtimes:
        yield from _runtime(runtime, loaded, home)


def _kept(home: Home) -> Iterator[Finding]:
    try:
        keys = KeyStore(home.keys).list()
        yield Finding("keys", OK if keys else OPTIONAL, f"{len(keys)} in {home.keys}")
    except KeyFileError as error:
        yield Finding("keys", AWAY, str(error))
    free_bytes = shutil.disk_usage(home.path).free
    yield Finding("disk", OK if free_bytes > FREE_BYTES_MIN else AWAY, f"{free_bytes >> 20} MiB free at {home.path}")


def _version(package: str) -> str:
    """The version that is installed; nothing where none is."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _policy(loaded: LoadedConfig) -> Iterator[Finding]:
    """Whether policy can decide, and whether what it may oblige to can be checked here."""
    policy = loaded.config.policy
    if policy.is_remote:
        yield _opa(policy)
        yield from _libraries(None)
        return
    folder = bundle_of(loaded)
    try:
        checks = named(load_bundle(folder))
        with Child.of(folder) as child:
            yield Finding("policy", OK, f"{folder}, revision {brief(child.revision)}")
    except BundleError as error:
        yield Finding("policy", AWAY, str(error))
        return
    yield from _libraries(checks)


def _opa(policy: Policy) -> Finding:
    """Whether an OPA server answers, and which revision decides there, asked as a gateway asks it."""
    try:
        state = asyncio.run(_polled(server_of(policy, os.environ)))
    except Unready as error:
        return Finding("policy", AWAY, str(error))
    if state.is_away:
        return Finding("policy", AWAY, f"{policy.url}: {state.problem}")
    newer = f"; a newer bundle does not serve: {state.problem}" if state.problem else ""
    return Finding("policy", OK, f"{policy.url}, revision {brief(state.revision)}{newer}")


async def _polled(server: OpaServer) -> OpaState:
    engine = OpaEngine(server)
    try:
        await engine.poll()
        return engine.state
    finally:
        await engine.close()


def _libraries(checks: Container[str] | None) -> Iterator[Finding]:
    """Whether the libraries of verification are installed; `checks` are those that policy names, None where unknown."""
    for check in (SECRETS, PII):
        package = LIBRARIES[check].replace("_", "-")
        version = _version(package)
        if version:
            yield Finding(package, OK, version)
        elif checks is None:
            said = f"not installed; what OPA's policy obliges to the check {check} is refused without it"
            yield Finding(package, OPTIONAL, f"{said}: install the extra `verify`")
        elif check in checks:
            said = f"the policy names the check {check}, and what it obliges to it is refused"
            yield Finding(package, AWAY, f"{said}: install the extra `verify`")
        else:
            yield Finding(package, OPTIONAL, f"not installed; the policy does not name the check {check}")


def _book(book: Book) -> Finding:
    """Whether the store of a shared book answers and takes writes, and what it does not keep when it restarts."""
    client = client_of(book)
    try:
        role = client.info("replication")["role"]
        said = _appends(client)
    except (RedisError, OSError, ValueError, LookupError) as error:
        return Finding("book", AWAY, f"{book.url}: {error}")
    finally:
        client.close()
    if role != "master":
        return Finding("book", AWAY, f"{book.url} is a read-only replica: name the server that takes writes")
    if said == ALWAYS:
        return Finding("book", OK, f"{book.url}, {said}")
    restarts = f"when it restarts, nothing is granted until all {book.replicas} replicas have reported"
    return Finding("book", OK, f"{book.url}, {said}: {restarts}")


def _appends(client: Redis) -> str:
    """What a Redis says that it keeps of what it has acknowledged."""
    try:
        said = client.config_get("*append*")
    except ResponseError:
        return "which does not say what it keeps"
    if SYNCED.items() <= said.items():
        return ALWAYS
    unlike = [f"{name} {said.get(name)}" for name, wanted in SYNCED.items() if said.get(name) != wanted]
    return ", ".join(unlike)


def _runtime(runtime: Runtime, loaded: LoadedConfig, home: Home | None) -> Iterator[Finding]:
    """Whether a runtime answers, and whether its engines tell what its requests take."""
    url = url_of(runtime, home)
    name = f"runtime {runtime.id}"
    found = Finding(name, OPTIONAL, "embedded; `bursar up` starts it") if url is None else _answering(name, url)
    yield found
    folder = telemetry_folder(runtime, loaded, home)
    said = metered(folder, runtime.gpus, url if found.state == OK else None)
    paid = f"of {counted(said.accelerators, 'accelerator')}"
    if said.state.status == "on":
        yield Finding(f"telemetry {runtime.id}", OK, f"on, {paid}")
    else:
        why = said.brief if folder is not None else "none is configured"
        yield Finding(f"telemetry {runtime.id}", OPTIONAL, f"{why}; requests are charged estimates")


def _answering(name: str, url: str) -> Finding:
    parts = urlsplit(url)
    connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = connect(parts.hostname or "", parts.port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", f"{parts.path}/v1/models")
        status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        return Finding(name, AWAY, f"{url}: {error}")
    finally:
        connection.close()
    return Finding(name, OK if status < 500 else AWAY, f"{url} answers {status}")


def _running(home: Home) -> Iterator[Finding]:
    # Those that run, and those that have left a journal and may be missed.
    for name in sorted({*home.gateways(), *map(run_name, replicas(home))}) or ["gateway"]:
        run = home.read_run(name) if home.alive(name) else None
        where = "not running" if run is None else f"http://{run['host']}:{run['port']}, pid {run['pid']}"
        yield Finding(name.replace("-", " ", 1), OPTIONAL if run is None else OK, where)
    client = running(home.path)
    if client is None:
        yield Finding("ledger process", OPTIONAL, "not running; commands start one for themselves")
    else:
        status = client.status()
        yield Finding("ledger process", OK, f"port {client.address.port}, {status['lag_rows']} rows behind")
        for writer, why in status["checkpoints"]["alarms"].items():
            yield Finding("checkpoints", AWAY, f"none is signed for {writer}: {why}")
