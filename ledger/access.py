"""Access: whose key it is, and which rows of which tables it may see.

A ledger key is a line of the home's key file, made and revoked by `bursar key`. That file is read again as soon as it
changes, so a revoked key opens nothing from the next query on.
"""

import hashlib
import hmac
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from ledger import served

log = logging.getLogger("ledger.access")
KEY_KIND = "ledger"
FILE_BYTES_MAX = 128 << 20
ORGS_MAX = 64
ALL_ORGS = "*"
# The tables whose rows belong to the organisation in their column `org`. Every other table, one that is added later
# too, is closed to a key of some organisations until it is named here.
ORG_TABLES = frozenset(
    {"events", "usage", "hold", "signal", "tool_call", "usage_by_minute", "usage_by_hour", "usage_by_day"}
)


class Access(NamedTuple):
    """What one key opens: the rows of some organisations, or all with None; `is_home` for the home's own token."""

    name: str
    orgs: tuple[str, ...] | None
    is_home: bool = False

    def filters(self, tables: Iterable[tuple[str, str]], ours: str) -> dict[str, str]:
        """For each of these (database, table) that is not open to all, the condition that its rows must meet.

        `ours` is the ledger's own database.

        The engine takes the first condition whose name fits the table or its alias in the statement. With closed tables
        first and those of `system` last, an alias can only choose a condition that shows less.
        """
        rows = {f"{database}.{table}": self._rows(database, table, ours) for database, table in tables}
        rows = {name: condition for name, condition in rows.items() if condition != "1"}
        return dict(sorted(rows.items(), key=lambda item: (item[1] != "0", item[0].startswith("system."), item[0])))

    def _rows(self, database: str, table: str, ours: str) -> str:
        if database == "system":
            return served.SYSTEM_ROWS.get(table, "0")
        if database == served.VIEWS:
            return "1"
        if database != ours:
            return "0"
        if self.orgs is None:
            return "1"
        if table not in ORG_TABLES:
            return "0"
        return f"org IN ({', '.join(map(literal, self.orgs))})"


class _Key(NamedTuple):
    digest: bytes
    access: Access
    expires_at: float | None


class Keys:
    """Finds what a secret opens: the home's own token everything, a ledger key the rows of its organisations."""

    def __init__(self, token: str, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._token = token.encode()
        self._path = path
        self._clock = clock
        self._version: tuple[int, ...] = ()
        self._keys: dict[bytes, _Key] = {}

    def find(self, secrets: Iterable[bytes]) -> Access | None:
        """What the first valid one of these secrets opens, or None."""
        self._read_if_changed()
        for secret in secrets:
            if hmac.compare_digest(secret, self._token):
                return Access("home", None, is_home=True)
            # Only digests are compared, so the time taken tells nothing about the secrets that exist.
            digest = hashlib.sha256(secret).digest()
            key = self._keys.get(digest)
            if key is None or not hmac.compare_digest(key.digest, digest):
                continue
            if key.expires_at is None or self._clock() < key.expires_at:
                return key.access
        return None

    def _read_if_changed(self) -> None:
        """Reads the file anew; one that cannot be read opens nothing."""
        try:
            status = self._path.stat()
            version = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        except FileNotFoundError:
            self._keys, self._version = {}, ()
            return
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = _read(self._path, status)
        except (OSError, ValueError, TypeError, KeyError) as error:
            self._keys = {}
            log.error("no ledger key is valid until %s is mended: %s", self._path, error)


def literal(text: str) -> str:
    """A text as SQL."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def map_literal(values: Mapping[str, str]) -> str:
    """A map of texts as SQL."""
    return "{" + ", ".join(f"{literal(name)}: {literal(value)}" for name, value in values.items()) + "}"


def _read(path: Path, status: os.stat_result) -> dict[bytes, _Key]:
    if status.st_mode & 0o022:
        raise ValueError("it can be written by others: chmod 600 it")
    if status.st_size > FILE_BYTES_MAX:
        raise ValueError(f"it is larger than {FILE_BYTES_MAX} bytes")
    keys = [_key(json.loads(line)) for line in path.read_bytes().splitlines()]
    return {key.digest: key for key in keys if key is not None}


def _key(line: dict[str, object]) -> _Key | None:
    """The ledger key of one line, or None for a key of another kind and for one that was revoked."""
    if line["kind"] != KEY_KIND or line["revoked_at"] is not None:
        return None
    orgs, expires_at = line["orgs"], line["expires_at"]
    if (
        not isinstance(orgs, list)
        or not 0 < len(orgs) <= ORGS_MAX
        or not all(isinstance(org, str) and org for org in orgs)
    ):
        raise ValueError(f"key {line['key_id']} names no organisation")
    if expires_at is not None and not isinstance(expires_at, int):
        raise ValueError(f"key {line['key_id']} expires at no time")
    named = None if ALL_ORGS in orgs else tuple(orgs)
    return _Key(bytes.fromhex(str(line["digest"])), Access(str(line["key_id"]), named), expires_at)
