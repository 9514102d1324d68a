"""Reload is whole or not at all, and webhooks hear of crossed thresholds."""

import hashlib
import hmac
import json
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import yaml

from tests.gateway import gateway_process
from tests.gateway.deployment import KEY_ENV, PRICE, deploy, document, tables
from tests.gateway.fake_runtime import FakeRuntime, usage, whole
from tests.gateway.gateway_process import GatewayProcess, error_of, until, write_bundle, write_config

SECRET = "webhook-secret"
Events = queue.Queue[tuple[dict[str, Any], str]]


@pytest.fixture(scope="module")
def heard() -> Iterator[tuple[str, Events]]:
    """A receiver of webhooks: its URL, and what it was sent with its signature."""
    events: Events = queue.Queue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            digest = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
            assert self.headers["x-bursar-signature"] == f"sha256={digest}"
            events.put((json.loads(body), digest))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 the name is http.server's
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", events
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def own(
    fake: FakeRuntime, heard: tuple[str, Events], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """A gateway whose configuration one person alone may change."""
    folder = tmp_path_factory.mktemp("own")
    os.environ |= {KEY_ENV: "runtime-secret", "BURSAR_TEST_HOOK": SECRET}
    hook = {"id": "ops", "url": heard[0], "secret_env": "BURSAR_TEST_HOOK"}
    soft = {"scope": {"team": "watched"}, "resource": "tokens", "window": "total", "mode": "soft"}
    budgets = [*document(fake.url)["budgets"], {"id": "watched", "owner": "finance", "limit": 100, **soft}]
    config = deploy(folder, fake.url, webhooks=[hook], budgets=budgets, approvals={"loosening": False})
    with gateway_process.running(folder / "home", config) as own:
        yield own


@pytest.fixture(autouse=True)
def as_it_was(own: GatewayProcess) -> Iterator[None]:
    """Put configuration and bundle back after each test."""
    config, folder = own.config.read_text(), own.config.parent / "rego"
    yield
    own.config.write_text(config)
    write_bundle(folder, tables())
    rego = folder / "bursar" / "admission" / "broken.rego"
    rego.unlink(missing_ok=True)
    assert own.admin.post("/admin/reload").json()["applied"] is True


def change(own: GatewayProcess, edit: Callable[[dict[str, Any]], object]) -> None:
    whole_file = yaml.safe_load(own.config.read_text())
    edit(whole_file)
    write_config(own.config, whole_file)


def budget(config: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in config["budgets"] if each["id"] == name)


def revision(own: GatewayProcess) -> str:
    return str(own.client.get("/readyz").json()["policy_revision"])


def applied(own: GatewayProcess) -> list[dict[str, Any]]:
    return [row for row in own.records("control") if row["action"] == "config_applied"]


def test_a_changed_limit_is_in_force_at_once_and_is_a_row(own: GatewayProcess) -> None:
    error_of(own.chat("quota", max_tokens=500), 429, "insufficient_quota")
    change(own, lambda config: budget(config, "quota-day").update(limit=5000))
    said = own.admin.post("/admin/reload").json()
    assert said["applied"] is True
    assert said["changes"] == ["budgets.quota-day.limit"]
    assert own.chat("quota", max_tokens=500).status_code == 200
    row = applied(own)[-1]
    assert (row["digest"], row["detail"]) == (said["digest"], said["changes"])


def test_sighup_reloads_too(own: GatewayProcess) -> None:
    rows = len(applied(own))
    change(own, lambda config: budget(config, "quota-day").update(limit=6000))
    own.process.send_signal(signal.SIGHUP)
    until(lambda: len(applied(own)) > rows, "the row of the reload")
    assert applied(own)[-1]["actor"] == "SIGHUP"
    assert own.admin.get("/admin/budgets", params={"budget": "quota-day"}).json()["budgets"][0]["limit"] == 6000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("version: [", "bursar.yaml:"),
        ("", "version"),
        ("version: 1\nsurprise: 2\n", "surprise"),
        ("version: 1\nruntimes: []\nmodels: []\n", "bursar.yaml:2"),
    ],
)
def test_an_invalid_file_changes_nothing(own: GatewayProcess, text: str, says: str) -> None:
    before, rows = own.admin.get("/admin/budgets").json()["budgets"], len(applied(own))
    own.config.write_text(text)
    answer = own.admin.post("/admin/reload")
    assert answer.status_code == 422
    said = answer.json()
    assert said["applied"] is False
    assert any(says in problem for problem in said["problems"])
    assert own.admin.get("/admin/budgets").json()["budgets"] == before
    assert len(applied(own)) == rows
    assert own.chat().status_code == 200


