"""Risk goes by the scoring of the bundle that an OPA server serves now, also where that came without a reload."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from gateway.risks import SCORING_APPLIED
from tests.gateway import gateway_process
from tests.gateway.deployment import deploy
from tests.gateway.fake_runtime import FakeRuntime
from tests.gateway.gateway_process import GatewayProcess, until
from tests.local_server import HOST, free_port
from tests.policy.scorings import scoring


class _Bundle:
    """What the server serves: a revision and its scoring."""

    def __init__(self) -> None:
        self.revision, self.dwell_s = "sha256:1", 300


@contextmanager
def serving(port: int, bundle: _Bundle) -> Iterator[None]:
    """A server that answers as OPA does, with a scoring and nothing else."""

    class Answers(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            said: dict[str, Any] = {"provenance": {"bundles": {"bursar": {"revision": bundle.revision}}}}
            if self.path.startswith("/v1/data/bursar/risk/scoring"):
                said["result"] = scoring(dwell_s=bundle.dwell_s).document()
            content = json.dumps(said).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_request(self, code: object = "-", size: object = "-") -> None:
            """Says nothing."""

    server = ThreadingHTTPServer((HOST, port), Answers)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def dwells(own: GatewayProcess) -> list[int]:
    return [row["detail"]["dwell_s"] for row in own.records("control") if row["action"] == SCORING_APPLIED]


def test_a_scoring_counts_once_its_server_answers_and_when_its_bundle_changes(
    fake: FakeRuntime, tmp_path: Path
) -> None:
    port, bundle = free_port(), _Bundle()
    config = deploy(tmp_path, fake.url, policy={"url": f"http://{HOST}:{port}", "poll_s": 1})
    with gateway_process.running(tmp_path / "home", config) as own:
        assert dwells(own) == []
        assert own.admin.get("/admin/risk").json()["level"] is None
        with serving(port, bundle):
            until(lambda: dwells(own) == [300], "the scoring of a server that was away at the start")
            bundle.revision, bundle.dwell_s = "sha256:2", 60
            until(lambda: dwells(own) == [300, 60], "the scoring of its next bundle")
        assert own.admin.get("/admin/risk").json()["level"] == "normal"
        loaded = [row for row in own.records("control") if row["action"] == "policy_loaded"]
        assert [(row["actor"], row["subject"], row["detail"]) for row in loaded] == [
            ("poll", "sha256:1", ""),
            ("poll", "sha256:2", "sha256:1"),
        ]
