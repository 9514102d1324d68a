"""The ledger process: it alone opens the store, ships the journals into it, and serves it on loopback."""

import gc
import json
import logging
import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from ledger.access import Keys
from ledger.checkpoints import Leaves
from ledger.exports import exporters_of
from ledger.notary import Notary
from ledger.server import LedgerServer
from ledger.shipper import Shipper
from ledger.signing import KeyAway, Signer, signer_of
from ledger.stores import open_store

STALL_MS = 60_000
KEEP_ALIVE_S = 30
_CONNECTIONS_MAX = 64
_TOKEN_BYTES = 32
_HEADER_BYTES_MAX = 64 << 10
_DRAIN_S = 10
_GC_THRESHOLDS = (100_000, 20, 50)


class PortTaken(Exception):
    """Another process listens where this one should, or nobody may."""


@dataclass(frozen=True, slots=True)
class LedgerProcess:
    """What one ledger process is told: its home, its store and where to say how it is reached."""

    home: Path
    url: str
    host: str
    port: int
    port_file: Path
    token_file: Path
    retention_s: float
    while_stdin: bool = False
    announce: bool = False
    checkpoint_targets: tuple[str, ...] = ()
    checkpoint_token: str = ""

    def run(self) -> int:
        """Serves until SIGTERM or SIGINT, then ships the rest; 0, or 1 when the shipping thread died. PortTaken."""
        with _listener(self.host, self.port) as listener:
            return self._serve(listener)

    def _serve(self, listener: socket.socket) -> int:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        token = read_or_make_token(self.token_file)
        signer = self._signer()
        _leave_files(self.home / "run" / "nowhere")
        store = open_store(self.url, self.home)
        # Only now, for until it is known that no other process has the store these may be the files of that one.
        _use_temporary_directory(self.home / "tmp")
        exporters = [] if signer is None else exporters_of(self.checkpoint_targets, signer, self.checkpoint_token)
        notary = Notary(self.home / "checkpoints", signer, Leaves(store.select), exporters)
        shipper = Shipper(self.home / "journal", store, retention_s=self.retention_s, sealed=notary.sealed)
        application = LedgerServer(store, shipper, Keys(token, self.home / "keys"), notary)
        server = _uvicorn(application)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(server, "should_exit", True))
        if self.while_stdin:
            threading.Thread(target=_end_with_stdin, name="stdin", daemon=True).start()
        # A batch is thousands of tuples without a cycle: the collector need not walk them, nor what is built by now.
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        finished = threading.Event()
        thread = threading.Thread(target=_ship, args=(shipper, notary, server, finished), name="shipper")
        thread.start()
        try:
            host, port = listener.getsockname()[:2]
            write_port_file(self.port_file, host, port)
            if self.announce:
                sys.stdout.write(f"The ledger listens on {host}:{port}; make a key with: bursar key create --ledger\n")
                sys.stdout.flush()
            server.run(sockets=[listener])
        finally:
            self.port_file.unlink(missing_ok=True)
            shipper.stop()
            thread.join()
            notary.close()
            if not application.close():
                # A statement that nothing ends holds the engine and a thread, and Python would wait for both.
                logging.shutdown()
                os._exit(0 if finished.is_set() else 1)
            store.close()
        return 0 if finished.is_set() else 1

    def _signer(self) -> Signer | None:
        """The signer; None where one command alone is served and the key is kept elsewhere. KeyRefused."""
        try:
            return signer_of(self.home)
        except KeyAway:
            if not self.while_stdin:
                raise
            return None


def read_or_make_token(path: Path) -> str:
    """The token in the file, which is made, readable by its owner alone, when there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.read_text(encoding="utf-8").strip():
        # Left by a full disk, for nobody can be let in with it.
        path.unlink()
    if not path.exists():
        _make_token(path)
    return path.read_text(encoding="utf-8").strip()


def _make_token(path: Path) -> None:
    """Makes a token, whole or not at all, unless another process has made one meanwhile."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(secrets.token_urlsafe(_TOKEN_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()


def write_port_file(path: Path, host: str, port: int) -> None:
    """Says, in one step, where this process listens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps({"host": host, "port": port, "pid": os.getpid()}), encoding="utf-8")
    draft.replace(path)


def _listener(host: str, port: int) -> socket.socket:
    """A listening socket whose connections end by themselves when the other side takes nothing for a minute."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise PortTaken(f"cannot listen on {host}:{port}: {error.strerror}; choose another --host or --port") from error
    # Of Linux: connections inherit it, and uvicorn has no bound of its own for a client that does not read.
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALL_MS)
    return listener


def _use_temporary_directory(path: Path) -> None:
    """Keeps the files through which inserts travel inside the home, and clears those that a kill left."""
    path.mkdir(parents=True, exist_ok=True)
    for left in path.iterdir():
        if left.is_file() or left.is_symlink():
            left.unlink()
    tempfile.tempdir = str(path)


def _leave_files(path: Path) -> None:
    """Works from an empty folder: the engine takes names of no table for files there, and says whether they exist."""
    path.mkdir(parents=True, exist_ok=True)
    os.chdir(path)


def _end_with_stdin() -> None:
    """Ends this process, as SIGTERM would, when whoever started it closes the pipe or is gone."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _ship(shipper: Shipper, notary: Notary, server: uvicorn.Server, finished: threading.Event) -> None:
    """Ships to the end; if that fails the process ends too, because a ledger that stands still must not look alive."""
    try:
        # What is signed at the start is signed of a store that has been mended.
        shipper.round()
        notary.resume(shipper.shipped())
        shipper.run()
        finished.set()
    finally:
        server.should_exit = True


def _uvicorn(application: LedgerServer) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            application,
            http="h11",  # it bounds header bytes, httptools does not
            h11_max_incomplete_event_size=_HEADER_BYTES_MAX,
            lifespan="off",
            ws="none",
            interface="asgi3",
            access_log=False,
            log_config=None,
            limit_concurrency=_CONNECTIONS_MAX,
            timeout_graceful_shutdown=_DRAIN_S,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
    )
