"""Stands in for vLLM's API server when copied to where `python -m vllm.entrypoints.openai.api_server` finds it.

It answers `/health` and what Bursar asks of a vLLM, and behaves as the file `behaviour` in the model's folder says.
Its engine is a child process, as vLLM's is.
"""

from __future__ import annotations

import atexit
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
seats = sys.argv[sys.argv.index("--max-num-seqs") + 1]
behaviour = (model / "behaviour").read_text()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
atexit.register(lambda: (engine.terminate(), engine.wait()))
facts = {"argv": sys.argv[1:], "environment": dict(os.environ), "engine_pid": engine.pid}
(model / "facts.json").write_text(json.dumps(facts))

METRICS = """
vllm:prompt_tokens_total{engine="0",model_name="tiny"} 7.0
vllm:generation_tokens_total{engine="0",model_name="tiny"} 3.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="tiny"} 1.0
vllm:prefix_cache_queries_total{engine="0",model_name="tiny"} 7.0
vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} 0.0
vllm:num_requests_running{engine="0",model_name="tiny"} RUNNING.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 0.0
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.0
vllm:cache_config_info{block_size="32",cache_dtype="auto",enable_prefix_caching="True",engine="0",\
gpu_memory_utilization="0.92",kv_offloading_size="None",num_gpu_blocks="100"} 1.0
"""


class Handler(BaseHTTPRequestHandler):
    """Answers with 503 as often as the behaviour says, and then as vLLM does."""

    unhealthy_answers: ClassVar[int] = 2 if behaviour == "slow" else 0

    def do_GET(self) -> None:
        status = 503 if Handler.unhealthy_answers else 200
        Handler.unhealthy_answers = max(0, Handler.unhealthy_answers - 1)
        if self.path == "/metrics" and (model / "uncounted").exists():
            (model / "uncounted").unlink()
            status = 500
        if (model / "dying").exists() and (model / "busy").exists():
            (model / "dying").rename(model / "dead")
        elif (model / "dead").exists():
            (model / "dead").unlink()
            os._exit(1)
        busy = (model / "busy").exists()
        bodies = {
            "/metrics": METRICS.replace("RUNNING", "2" if busy else "0"),
            "/version": json.dumps({"version": "0.32.0"}),
            "/v1/models": json.dumps({"data": [{"id": "tiny", "max_model_len": 4096}]}),
        }
        self.answer(status, bodies.get(self.path, ""))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if (model / "first step").exists():
            (model / "first step").rename(model / "busy")  # whose request is counted when its first step is done
        if (model / "late").exists():
            time.sleep(1)
        key = "data" if self.path == "/v1/embeddings" else "choices"
        mute = behaviour == "mute" or behaviour == f"mute with {seats} seats"
        self.answer(500 if behaviour == "ailing" else 200, json.dumps({key: [] if mute else [{}]}))

    def answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())


if behaviour in ("dies", f"dies with {seats} seats"):
    sys.stdout.write("loading weights\nValueError: head_dim 7 is not supported\n")
    raise SystemExit(3)
if behaviour == "hangs":
    sys.stdout.write("loading weights for ever\n")
    sys.stdout.flush()
    time.sleep(60)
if behaviour == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
HTTPServer(("127.0.0.1", port), Handler).serve_forever()
