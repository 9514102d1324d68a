"""The client of the ledger process: queries over loopback HTTP, without the engine in this process."""

import http.client
import ipaddress
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

PORT_FILE = Path("run", "ledger.json")
TOKEN_FILE = Path("run", "ledger.token")
QUERY_TIMEOUT_S = 90.0
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
_PROBE_TIMEOUT_S = 2.0
_POLL_S = 0.05
_PIECE_BYTES = 1 << 18
_EXIT_LOCKED = 3
# ClickHouse reads the value of a parameter as a field of its tab-separated format.
_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r", "\b": r"\b", "\f": r"\f", "\0": r"\0"})


NOT_LOOPBACK = "{} is not loopback, and keys travel in plain HTTP: put TLS in front, or say that it is to be exposed"
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 where a process that listens everywhere is reached


# LedgerUnavailable   no ledger process answers, or none can be started
# QueryFailed         it answered that it will not or cannot run this
class LedgerUnavailable(Exception):
    """The ledger process cannot be reached."""


class QueryFailed(Exception):
    """The ledger refused a request; the message is ClickHouse's and safe to show."""


class Address(NamedTuple):
    """Where a ledger process listens."""

    host: str
    port: int


class LedgerClient:
    """Speaks to one ledger process; it keeps no connection, so it may be shared between threads."""

    def __init__(self, address: Address, token: str, timeout_s: float = QUERY_TIMEOUT_S) -> None:
        self.address = address
        self._token = token
        self._timeout_s = timeout_s

    def query(self, sql: str, output_format: str = "TabSeparated", **parameters: str) -> bytes:
        """The formatted result of one reading statement; `parameters` fill its `{name:Type}`. QueryFailed."""
        values = {f"param_{name}": _utf8(value.translate(_ESCAPES)) for name, value in parameters.items()}
        return self._ask("POST", "/", {"default_format": output_format, **values}, _utf8(sql))

    def rows(self, sql: str, **parameters: str) -> list[dict[str, Any]]:
        """The result as dictionaries; decimals come as strings, so that nothing is rounded."""
        return [json.loads(line) for line in self.query(sql, "JSONEachRow", **parameters).splitlines()]

    def stream(self, sql: str, output_format: str, **settings: str) -> Iterator[bytes]:
        """The formatted result piece by piece, however large it is. QueryFailed, also when it fails in the middle."""
        target = f"/?{urlencode({'default_format': output_format, **settings})}"
        with self._opened("POST", target, _utf8(sql), self._timeout_s) as response:
            if response.status != http.client.OK:
                raise QueryFailed(_in_a_line(response.read()))
            begin = f"\r\n__exception__\r\n{response.getheader('X-ClickHouse-Exception-Tag')}\r\n".encode()
            while piece := response.read1(_PIECE_BYTES):
                if piece.startswith(begin):
                    raise QueryFailed(_in_a_line(piece.removeprefix(begin).rsplit(b"\n", 3)[0]))
                yield piece

    def flush(self, timeout_s: float = 30.0) -> dict[str, Any]:
        """Waits until all that is in the journals now is in the ledger, and returns its status. QueryFailed if not."""
        status: dict[str, Any] = json.loads(self._ask("POST", "/flush", {"timeout_s": str(timeout_s)}, b""))
        return status

    def status(self) -> dict[str, Any]:
        """`lag_rows`, `lag_s`, `shipped` and `stalled` by writer, and `rows` by table."""
        status: dict[str, Any] = json.loads(self._ask("GET", "/status", {}, b""))
        return status

    def ping(self, timeout_s: float = _PROBE_TIMEOUT_S) -> bool:
        """Whether a ledger process answers."""
        try:
            return self._exchange("GET", "/ping", b"", timeout_s)[0] == http.client.OK
        except LedgerUnavailable:
            return False

    def _ask(self, method: str, path: str, parameters: Mapping[str, str | bytes], body: bytes) -> bytes:
        status, answer = self._exchange(method, f"{path}?{urlencode(parameters)}", body, self._timeout_s)
        if status != http.client.OK:
            raise QueryFailed(_in_a_line(answer))
        return answer

    def _exchange(self, method: str, target: str, body: bytes, timeout_s: float) -> tuple[int, bytes]:
        with self._opened(method, target, body, timeout_s) as response:
            return response.status, response.read()

    @contextmanager
    def _opened(self, method: str, target: str, body: bytes, timeout_s: float) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(*self.address, timeout=timeout_s)
        try:
            connection.request(method, target, body, {"X-ClickHouse-Key": self._token})
            yield connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            host, port = self.address
            said = str(error) or type(error).__name__
            raise LedgerUnavailable(f"no ledger process answers on {host}:{port}: {said}") from error
        finally:
            connection.close()


def _utf8(text: str) -> bytes:
    """The bytes of what is asked; QueryFailed where a command line had bytes that stand for no character."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise QueryFailed(f"what is asked is no text in UTF-8 from its character {error.start + 1} on") from None


def _in_a_line(answer: bytes) -> str:
    return " ".join(answer.decode(errors="replace").split())


def running(home: Path) -> LedgerClient | None:
    """The client of the ledger process that serves this home, or None when none is alive."""
    try:
        said = json.loads((home / PORT_FILE).read_text(encoding="utf-8"))
        token = (home / TOKEN_FILE).read_text(encoding="utf-8").strip()
        pid, host, port = int(said["pid"]), str(said["host"]), int(said["port"])
        os.kill(pid, 0)
    except (OSError, ValueError, KeyError):
        # A file that is missing, half a file, or a process that is gone: in each case none serves this home.
        return None
    client = LedgerClient(Address(_EVERYWHERE.get(host, host), port), token)
    return client if client.ping() else None


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine can reach a listener on this host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def open_ledger(home: Path, url: str) -> Iterator[LedgerClient]:
    """The running ledger process of this home, or one started for as long as the block lasts. LedgerUnavailable."""
    client = running(home)
    if client is not None:
        yield client
        return
    # The pipe closes with this process, however it ends, and the ledger process ends with the pipe.
    command = [sys.executable, "-m", "ledger", "--home", str(home), "--url", url, "--while-stdin"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield _wait_for(process, home)
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a ledger process after it has shipped the rest; kills it when that takes longer than a minute."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _wait_for(process: subprocess.Popen[bytes], home: Path) -> LedgerClient:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        client = running(home)
        if client is not None:
            return client
        # Another process may hold the store and be about to say where it listens.
        if process.poll() not in (None, _EXIT_LOCKED):
            break
        time.sleep(_POLL_S)
    raise LedgerUnavailable(f"the ledger of {home} could not be opened; see the line above")
