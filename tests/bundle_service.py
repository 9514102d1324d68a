"""A bundle service for an OPA in tests: one file over HTTP with an ETag, which a test replaces while OPA polls it."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
RESOURCE = "bursar.tar.gz"
NAME = "bursar"


class BundleService:
    """What is served: `file` as it is now; `fetched` counts whole answers, `unchanged` those that only said so."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.fetched = 0
        self.unchanged = 0
        self.port = 0

    @property
    def url(self) -> str:
        """Its base."""
        return f"http://{HOST}:{self.port}"

    def configuration(self, public_key: Path, *, key_id: str = "bursar", scope: str = "bursar") -> dict[str, Any]:
        """The configuration of an OPA that polls it as fast as OPA does, and wants signatures of this key."""
        return {
            "services": {"bundles": {"url": self.url}},
            "keys": {key_id: {"algorithm": "ES256", "key": public_key.read_text(encoding="utf-8")}},
            "bundles": {
                NAME: {
                    "service": "bundles",
                    "resource": RESOURCE,
                    "polling": {"min_delay_seconds": 1, "max_delay_seconds": 1},
                    "signing": {"keyid": key_id, "scope": scope},
                }
            },
            "status": {"prometheus": True},
            "decision_logs": {"console": True},
        }


@contextmanager
def serving(file: Path) -> Iterator[BundleService]:
    """A service of one file, on a thread, until the block ends."""
    service = BundleService(file)
    server = ThreadingHTTPServer((HOST, 0), _handler(service))
    service.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(service: BundleService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != f"/{RESOURCE}" or not service.file.exists():
                self.send_error(404)
                return
            content = service.file.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            if self.headers.get("If-None-Match") == tag:
                service.unchanged += 1
                self.send_response(304)
                self.send_header("ETag", tag)
                self.end_headers()
                return
            service.fetched += 1
            self.send_response(200)
            self.send_header("ETag", tag)
            self.send_header("Content-Type", "application/gzip")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class names it so
            pass

    return Handler
