"""A ClickHouse server for tests: the HTTP interface of one, over the real engine, with faults on demand.

`python clickhouse_server.py FOLDER [PORT]` prints its port. `POST /fault?kind=K&count=N` breaks the next N inserts:
`reset` before anything is done, `lost` after all is done, `error` with a 500 before, `half` kills the server midway,
`slow` answers after the client has given up.
"""

import base64
import json
import os
import re
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import chdb

PROTOCOL = {
    "query",
    "database",
    "session_id",
    "session_timeout",
    "default_format",
    "query_id",
    "client_protocol_version",
}
# What shapes the answer of a real server only.
PROTOCOL |= {"wait_end_of_query", "send_progress_in_http_headers", "http_headers_progress_interval_ms", "role"}
PROTOCOL |= {"enable_http_compression", "http_write_exception_in_output_format", "session_check"}
INSERT = re.compile(rb"\s*(INSERT INTO .*?) FORMAT (\w+)\s*\n", re.IGNORECASE | re.DOTALL)
CODE = re.compile(r"Code: (\d+)")
BASIC = "Basic " + base64.b64encode(b"default:secret").decode()
SLOW_S = 3.0
HALF_S = 0.02


class Engine:
    """One engine, its sessions, and the faults that are due."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.sessions: dict[str, Any] = {}
        self.idle: list[Any] = []
        self.lock = threading.Lock()
        self.faults: list[str] = []
        self.inserts = 0

    def connect(self, session: str) -> Any:
        with self.lock:
            if not session:
                return self.idle.pop() if self.idle else chdb.connect(self.folder)
            if session not in self.sessions:
                self.sessions[session] = chdb.connect(self.folder)
            return self.sessions[session]

    def run(self, fields: dict[str, str], body: bytes) -> bytes:
        session = fields.get("session_id", "")
        connection = self.connect(session)
        try:
            return self.answer(connection, fields, body)
        finally:
            if not session:
                self.idle.append(connection)

    def answer(self, connection: Any, fields: dict[str, str], body: bytes) -> bytes:
        given = {name.removeprefix("param_"): value for name, value in fields.items() if name.startswith("param_")}
        settings = {
            name: value for name, value in fields.items() if name not in PROTOCOL and not name.startswith("param_")
        }
        whole = fields.get("query", "").encode() + b"\n" + body
        insert = INSERT.match(whole)
        if settings and insert is None:
            values = ", ".join(f"{name} = '{value}'" for name, value in settings.items())
            connection.query(f"SET {values}")
        if insert is None:
            result = connection.query(whole.decode(), fields.get("default_format", "TabSeparated"), params=given)
            return result.bytes() or b""
        values = ", ".join(f"{name} = '{value}'" for name, value in settings.items())
        with tempfile.NamedTemporaryFile() as file:
            file.write(whole[insert.end() :])
            file.flush()
            connection.query(
                f"{insert[1].decode()} FROM INFILE '{file.name}' SETTINGS {values} FORMAT {insert[2].decode()}"
            )
        return b""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: Engine

    def do_GET(self) -> None:
        self.answer(200, b"Ok.\n")

    def do_POST(self) -> None:
        parts = urlsplit(self.path)
        fields = dict(parse_qsl(parts.query, keep_blank_values=True))
        body = self.body()
        if parts.path == "/fault":
            self.engine.faults = [fields["kind"]] * int(fields["count"])
            return self.answer(200, b"")
        if self.headers.get("X-ClickHouse-Key", "") != "secret" and self.headers.get("Authorization", "") != BASIC:
            return self.answer(403, b"Code: 516. DB::Exception: wrong password. (AUTHENTICATION_FAILED)", 516)
        is_insert = INSERT.match(fields.get("query", "").encode() + b"\n" + body) is not None
        fault = self.engine.faults.pop() if is_insert and self.engine.faults else ""
        if fault == "reset":
            return self.reset()
        if fault == "error":
            return self.answer(500, b"Code: 243. DB::Exception: Cannot reserve 1.00 MiB. (NOT_ENOUGH_SPACE)", 243)
        if fault == "half":
            threading.Timer(HALF_S, os.kill, (os.getpid(), signal.SIGKILL)).start()
        try:
            content = self.engine.run(fields, body)
        except Exception as error:  # noqa: BLE001 chDB's own; a server answers all of them
            text = str(error)
            code = CODE.search(text)
            return self.answer(500, text.encode(), int(code[1]) if code else 1)
        if fault == "lost":
            return self.reset()
        if fault == "slow":
            time.sleep(SLOW_S)
        return self.answer(200, content)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def answer(self, status: int, content: bytes, code: int = 0) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-ClickHouse-Exception-Code", str(code))
        self.send_header("X-ClickHouse-Summary", json.dumps({"written_rows": "0"}))
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


def main() -> None:
    Handler.engine = Engine(str(Path(sys.argv[1]).resolve()))
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2]) if len(sys.argv) > 2 else 0), Handler)
    server.daemon_threads = True
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
