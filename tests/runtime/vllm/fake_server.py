"""Stands in for vLLM's API server when copied to where `python -m vllm.entrypoints.openai.api_server` finds it.

It answers `/health`, and behaves as the file `behaviour` in the model's folder says. Its engine is a child process, as
vLLM's is.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

model = Path(sys.argv[sys.argv.index("--model") + 1])
port = int(sys.argv[sys.argv.index("--port") + 1])
behaviour = (model / "behaviour").read_text()
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
facts = {"argv": sys.argv[1:], "environment": dict(os.environ), "engine_pid": engine.pid}
(model / "facts.json").write_text(json.dumps(facts))


class Handler(BaseHTTPRequestHandler):
    """Answers every request with 503 as often as the behaviour says, and then with 200."""

    unhealthy_answers: ClassVar[int] = 2 if behaviour == "slow" else 0

    def do_GET(self) -> None:
        self.send_response(503 if Handler.unhealthy_answers else 200)
        self.end_headers()
        Handler.unhealthy_answers = max(0, Handler.unhealthy_answers - 1)


if behaviour == "dies":
    sys.stdout.write("loading weights\nValueError: head_dim 7 is not supported\n")
    raise SystemExit(3)
if behaviour == "hangs":
    sys.stdout.write("loading weights for ever\n")
    sys.stdout.flush()
    time.sleep(60)
if behaviour == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
