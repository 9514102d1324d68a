"""A session over ClickHouse's HTTP interface that is used as a connection of chDB's is."""

import http.client
import os
import re
import time
import uuid
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

USER_ENV = "BURSAR_CLICKHOUSE_USER"
PASSWORD_ENV = "BURSAR_CLICKHOUSE_PASSWORD"
TIMEOUT_S = 630.0
_PORTS = {"clickhouse": 8123, "https": 8443}
_CHUNK_BYTES = 1 << 18
_SESSION_TIMEOUT_S = 60
# chDB writes a long result into a file; a server sends it, and it goes on into that file.
_INTO = re.compile(r"\s{0,2}INTO OUTFILE '/dev/fd/(\d+)' APPEND FORMAT (\w+)$")


class Server(NamedTuple):
    """Where a ClickHouse server is, and which of its databases is the ledger's."""

    host: str
    port: int
    database: str
    is_tls: bool


class Credentials(NamedTuple):
    """Who the ledger is to the server."""

    user: str
    password: str


class BadServerUrl(ValueError):
    """A URL names no ClickHouse server, or more than that."""


class StatementFailed(Exception):
    """The server refused a statement or went away; the message is ClickHouse's where it has one."""


class Result(NamedTuple):
    """What a statement returned, and how long it took."""

    content: bytes
    elapsed_s: float

    def bytes(self) -> bytes:
        """The formatted result, empty when it went into a file."""
        return self.content

    def elapsed(self) -> float:
        """Seconds."""
        return self.elapsed_s


def server_of(url: str) -> Server:
    """The server and the database that a URL names; BadServerUrl for any other kind of URL."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.username is not None or parts.password is not None:
        raise BadServerUrl(f"the ledger's URL holds credentials: set {USER_ENV} and {PASSWORD_ENV} instead")
    database = parts.path.strip("/") or "default"
    if parts.scheme not in _PORTS or not parts.hostname or port == -1 or not database.isidentifier():
        raise BadServerUrl(f"{url}: write clickhouse://host:8123/database or https://host:8443/database")
    return Server(parts.hostname, port or _PORTS[parts.scheme], database, parts.scheme == "https")


class HttpSession:
    """What is `SET` in one statement holds for the following ones; for one thread."""

    def __init__(self, server: Server, credentials: Credentials) -> None:
        connection_class = http.client.HTTPSConnection if server.is_tls else http.client.HTTPConnection
        self._connection = connection_class(server.host, server.port, timeout=TIMEOUT_S)
        self._headers = {"X-ClickHouse-User": credentials.user, "X-ClickHouse-Key": credentials.password}
        self._fields = {
            "database": server.database,
            "session_id": uuid.uuid4().hex,
            "session_timeout": str(_SESSION_TIMEOUT_S),
            # So that an error after the first bytes is not taken for the end of the result.
            "http_write_exception_in_output_format": "0",
        }

    def query(self, sql: str, output_format: str = "TabSeparated", params: Mapping[str, str] | None = None) -> Result:
        """Runs one statement; StatementFailed."""
        began_s = time.monotonic()
        into = _INTO.search(sql)
        if into is not None:
            sql, output_format = sql[: into.start()], into[2]
        given = {f"param_{name}": value for name, value in (params or {}).items()}
        target = f"/?{urlencode({**self._fields, 'default_format': output_format, **given})}"
        try:
            self._connection.request("POST", target, sql.encode(), self._headers)
            response = self._connection.getresponse()
            if response.status != http.client.OK:
                raise StatementFailed(response.read().decode(errors="replace").strip())
            content = response.read() if into is None else _copied(response, int(into[1]))
        except (OSError, http.client.HTTPException) as error:
            raise StatementFailed(f"the ClickHouse server went away: {error}") from error
        return Result(content, time.monotonic() - began_s)

    def close(self) -> None:
        """Closes the connection; the server forgets the session after a while."""
        self._connection.close()


def _copied(response: http.client.HTTPResponse, fd: int) -> bytes:
    """Passes the body on, as far as it is read at the other end, and returns nothing of it."""
    with response:
        while chunk := response.read1(_CHUNK_BYTES):
            view = memoryview(chunk)
            while view:
                view = view[os.write(fd, view) :]
    return b""
