"""An answer that a person has to approve is charged, withheld, and fetched by its key once somebody has agreed."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from domain.ids import uuid7
from tests.gateway import gateway_process
from tests.gateway.fake_runtime import FakeRuntime, chunk, closing, events, sse, usage, whole
from tests.gateway.gateway_process import HELLO, GatewayProcess, error_of, until
from tests.gateway.verified_deployment import AWS, deploy_verified, judging

SCRIPT = {"steps": [whole(usage(3), content="a considered answer")]}
STREAM = sse(*events(chunk("a considered\n", usage(1)), chunk("answer", usage(2)), closing(usage(2)), "[DONE]"))


@pytest.fixture(scope="module")
def verified(fake: FakeRuntime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway whose answers wait for a person."""
    folder = tmp_path_factory.mktemp("approvals")
    with judging() as (judge_url, _):
        config = deploy_verified(folder, fake.url, judge_url, approval_wait_s=1.0, kept_bytes_max="64KiB")
        with gateway_process.running(folder / "home", config) as verified:
            yield verified


def decide(gateway: GatewayProcess, approval: str, approve: bool) -> dict[str, Any]:
    said = {"approve": approve, "reason": "read it"}
    decided: dict[str, Any] = gateway.admin.post(f"/admin/approvals/{approval}", json=said).raise_for_status().json()
    return decided


def pending(gateway: GatewayProcess) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = gateway.admin.get("/admin/approvals").raise_for_status().json()["approvals"]
    return found


def required(gateway: GatewayProcess, answer: httpx.Response) -> str:
    error = error_of(answer, 403, "approval_required")
    row = gateway.ended(answer)
    assert (row["status"], row["http_status"], row["error_code"]) == ("failed", 403, "approval_required")
    assert row["output_tokens"] > 0
    approval: str = error["bursar"]["approval"]
    assert error["bursar"]["answer"] == f"/v1/approvals/{approval}"
    assert approval in error["message"]
    return approval


def fetch(gateway: GatewayProcess, approval: str, team: str = "free") -> httpx.Response:
    return gateway.client.get(f"/v1/approvals/{approval}", headers=gateway.headers(team))


@pytest.mark.parametrize(("stream", "script"), [(False, SCRIPT), (True, STREAM)])
def test_an_answer_is_fetched_once_it_is_approved(verified: GatewayProcess, stream: bool, script: Any) -> None:
    answer = verified.chat(model="approved", stream=stream, script=script)
    assert "considered" not in answer.text
    approval = required(verified, answer)
    waiting = fetch(verified, approval)
    assert (waiting.status_code, waiting.json()["state"]) == (202, "pending")
    assert fetch(verified, approval, "other").status_code == 404
    assert "considered" in verified.admin.get(f"/admin/approvals/{approval}").json()["answer"]
    decide(verified, approval, approve=True)
    for _ in range(2):
        fetched = fetch(verified, approval)
        assert fetched.status_code == 200
        assert "considered" in fetched.text
        assert fetched.headers["x-bursar-verified"] == "human"
        assert fetched.headers["x-request-id"] == answer.headers["x-request-id"]
        assert fetched.headers["content-type"].startswith("text/event-stream" if stream else "application/json")
    if not stream:
        assert fetched.text == SCRIPT["steps"][0]
    assert fetch(verified, approval, "other").status_code == 404


@pytest.mark.parametrize(("stream", "script"), [(False, SCRIPT), (True, STREAM)])
def test_an_answer_is_released_at_once_where_somebody_agrees_in_time(
    verified: GatewayProcess, stream: bool, script: Any
) -> None:
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(verified.chat, model="approved", stream=stream, script=script)
        until(lambda: len(pending(verified)) == 1, "the approval")
        (approval,) = pending(verified)
        decide(verified, approval["id"], approve=True)
        answer = asking.result()
    assert answer.status_code == 200
    assert "considered" in answer.text
    assert answer.headers["x-bursar-verified"] == "human"
    assert verified.ended(answer)["status"] == "ok"
    assert approval["kind"] == "answer"
    assert approval["detail"]["request_id"] == answer.headers["x-request-id"]
    assert fetch(verified, approval["id"]).status_code == 404


def test_an_answer_that_is_denied_is_never_released(verified: GatewayProcess) -> None:
    approval = required(verified, verified.chat(model="approved", script=SCRIPT))
    decide(verified, approval, approve=False)
    error_of(fetch(verified, approval), 403, "approval_denied")
    error_of(fetch(verified, approval), 404, "approval_not_found")
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(verified.chat, model="approved", script=SCRIPT)
        until(lambda: len(pending(verified)) == 1, "the approval")
        decide(verified, pending(verified)[0]["id"], approve=False)
        error = error_of(asking.result(), 403, "verification_failed")
    assert error["bursar"]["kinds"] == ["denied"]


def test_nobody_is_asked_about_what_a_cheaper_check_has_stopped(verified: GatewayProcess) -> None:
    answer = verified.chat(model="thorough", script={"steps": [whole(usage(3), content=AWS)]})
    assert error_of(answer, 403, "verification_failed")["bursar"]["check"] == "secrets"
    assert pending(verified) == []


def test_an_approval_that_nobody_waits_for_ends(verified: GatewayProcess) -> None:
    body = {"model": "approved", "messages": HELLO, "script": SCRIPT}
    headers = verified.headers("free", **{"x-request-id": (client_id := uuid7())})
    with httpx.Client(base_url=verified.url, timeout=0.4) as leaving, pytest.raises(httpx.TimeoutException):
        leaving.post("/v1/chat/completions", json=body, headers=headers)
    assert verified.ended(client_id)["status"] == "cut"
    assert pending(verified) == []


def test_an_answer_that_is_too_large_to_keep_fails(verified: GatewayProcess) -> None:
    answer = verified.chat(model="approved", script={"steps": [whole(usage(3), content="x" * 40_000)]})
    assert error_of(answer, 403, "verification_failed")["bursar"]["kinds"] == ["too_large"]


def test_a_repeat_does_not_release_what_waits(verified: GatewayProcess, fake: FakeRuntime) -> None:
    key, calls = uuid7(), len(fake.received)
    names = {
        required(verified, verified.chat(model="approved", headers={"idempotency-key": key}, script=SCRIPT))
        for _ in range(2)
    }
    assert len(names) == 2
    assert len(fake.received) == calls + 2


def test_unknown_approvals_and_keys_are_refused(verified: GatewayProcess) -> None:
    error_of(fetch(verified, "nothing"), 404, "approval_not_found")
    assert verified.client.get("/v1/approvals/nothing").status_code == 401


def test_withheld_answers_are_written_to_no_disk(verified: GatewayProcess) -> None:
    script = {"steps": [whole(usage(3), content="an-unspoken-answer")]}
    required(verified, verified.chat(model="approved", script=script))
    time.sleep(0.1)
    for path in (path for path in verified.home.rglob("*") if path.is_file()):
        assert b"an-unspoken-answer" not in path.read_bytes(), path
    assert "an-unspoken-answer" not in json.dumps(pending(verified))