def test_a_new_model_and_a_new_offer_are_served_after_a_reload(own: GatewayProcess) -> None:
    error_of(own.chat(model="fresh"), 404, "model_not_found")
    model = {"id": "fresh", "owner": "platform", "runtimes": ["fake"], "endpoints": ["chat"], "context_tokens": 4096}
    change(own, lambda config: config["models"].append({**model, "price": [PRICE]}))
    before, offered = revision(own), tables()
    offered["rows"]["acme"]["*"]["*"]["offers"]["fresh"] = "plain"
    write_bundle(own.config.parent / "rego", offered)
    assert own.admin.post("/admin/reload").json()["applied"] is True
    assert revision(own) != before
    row = own.ended(own.chat(model="fresh"))
    assert (row["served_model"], row["policy_revision"]) == ("fresh", revision(own))
    assert [each for each in own.records("control") if each["action"] == "policy_loaded"][-1]["subject"] == revision(
        own
    )


@pytest.mark.parametrize(
    "rego",
    [
        "package bursar.admission\n\nthis is not rego {",
        "package bursar.other\n\nimport rego.v1\n\nx := http.send({})\n",
        "package bursar.other\n\nimport rego.v1\n\nx := time.now_ns()\n",
    ],
)
def test_a_bundle_that_cannot_serve_leaves_the_last_good_one(own: GatewayProcess, rego: str) -> None:
    before = revision(own)
    (own.config.parent / "rego" / "bursar" / "admission" / "broken.rego").write_text(rego)
    answer = own.admin.post("/admin/reload")
    assert answer.status_code == 422
    assert "broken.rego" in str(answer.json()["problems"])
    assert revision(own) == before
    assert own.chat().status_code == 200


def test_a_request_in_flight_survives_a_reload_that_takes_its_runtime_away(own: GatewayProcess) -> None:
    held = threading.Thread(target=lambda: answers.append(own.chat(script={"steps": [1.0, whole(usage(2))]})))
    answers: list[Any] = []
    held.start()
    until(lambda: own.open_holds() == 1, "the hold")
    change(own, lambda config: config["runtimes"][0].update(connections_max=7))
    assert own.admin.post("/admin/reload").json()["applied"] is True
    held.join()
    assert answers[0].status_code == 200
    assert own.ended(answers[0])["certainty"] == "exact"


def test_what_needs_a_restart_is_said(own: GatewayProcess) -> None:
    change(own, lambda config: config["limits"].update(body_bytes_max=2048))
    said = own.admin.post("/admin/reload").json()
    assert said["needs_restart"] == ["limits.body_bytes_max"]


def test_crossed_thresholds_are_told_once_each(own: GatewayProcess, heard: tuple[str, Events]) -> None:
    """A soft budget of 100 at 75, 86, 96, 106 and 116: three signals, three webhooks, and nothing is refused."""
    for output in (70, 6, 5, 5, 5):
        answer = own.chat("watched", script={"steps": [whole(usage(output, prompt=5))]})
        assert answer.status_code == 200
        own.ended(answer)
    signals = [row for row in own.records("signal") if row["subject"] == "watched"]
    assert [(row["name"], row["level"], row["value"]) for row in signals] == [
        ("budget_threshold", "warn", 86),
        ("budget_threshold", "critical", 96),
        ("budget_threshold", "exhausted", 106),
    ]
    told = [heard[1].get(timeout=5)[0] for _ in signals]
    assert [event["event_id"] for event in told] == [row["event_id"] for row in signals]
    assert heard[1].empty()
