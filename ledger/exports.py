"""Exports: signed checkpoints carried out of the home, to where whoever can write the home cannot take them back.

A target is a URL: `file:///folder`, `https://receiver` (a webhook: POST), or `put+https://store/prefix` (an object
store: PUT of `<prefix>/<writer>/<size>.json`); `http` in place of `https` where the way is safe otherwise.
"""

import http.client
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import SplitResult, quote, unquote, urlsplit

from ledger.checkpoints import Checkpoint, write_durably
from ledger.signing import Signer

TIMEOUT_S = 5.0
TRIES_MAX = 8
PAUSE_S_MAX = 60.0
GAP_S = 1.0
_OK = range(200, 300)
_SCHEMES = ("http", "https", "put+http", "put+https")

_log = logging.getLogger("ledger.exports")


class TargetRefused(Exception):
    """A URL names no target for checkpoints."""


class ExportFailed(Exception):
    """A target did not take a checkpoint."""


class Target(Protocol):
    """Where checkpoints go; `name` is safe to show."""

    name: str

    def deliver(self, checkpoint: Checkpoint) -> None:
        """Hands one over; OSError, ValueError or ExportFailed when it was not taken."""


class FolderTarget:
    """A folder: every checkpoint is a line of `<writer>.jsonl`, and the newest alone is `<writer>.latest.json`."""

    def __init__(self, folder: Path, public_pem: bytes) -> None:
        self.name = f"file://{folder}"
        self._folder = folder
        self._public_pem = public_pem

    def deliver(self, checkpoint: Checkpoint) -> None:
        """Appends it durably, unless it is the newest already; the key that verifies it lies beside."""
        self._folder.mkdir(parents=True, exist_ok=True)
        line, latest = checkpoint.line(), self._folder / f"{checkpoint.writer}.latest.json"
        if latest.exists() and latest.read_bytes() == line:
            return
        public = self._folder / f"{checkpoint.key_id}.pub"
        if not public.exists():
            write_durably(public, self._public_pem)
        with (self._folder / f"{checkpoint.writer}.jsonl").open("ab") as file:
            file.write(line)
            file.flush()
            os.fdatasync(file.fileno())
        write_durably(latest, line)


class HttpTarget:
    """A webhook or an object store; each delivery is one request on a connection of its own."""

    def __init__(self, parts: SplitResult, token: str, timeout_s: float) -> None:
        # What a URL may carry after the host's name, or before it, may be secret.
        self.name = f"{parts.scheme}://{parts.hostname}{parts.path}"
        self._is_store = parts.scheme.startswith("put+")
        self._is_tls = parts.scheme.endswith("https")
        self._parts = parts
        self._token = token
        self._timeout_s = timeout_s

    def deliver(self, checkpoint: Checkpoint) -> None:
        """Sends it; any answer but 2xx, redirections included, is a failure."""
        kind = http.client.HTTPSConnection if self._is_tls else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._parts.port, timeout=self._timeout_s)
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            connection.request("PUT" if self._is_store else "POST", self._path(checkpoint), checkpoint.line(), headers)
            status = connection.getresponse().status
        except http.client.HTTPException as error:
            raise ExportFailed(f"no HTTP answer: {error!r}") from error
        finally:
            connection.close()
        if status not in _OK:
            raise ExportFailed(f"the answer was {status}")

    def _path(self, checkpoint: Checkpoint) -> str:
        path, query = self._parts.path, f"?{self._parts.query}" if self._parts.query else ""
        if self._is_store:
            path = f"{path.rstrip('/')}/{quote(checkpoint.writer, safe='')}/{checkpoint.size}.json"
        return f"{path or '/'}{query}"


def target_of(url: str, public_pem: bytes = b"", token: str = "", timeout_s: float = TIMEOUT_S) -> Target:
    """The target that a URL names; TargetRefused when it names none."""
    try:
        parts = urlsplit(url)
        known = parts.port is None or parts.port > 0
    except ValueError:
        known = False
    if known and parts.scheme == "file" and not parts.netloc and parts.path.strip("/"):
        return FolderTarget(Path(unquote(parts.path)), public_pem)
    if known and parts.scheme in _SCHEMES and parts.hostname and parts.username is None:
        return HttpTarget(parts, token, timeout_s)
    raise TargetRefused(
        f"{url}: checkpoints go to file:///folder, https://receiver or put+https://store/prefix, without a password"
    )


