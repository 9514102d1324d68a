"""Keys: who may call, as random secrets of which only the SHA-256 is kept.

A secret is shown once, when its key is made. The file holds one key a line, in JSON; writers take turns by a lock
beside it and replace it whole, so a reader never sees half of a change.
"""

import fcntl
import hashlib
import hmac
import json
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from domain.ids import uuid7
from domain.intent import Principal
from gateway.home import write_private

KEYS_MAX = 100_000
FILE_BYTES_MAX = 128 << 20
SECRET_BYTES_MAX = 128
LOCK_TIMEOUT_S = 10.0

_LOCK_POLL_S = 0.01
_RANDOM_BYTES = 32  # 43 characters of URL-safe base64

ORGS_MAX = 64
ALL_ORGS = "*"
Kind = Literal["app", "admin", "ledger"]
PREFIXES: dict[Kind, str] = {"app": "bsk-", "admin": "bsa-", "ledger": "bsl-"}


class KeysError(Exception):
    """Base of what can be wrong with keys; every message is safe to show."""


class KeyFileError(KeysError):
    """The file of keys cannot be used; the message names the file and the line."""


class KeyFieldError(KeysError, ValueError):
    """A new key was asked for with a field that no key may have."""


class KeysBusy(KeysError):
    """Another process kept the lock for too long."""


class Refused(StrEnum):
    """Why a secret identifies nobody."""

    MISSING = "missing"
    UNKNOWN = "unknown"
    REVOKED = "revoked"
    EXPIRED = "expired"


def _not_everyone(value: str) -> str:
    if value.strip() != value or value == "*" or not value.isprintable():
        raise ValueError("must be printable, without spaces around it, and not `*`, which means every value in budgets")
    return value


def _one_or_all(value: str) -> str:
    return value if value == ALL_ORGS else _not_everyone(value)


_Text = Annotated[str, Field(max_length=128), AfterValidator(_not_everyone)]
_Name = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_not_everyone)]
_Org = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_one_or_all)]
_Second = Annotated[int, Field(ge=0, le=1 << 40)]


