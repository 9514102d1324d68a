"""The home: the state directory of one Bursar, private to the user who runs it."""

import json
import os
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

SECRET_BYTES = 32
RUN_BYTES_MAX = 1 << 16

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_PRIVATE_DIR, _PRIVATE_FILE = 0o700, 0o600
# One of these is in every home, also in a copy for an auditor; a folder without any belongs to somebody else.
_MARKS = ("journal", "checkpoints", "secrets")


class HomeError(Exception):
    """The home is not there, or something in it is damaged or open to others; the message says what. Safe to show."""


class Home:
    """The directories of a home, made where they are missing, and the small files in them."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        self.journal = self.path / "journal"
        self.ledger = self.path / "ledger"
        self.checkpoints = self.path / "checkpoints"
        self.run = self.path / "run"
        self.logs = self.path / "logs"
        self.secrets = self.path / "secrets"
        self.keys = self.path / "keys"
        self.path.mkdir(mode=_PRIVATE_DIR, parents=True, exist_ok=True)
        for directory in (self.journal, self.ledger, self.checkpoints, self.run, self.logs, self.secrets):
            directory.mkdir(mode=_PRIVATE_DIR, exist_ok=True)
            if stat.S_IMODE(directory.stat().st_mode) != _PRIVATE_DIR:
                directory.chmod(_PRIVATE_DIR)

    @classmethod
    def found(cls, path: Path) -> Self | None:
        """The home that is there already; None where there is none, and none is made."""
        return cls(path) if any((path / mark).is_dir() for mark in _MARKS) else None

    @classmethod
    def at(cls, path: Path) -> Self:
        """The home that is there already; HomeError where there is none, and none is made."""
        home = cls.found(path)
        if home is None:
            raise HomeError(f"there is no home at {path}")
        return home

    def telemetry(self, runtime: str) -> Path:
        """Where an embedded runtime tells what its steps computed."""
        return self.path / "telemetry" / _checked(runtime)

    def run_file(self, name: str) -> Path:
        """Where the process called `name` says how it can be reached."""
        return self.run / f"{_checked(name)}.json"

    def write_run(self, name: str, facts: Mapping[str, Any]) -> None:
        """Say how a process can be reached; `pid` is this process unless given."""
        pid = facts.get("pid", os.getpid())
        write_private(self.run_file(name), json.dumps({**facts, "pid": pid, "started": _started(pid)}).encode())

    def read_run(self, name: str) -> dict[str, Any] | None:
        """What the process called `name` said of itself, or None when it said nothing."""
        path = self.run_file(name)
        try:
            with path.open("rb") as file:
                content = file.read(RUN_BYTES_MAX)
        except FileNotFoundError:
            return None
        try:
            facts = json.loads(content)
        except ValueError as error:
            raise HomeError(f"{path} is damaged: remove it once no {name} process runs") from error
        if not isinstance(facts, dict) or type(facts.get("pid")) is not int or facts["pid"] < 1:
            raise HomeError(f"{path} names no process: remove it once no {name} process runs")
        return facts

    def remove_run(self, name: str) -> None:
        """Forget how a process can be reached; nothing happens when it is not known."""
        self.run_file(name).unlink(missing_ok=True)

    def alive(self, name: str) -> bool:
        """Whether the process that wrote the run file still runs; another one under its reused pid does not count."""
        facts = self.read_run(name)
        if facts is None or not _exists(facts["pid"]):
            return False
        started = facts.get("started")
        return started is None or started == _started(facts["pid"])

    def gateways(self) -> list[str]:
        """The run names of this home's gateways, whether they still run or not."""
        return sorted(path.stem for path in self.run.glob("gateway*.json"))

    def secret(self, name: str) -> bytes:
        """The 32 random bytes called `name`, made at first use and the same ever after."""
        path = self.secrets / f"{_checked(name)}.key"
        if not path.exists():
            _create_once(path, secrets.token_bytes(SECRET_BYTES))
        value = _read_private(path)
        if len(value) != SECRET_BYTES:
            raise HomeError(f"{path} must hold {SECRET_BYTES} bytes, not {len(value)}")
        return value

    @property
    def admin_secret_path(self) -> Path:
        """The file holding the secret of the home's own admin key, once a gateway has made it."""
        return self.secrets / "admin.key"

    def admin_secret(self) -> str:
        """The secret of the home's own admin key; FileNotFoundError before a gateway has made it."""
        return _read_private(self.admin_secret_path).decode()

    def token(self, name: str) -> str:
        """The random URL-safe token called `name`, made at first use and the same ever after."""
        return _read_private(self.token_path(name)).decode()

    def token_path(self, name: str) -> Path:
        """The file holding the token called `name`, made at first use: what another process is pointed to."""
        path = self.secrets / f"{_checked(name)}.token"
        if not path.exists():
            _create_once(path, secrets.token_urlsafe(SECRET_BYTES).encode())
        return path


def run_name(replica: str) -> str:
    """The run file's name of a gateway: the first of a home is `gateway`, others name themselves."""
    return "gateway" if replica == "gateway" else f"gateway-{replica}"


def write_private(path: Path, content: bytes) -> None:
    """Replace a file at once and durably, for its owner only: readers see all of the old or all of the new."""
    draft = _draft(path, content)
    try:
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _create_once(path: Path, content: bytes) -> None:
    """Make a file unless another process has made it meanwhile."""
    draft = _draft(path, content)
    try:
        os.link(draft, path)
    except FileExistsError:
        return  # the other process's content is the one that counts
    finally:
        draft.unlink()
    _sync_directory(path.parent)


def _draft(path: Path, content: bytes) -> Path:
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE_FILE)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        draft.unlink()
        raise
    return draft


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_private(path: Path) -> bytes:
    with path.open("rb") as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            raise HomeError(f"{path} is open to others (mode {mode:04o}): chmod 600 it, or remove it to make a new one")
        return file.read(RUN_BYTES_MAX)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name for a file of the home")
    return name


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it runs, as another user
    return _state(pid) != "Z"


def _started(pid: int) -> int | None:
    """When a process began, in the kernel's ticks since boot; None where that cannot be known."""
    fields = _stat_fields(pid)
    return int(fields[19]) if fields else None


def _state(pid: int) -> str | None:
    fields = _stat_fields(pid)
    return fields[0] if fields else None


def _stat_fields(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat after the command's name, which may hold spaces; none on systems without it."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return content.rpartition(")")[2].split()