@dataclass(slots=True)
class _Waiting:
    """The newest checkpoint of a writer that a target does not have, and since when it lacks one."""

    checkpoint: Checkpoint
    since_s: float


class Exporter:
    """Carries checkpoints to one target in a thread of its own; of each writer only the newest waits.

    A later checkpoint covers an earlier one, so what was replaced while it waited is not missed.
    """

    def __init__(
        self,
        target: Target,
        *,
        gap_s: float = GAP_S,
        pause_s_max: float = PAUSE_S_MAX,
        tries_max: int = TRIES_MAX,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.target = target
        self._gap_s = gap_s
        self._pause_s_max = pause_s_max
        self._tries_max = tries_max
        self._monotonic = monotonic
        self._changed = threading.Condition()
        self._waiting: dict[str, _Waiting] = {}
        self._lacking: dict[str, float] = {}
        self._delivered: dict[str, int] = {}
        self._failures = 0
        self._error = ""
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name=f"export {target.name}", daemon=True)
        self._thread.start()

    def offer(self, checkpoint: Checkpoint) -> None:
        """Takes one to deliver soon; never waits."""
        with self._changed:
            since_s = self._lacking.setdefault(checkpoint.writer, self._monotonic())
            self._waiting[checkpoint.writer] = _Waiting(checkpoint, since_s)
            self._changed.notify_all()

    def status(self) -> dict[str, Any]:
        """What it has delivered, of how many writers the target lacks the newest, since when, and what failed last."""
        with self._changed:
            oldest_s = min(self._lacking.values(), default=None)
            return {
                "target": self.target.name,
                "delivered": dict(self._delivered),
                "lacks": len(self._lacking),
                "lag_s": 0.0 if oldest_s is None else round(self._monotonic() - oldest_s, 3),
                "failures": self._failures,
                "error": self._error,
            }

    def close(self, timeout_s: float) -> None:
        """Tries once more what waits, then ends; what was not delivered in time is offered at the next start."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        tries = 0
        while (checkpoint := self._next()) is not None:
            try:
                self.target.deliver(checkpoint)
            except (OSError, ValueError, ExportFailed) as error:
                # A ValueError is what http.client says of a host or a token that cannot be sent.
                tries += 1
                self._failed(checkpoint, str(error), gives_up=tries % self._tries_max == 0)
                if self._is_closing:
                    return
                self._pause(min(self._pause_s_max, self._gap_s * 2 ** min(tries, 16)))
            else:
                tries = 0
                self._done(checkpoint)
                self._pause(self._gap_s)

    def _next(self) -> Checkpoint | None:
        """The checkpoint that has waited longest; None once it is closing and none waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            if not self._waiting:
                return None
            return min(self._waiting.values(), key=lambda each: each.since_s).checkpoint

    def _pause(self, pause_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing, pause_s)

    def _done(self, checkpoint: Checkpoint) -> None:
        with self._changed:
            self._delivered[checkpoint.writer] = checkpoint.size
            self._error = ""
            waiting = self._waiting[checkpoint.writer]
            if waiting.checkpoint is checkpoint:
                del self._waiting[checkpoint.writer], self._lacking[checkpoint.writer]
            else:
                self._lacking[checkpoint.writer] = waiting.since_s = self._monotonic()

    def _failed(self, checkpoint: Checkpoint, error: str, *, gives_up: bool) -> None:
        """Keeps it for another try, or, after many, until a newer one comes."""
        with self._changed:
            self._failures += 1
            if self._error != error:
                _log.warning("checkpoints do not reach %s: %s", self.target.name, error)
            self._error = error
            if gives_up and self._waiting[checkpoint.writer].checkpoint is checkpoint:
                del self._waiting[checkpoint.writer]


def exporters_of(urls: Iterable[str], signer: Signer, token: str) -> list[Exporter]:
    """An exporter for each URL; TargetRefused before any is started."""
    return [Exporter(target) for target in [target_of(url, signer.public_pem, token) for url in urls]]