class _Line(BaseModel):
    """One line of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    key_id: _Name
    kind: Kind
    org: _Name
    team: _Name
    app: _Name
    user: _Text
    roles: Annotated[tuple[_Name, ...], Field(max_length=64)]
    clearance: _Name
    created_at: _Second
    expires_at: _Second | None
    revoked_at: _Second | None
    digest: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    # Lines of before there were ledger keys do not have it.
    orgs: Annotated[tuple[_Org, ...], Field(max_length=ORGS_MAX)] = ()
    # Nor do those of before approvals have this one.
    made_by: _Text = ""

    @model_validator(mode="after")
    def _orgs_are_of_ledger_keys(self) -> "_Line":
        if (self.kind == "ledger") != bool(self.orgs):
            raise ValueError("a ledger key names the organisations whose rows it opens, and no other key does")
        return self


@dataclass(frozen=True, slots=True)
class Key:
    """A key and the principal that its holder is; times are Unix seconds.

    `orgs` are those whose rows a ledger key opens, `*` for all; no other key has any. `made_by` is the id of the key
    that it was made with, or says what made it.
    """

    key_id: str
    kind: Kind
    org: str
    team: str
    app: str
    user: str
    roles: tuple[str, ...]
    clearance: str
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    digest: bytes = field(repr=False)
    orgs: tuple[str, ...] = ()
    made_by: str = ""
    principal: Principal = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        principal = Principal(self.org, self.team, self.app, self.user, self.key_id, self.roles, self.clearance)
        object.__setattr__(self, "principal", principal)  # built once here, where every request would build it anew


class KeyStore:
    """The keys of one file, looked up by the digest of their secrets."""

    def __init__(self, path: Path | str, clock: Callable[[], float] = time.time) -> None:
        self._path = Path(path)
        self._clock = clock
        self._by_digest: dict[bytes, Key] = {}
        self._by_id: dict[str, Key] = {}
        self._version: tuple[int, ...] | None = None
        self._reloading = threading.Lock()
        self.reload()

    def lookup(self, secret: bytes, kind: Kind = "app") -> Key | Refused:
        """The key of that kind whose secret this is, or why there is none; a key of the other kind is unknown.

        Only digests are compared, so the time taken tells nothing about the secrets that exist.
        """
        if not secret:
            return Refused.MISSING
        if len(secret) > SECRET_BYTES_MAX:
            return Refused.UNKNOWN
        digest = hashlib.sha256(secret).digest()
        key = self._by_digest.get(digest)
        if key is None or not hmac.compare_digest(key.digest, digest) or key.kind != kind:
            return Refused.UNKNOWN
        if key.revoked_at is not None:
            return Refused.REVOKED
        if key.expires_at is not None and self._clock() >= key.expires_at:
            return Refused.EXPIRED
        return key

    def get(self, key_id: str) -> Key | None:
        """The key of that id, revoked and expired ones included."""
        return self._by_id.get(key_id)

    def list(self) -> tuple[Key, ...]:
        """Every key, revoked and expired ones included, oldest first."""
        return tuple(self._by_digest.values())

    def create(
        self,
        org: str,
        team: str,
        app: str,
        user: str = "",
        roles: tuple[str, ...] = (),
        clearance: str = "internal",
        expires_at: int | None = None,
        kind: Kind = "app",
        orgs: tuple[str, ...] = (),
        made_by: str = "",
    ) -> tuple[Key, str]:
        """A new key and its secret, which is kept nowhere; KeyFieldError for a field no key may have."""
        secret = PREFIXES[kind] + secrets.token_urlsafe(_RANDOM_BYTES)
        digest = hashlib.sha256(secret.encode()).digest()
        now = int(self._clock())
        fields = (kind, org, team, app, user, tuple(roles), clearance, now, expires_at, None, digest, orgs, made_by)
        key = Key(uuid7(), *fields)
        try:
            _parse(_dump(key))
        except ValidationError as error:
            raise KeyFieldError(_first(error)) from error
        with self._writing():
            if len(self._by_digest) >= KEYS_MAX:
                raise KeysError(f"there are {KEYS_MAX} keys already")
            self._write({**self._by_digest, digest: key})
        return key, secret

    def revoke(self, key_id: str) -> Key | None:
        """End a key for good; a key revoked before stays as it is, and None means that there is no such key."""
        with self._writing():
            key = self._by_id.get(key_id)
            if key is None:
                return None
            if key.revoked_at is None:
                key = replace(key, revoked_at=int(self._clock()))
                self._write({**self._by_digest, key.digest: key})
            return key

    def reload(self) -> bool:
        """Read the file again if it changed; with KeyFileError, the keys known before stay in force.

        May be called from any thread: an older file never takes the place of a newer one.
        """
        with self._reloading:
            return self._reload()

    def _reload(self) -> bool:
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                version = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                if version == self._version:
                    return False
                self._refuse_unsafe(status)
                keys = self._read(file.read(FILE_BYTES_MAX + 1))
        except FileNotFoundError:
            if self._version is not None:
                raise KeyFileError(f"{self._path} is gone") from None
            return False
        self._by_digest, self._version = keys, version
        self._by_id = {key.key_id: key for key in keys.values()}
        return True

    def _refuse_unsafe(self, status: os.stat_result) -> None:
        mode = stat.S_IMODE(status.st_mode)
        if mode & 0o022:
            raise KeyFileError(f"{self._path} can be written by others (mode {mode:04o}): chmod 600 it")
        if status.st_size > FILE_BYTES_MAX:
            raise KeyFileError(f"{self._path} is larger than {FILE_BYTES_MAX} bytes")

    def _read(self, content: bytes) -> dict[bytes, Key]:
        keys: dict[bytes, Key] = {}
        ids: set[str] = set()
        lines = content.split(b"\n")
        if lines.pop():
            raise KeyFileError(f"{self._path}:{len(lines) + 1}: the line is cut short")
        for number, line in enumerate(lines, start=1):
            try:
                key = _parse(line)
            except ValidationError as error:
                raise KeyFileError(f"{self._path}:{number}: {_first(error)}") from error
            if key.digest in keys or key.key_id in ids:
                raise KeyFileError(f"{self._path}:{number}: the key stands in an earlier line too")
            ids.add(key.key_id)
            keys[key.digest] = key
        return keys

    def _write(self, keys: dict[bytes, Key]) -> None:
        write_private(self._path, b"".join(_dump(key) + b"\n" for key in keys.values()))
        self.reload()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the writers' lock, on the newest keys."""
        descriptor = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(descriptor, self._path)
            self.reload()
            yield
        finally:
            os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    deadline_s = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                raise KeysBusy(f"{path} has been locked by another process for {LOCK_TIMEOUT_S:.0f} s") from None
            time.sleep(_LOCK_POLL_S)
        else:
            return


def _dump(key: Key) -> bytes:
    row = {name: getattr(key, name) for name in _Line.model_fields} | {"digest": key.digest.hex()}
    return json.dumps(row, separators=(",", ":")).encode()


def _parse(line: bytes) -> Key:
    row = dict(_Line.model_validate_json(line))
    return Key(**row | {"digest": bytes.fromhex(row["digest"])})


def _first(error: ValidationError) -> str:
    """The first thing wrong, without quoting the line."""
    detail = error.errors(include_url=False, include_input=False)[0]
    field_name = ".".join(str(part) for part in detail["loc"])
    message = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else detail["msg"]
    return f"{field_name}: {message}" if field_name else message
