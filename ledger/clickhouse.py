"""A ClickHouse server as the store: `clickhouse://host:8123/database`, or `https://host:8443/database`."""

import fcntl
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

import clickhouse_connect
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from ledger.destination import StoreAway
from ledger.http_session import PASSWORD_ENV, USER_ENV, BadServerUrl, Credentials, HttpSession, server_of
from ledger.migrations import SchemaRefused, migrate, missing, shipped
from ledger.store import StoreLocked, StoreUnsupported
from ledger.warehouse import STRANGE, UNREADABLE, Warehouse, one_line

PASSWORD_FILE = Path("secrets", "clickhouse.password")
CONNECT_TIMEOUT_S = 10
ANSWER_TIMEOUT_S = 120
_SPOKEN = "Code: "
_HOW = re.compile(r"(?<=\[Errno \d\d\d\] )[\w ]+|(?<=\[Errno \d\d\] )[\w ]+|timed out|Connection aborted|reset by peer")
_STATUS = re.compile(r"HTTP status \d{3}")
# Through a Distributed table an insert is done when its shard has it; the shard's replicas know the token themselves.
_SETTINGS = {"distributed_foreground_insert": 1}
_ENGINE_OF_USAGE = "SELECT engine FROM system.tables WHERE database = currentDatabase() AND name = 'usage'"
# Inserts have their tokens as comments, and these begin with the writer.
_KILL = "KILL QUERY WHERE user = currentUser() AND startsWith(Settings['log_comment'], {prefix:String}) SYNC"


class ServerStore(Warehouse):
    """Tables in a ClickHouse server, which one ledger process of this home writes to."""

    def __init__(
        self, url: str, home: Path, environ: Mapping[str, str] = os.environ, *, answer_timeout_s: int = ANSWER_TIMEOUT_S
    ) -> None:
        """Connects, with the schema up to date. StoreLocked, StoreUnsupported, StoreAway, SchemaRefused."""
        try:
            self.server = server_of(url)
        except BadServerUrl as error:
            raise StoreUnsupported(str(error)) from error
        self._answer_timeout_s = answer_timeout_s
        self.credentials = credentials_of(home, environ)
        self._lock_fd = _lock(home / "clickhouse.lock")
        self._clients: list[Client] = []
        # Their warnings repeat what the shipper says, with the whole request.
        for name in ("urllib3", "clickhouse_connect"):
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            super().__init__(self.connect(_SETTINGS))
            self.migrated = self._migrate()
        except BaseException:
            self.close()
            raise

    def connect(self, settings: Mapping[str, object]) -> Client:
        """One more connection to the server, with these settings for good; it is closed with the store. StoreAway."""
        host, port, database, is_tls = self.server
        try:
            client = clickhouse_connect.get_client(
                interface="https" if is_tls else "http",
                host=host,
                port=port,
                database=database,
                username=self.credentials.user,
                password=self.credentials.password,
                connect_timeout=CONNECT_TIMEOUT_S,
                send_receive_timeout=self._answer_timeout_s,
                # The shipper tries again by itself, and a session would refuse a retry while the first is under way.
                query_retries=0,
                autogenerate_session_id=False,
                settings=dict(settings),
            )
        except ClickHouseError as error:
            raise StoreAway(self._said(error)) from error
        except UNREADABLE as error:
            raise StoreAway(STRANGE) from error
        self._clients.append(client)
        return client

    def session(self) -> HttpSession:
        """A connection for a statement of someone else's."""
        return HttpSession(self.server, self.credentials)

    def settle(self, writer: str) -> None:
        """Ends inserts of the writer that an earlier process sent and that still run. StoreAway."""
        self.execute(_KILL, prefix=f"{writer}:")

    def _said(self, error: ClickHouseError) -> str:
        """What the server said; of a connection that broke only how, for the client's words hold the whole request."""
        said = one_line(error)
        if _SPOKEN in said:
            return f"the ClickHouse server refused: {said[said.index(_SPOKEN) :]}"
        status = _STATUS.search(said)
        if status is not None:
            return f"the ClickHouse server {self.server.host}:{self.server.port} answered {status[0]}: look at its log"
        how = _HOW.search(str(error))
        return f"the ClickHouse server {self.server.host}:{self.server.port} is away: {how[0] if how else 'no answer'}"

    def _migrate(self) -> list[str]:
        """Brings a server's schema up to date; that of a cluster is not this process's to change."""
        if self.select(_ENGINE_OF_USAGE) != [("Distributed",)]:
            return migrate(self, shipped())
        names = [migration.name for migration in missing(self, shipped())]
        if names:
            said = f"the cluster lacks {', '.join(names)}"
            raise SchemaRefused(f"{said}: run what `bursar ledger schema --cluster <name>` prints on it")
        return []

    def close(self) -> None:
        """Closes the connections and gives up the lock."""
        for client in self._clients:
            client.close()
        os.close(self._lock_fd)


def credentials_of(home: Path, environ: Mapping[str, str]) -> Credentials:
    """The user from the environment, the password from there or from a file in the home."""
    password = environ.get(PASSWORD_ENV)
    if password is None:
        path = home / PASSWORD_FILE
        password = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    return Credentials(environ.get(USER_ENV, "default"), password)


def _lock(path: Path) -> int:
    """Keeps a second process of this home from shipping the same journals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise StoreLocked(f"another process ships {path.parent}; ask that one or stop it") from None
    return fd
