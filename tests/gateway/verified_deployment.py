"""A deployment whose policy obliges other checks of each model, and a second model that can be told what to say."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx

from tests.gateway.deployment import document
from tests.gateway.fake_runtime import usage, whole
from tests.gateway.gateway_process import GatewayProcess, error_of, write_config

AWS = "AKIA" + "QYLPMN5HHHFPZAM2"  # made up here
# What tools and formats of these tests ask for.
SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
TIMEOUT_S = 2
JUDGE_TIMEOUT_S = 1.5
# model -> the checks that its answers must pass
VERIFY: dict[str, list[str]] = {
    "plain": [],
    "secretive": ["secrets"],
    "private": ["pii"],
    "both": ["pii", "secrets"],
    "formed": ["json_schema"],
    "tooled": ["tool_calls"],
    "guarded": ["secrets", "tool_calls"],
    "judged": ["second_model"],
    "approved": ["human"],
    "thorough": ["human", "second_model", "pii", "secrets"],
    "odd": ["astrology"],
    "judge": ["second_model"],  # which its own answers need not pass
    "embed": ["secrets", "pii"],
    "backed": ["secrets"],
}
ADMISSION = """package bursar.admission

import rego.v1

decision := {"allow": true, "reasons": [], "obligations": obligations} if input.intent.model != "denied"

obligations := object.union(
	object.get(data.bursar.admission.more, input.intent.model, {}),
	{"verify": object.get(data.bursar.admission.verify, input.intent.model, [])},
)
"""
TOOLS = """package bursar.tools

import rego.v1

decision := {"allow": true, "reasons": [], "obligations": {"verify": wanted}} if {
	input.phase == "called"
	input.risk.level == "normal"
	input.tool.name != "shell"
}

decision := {"allow": false, "reasons": [{"code": "no_shell", "message": "No shell."}], "obligations": {}} if {
	input.tool.name == "shell"
}

wanted := object.get(data.bursar.tools.further, input.tool.name, [])
"""
FURTHER = {"pay": ["human"], "post": ["secrets"]}
MORE = {"tooled": {"blocked_tools": ["rm"]}, "backed": {"fallback_models": ["plain"]}}


def deploy_verified(folder: Path, fake_url: str, judge_url: str, **verify: Any) -> Path:
    """Write the bundle and the configuration, whose section `verify` may be changed."""
    for package, rules, tables in (
        ("admission", ADMISSION, {"verify": VERIFY, "more": MORE}),
        ("tools", TOOLS, {"further": FURTHER}),
    ):
        lies = folder / "rego" / "bursar" / package
        lies.mkdir(parents=True)
        (lies / f"{package}.rego").write_text(rules)
        (lies / "data.json").write_text(json.dumps(tables))
    config = document(fake_url)
    usual = next(model for model in config["models"] if model["id"] == "plain")
    offered = [{**usual, "id": model, "upstream_model": model} for model in VERIFY]
    for model in offered:
        if model["id"] == "judge":
            model["runtimes"] = ["judge"]
        elif model["id"] == "embed":
            model["endpoints"] = ["embeddings"]
        elif model["id"] == "backed":
            model["runtimes"] = ["dead"]
    config["models"] = offered
    own = {"id": "judge", "url": judge_url, "first_byte_timeout_s": JUDGE_TIMEOUT_S}
    config["runtimes"].append({**config["runtimes"][0], **own})
    config["budgets"] = [each for each in config["budgets"] if each["id"] in ("org-day", "one-at-a-time")]
    second = {"model": "judge", "max_output_tokens": 16}
    config["verify"] = {"timeout_s": TIMEOUT_S, "second_model": second, "approval_wait_s": 0.3, **verify}
    return write_config(folder / "bursar.yaml", config)


class Judge(BaseHTTPRequestHandler):
    """Says no to `forbidden`, mumbles about `mumble`, breaks on `breaking`, stalls on `stalling`; else says yes."""

    protocol_version = "HTTP/1.1"
    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        question = body["messages"][0]["content"]
        if "stalling" in question:
            time.sleep(2 * JUDGE_TIMEOUT_S)
        said = "Yes, sure." if "mumble" in question else json.dumps({"release": "forbidden" not in question})
        answer = whole(usage(5, prompt=11), content=said).encode()
        with suppress(ConnectionError):
            self._say(500 if "breaking" in question else 200, answer)

    def _say(self, status: int, answer: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the name is http.server's
        """Nothing is printed."""


@contextmanager
def judging() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The URL of the second model's runtime, and what it has been asked."""
    asked: list[dict[str, Any]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneJudge", (Judge,), {"asked": asked}))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def says(content: str | None, **message: Any) -> dict[str, Any]:
    """The script of a runtime that answers with this message."""
    choices = [{"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": "stop"}]
    return {"steps": [whole(usage(3), choices=choices)]}


def calling(name: str, arguments: str = "{}", **more: Any) -> dict[str, Any]:
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}, **more}
    return says(None, tool_calls=[call])


def withheld(gateway: GatewayProcess, answer: httpx.Response, check: str, *kinds: str) -> dict[str, Any]:
    """The error of an answer that failed a check, whose tokens are charged and whose row says so."""
    error = error_of(answer, 403, "verification_failed")
    assert error["type"] == "verification_failed"
    assert error["bursar"]["check"] == check
    assert error["bursar"]["kinds"] == sorted(kinds)
    assert all(kind in error["message"] for kind in (check, *kinds))
    row = gateway.ended(answer)
    assert (row["status"], row["http_status"], row["error_code"]) == ("failed", 403, "verification_failed")
    assert (row["input_tokens"], row["output_tokens"], row["certainty"]) == (7, 3, "exact")
    assert row["list_cost_nusd"] > 0
    assert answer.headers["x-bursar-decision"] == row["decision_id"]
    return error
