"""A request with an `Idempotency-Key` that is sent again is not run, held, charged or recorded again."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from domain.ids import uuid7
from tests.gateway import gateway_process
from tests.gateway.deployment import deploy
from tests.gateway.fake_runtime import FakeRuntime, chunk, closing, events, sse, usage, whole
from tests.gateway.gateway_process import HELLO, GatewayProcess, error_of, until

SLOW = {"steps": [1.0, whole(usage(1))]}
FAILING = {"status": 500, "steps": ["{}"]}
FAULT = {"status": 422, "steps": ['{"error": {"message": "no", "type": "x", "param": null, "code": 422}}']}
BROKEN_STREAM = sse(*events(chunk("one", usage(1))), None)
TTL_S = 2.0
KEPT = 3
ANSWER_BYTES_MAX = 4096


@pytest.fixture(scope="module")
def forgetful(fake: FakeRuntime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway that remembers little, and not for long."""
    folder = tmp_path_factory.mktemp("forgetful")
    limits = {"repeats_max": KEPT, "repeats_bytes_max": 8 * ANSWER_BYTES_MAX, "repeats_ttl_s": TTL_S}
    with gateway_process.running(folder / "home", deploy(folder, fake.url, limits=limits)) as forgetful:
        yield forgetful


def send(gateway: GatewayProcess, key: str, team: str = "free", **body: Any) -> httpx.Response:
    return gateway.chat(team, headers={"idempotency-key": key}, **body)


def refused(gateway: GatewayProcess, answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error of an answer that left a row of its own, which charges nothing."""
    error = error_of(answer, status, code)
    row = gateway.ended(answer)
    assert (row["status"], row["http_status"], row["error_code"]) == ("refused", status, code)
    assert (row["model"], row["charges"], row["hold_id"]) == ("plain", (), "")
    return error


def rows(gateway: GatewayProcess) -> int:
    return len(gateway.records("usage"))


def spent(gateway: GatewayProcess) -> tuple[int, int]:
    (counter,) = gateway.admin.get("/admin/budgets", params={"budget": "org-day"}).json()["counters"]
    return counter["spent"], counter["held"]


def test_an_answer_is_sent_again_and_nothing_else_happens(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    key = uuid7()
    first = send(gateway, key)
    row = gateway.ended(first)
    before = (rows(gateway), len(gateway.records("hold")), len(fake.received), spent(gateway))
    replays = gateway.metric("bursar_replays_total", endpoint="chat")
    requests = gateway.metric("bursar_requests_total")
    for _ in range(3):
        again = send(gateway, key)
        assert (again.status_code, again.content) == (200, first.content)
        assert again.headers["x-bursar-replayed"] == "true"
        assert again.headers["content-type"] == "application/json"
        for name in ("x-request-id", "x-bursar-decision", "x-bursar-policy"):
            assert again.headers[name] == first.headers[name]
        assert "x-bursar-budget" not in again.headers
        assert not [name for name in again.headers if name.startswith("x-ratelimit")]
    assert "x-bursar-replayed" not in first.headers
    assert gateway.ended(first) == row
    assert (rows(gateway), len(gateway.records("hold")), len(fake.received), spent(gateway)) == before
    assert gateway.metric("bursar_replays_total", endpoint="chat") == replays + 3
    assert gateway.metric("bursar_requests_total") == requests


def test_what_an_answer_lacked_is_said_again(gateway: GatewayProcess) -> None:
    key = uuid7()
    first = send(gateway, key, model="capped", max_tokens=50)
    again = send(gateway, key, model="capped", max_tokens=50)
    assert again.headers["x-bursar-degraded"] == first.headers["x-bursar-degraded"] == "max_tokens"
    assert again.headers["x-bursar-replayed"] == "true"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "plain", "prompt": "x"}),
        ("/v1/embeddings", {"model": "embed", "input": "x"}),
    ],
)
def test_every_endpoint_that_costs_takes_a_key(gateway: GatewayProcess, path: str, body: dict[str, Any]) -> None:
    headers = gateway.headers("free", **{"idempotency-key": uuid7()})
    first, again = (gateway.client.post(path, json=body, headers=headers) for _ in range(2))
    assert (first.status_code, again.content) == (200, first.content)
    assert again.headers["x-request-id"] == first.headers["x-request-id"]
    assert again.headers["x-bursar-replayed"] == "true"


def test_another_api_key_and_another_endpoint_have_names_of_their_own(gateway: GatewayProcess) -> None:
    key = uuid7()
    first = send(gateway, key)
    headers = {"authorization": f"Bearer {gateway.key('free', app='else')}", "idempotency-key": key}
    other_app = gateway.chat(headers=headers)
    headers = gateway.headers("free", **{"idempotency-key": key})
    content = first.request.content
    elsewhere = gateway.client.post("/v1/completions", content=content[:-1] + b',"prompt":"x"}', headers=headers)
    answers = (first, other_app, elsewhere)
    assert [answer.status_code for answer in answers] == [200] * 3
    assert not [answer for answer in answers if "x-bursar-replayed" in answer.headers]
    assert len({gateway.ended(answer)["request_id"] for answer in answers}) == 3


def test_two_at_once_are_one_call(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    key, before = uuid7(), len(fake.received)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(send, gateway, key, script=SLOW)
        until(lambda: len(fake.received) > before, "the first to reach the runtime")
        answer = send(gateway, key, script=SLOW)
        first = slow.result()
    assert first.status_code == 200
    assert answer.headers["retry-after"] == "1"
    error = refused(gateway, answer, 409, "idempotency_in_progress")
    assert error["bursar"] == {"request_id": first.headers["x-request-id"]}
    assert send(gateway, key, script=SLOW).headers["x-bursar-replayed"] == "true"
    assert len(fake.received) == before + 1


def test_many_at_once_are_one_call(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    key, before, gate = uuid7(), len(fake.received), threading.Barrier(8)
    gateway.key("free")

    def race(_: int) -> httpx.Response:
        gate.wait()
        return send(gateway, key)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(race, range(8)))
    served = [answer for answer in answers if answer.status_code == 200]
    assert sum("x-bursar-replayed" not in answer.headers for answer in served) == 1
    assert {answer.headers["x-request-id"] for answer in served} == {served[0].headers["x-request-id"]}
    for answer in answers:
        if answer.status_code != 200:
            refused(gateway, answer, 409, "idempotency_in_progress")
    assert len(fake.received) == before + 1


def test_another_body_under_the_same_key_is_refused(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    key = uuid7()
    first = send(gateway, key)
    calls = len(fake.received)
    error = refused(gateway, send(gateway, key, temperature=0), 422, "idempotency_key_reused")
    assert error["param"] == "idempotency-key"
    assert error["bursar"] == {"request_id": first.headers["x-request-id"]}
    assert len(fake.received) == calls
    assert send(gateway, key).headers["x-bursar-replayed"] == "true"


def test_another_body_is_refused_while_the_first_runs(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    key, before = uuid7(), len(fake.received)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(send, gateway, key, script=SLOW)
        until(lambda: len(fake.received) > before, "the first to reach the runtime")
        refused(gateway, send(gateway, key), 422, "idempotency_key_reused")
        assert slow.result().status_code == 200


def test_a_stream_that_was_served_is_named_and_not_run_again(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    key = uuid7()
    first = send(gateway, key, stream=True)
    assert first.text.endswith("data: [DONE]\n\n")
    row, calls = gateway.ended(first), len(fake.received)
    answer = send(gateway, key, stream=True)
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    error = refused(gateway, answer, 409, "idempotency_completed")
    assert error["bursar"]["request_id"] == row["request_id"]
    assert row["request_id"] in error["message"]
    said = gateway.client.get(error["bursar"]["usage"], headers=gateway.headers("free"))
    assert said.json()["list_cost_nusd"] == row["list_cost_nusd"] > 0
    assert len(fake.received) == calls


def test_a_stream_in_progress_is_said_so(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    key, before = uuid7(), len(fake.received)
    script = sse(*events(chunk("one", usage(1))), 1.0, *events(closing(usage(1)), "[DONE]"))
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(send, gateway, key, stream=True, script=script)
        until(lambda: len(fake.received) > before, "the first to reach the runtime")
        refused(gateway, send(gateway, key, stream=True, script=script), 409, "idempotency_in_progress")
        assert slow.result().text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"script": FAILING}, 502),
        ({"script": FAULT}, 422),
        ({"script": {"steps": ["not json"]}}, 502),
        ({"model": "absent"}, 502),
        ({"model": "nobody"}, 404),
        ({"model": "hidden"}, 404),
        ({"max_tokens": 0}, 400),
        ({"stream": True, "script": BROKEN_STREAM}, 200),
    ],
    ids=["failed", "found fault", "garbage", "unreachable", "unknown", "denied", "malformed", "broken stream"],
)
def test_what_was_not_served_runs_anew(gateway: GatewayProcess, body: dict[str, Any], status: int) -> None:
    key = uuid7()
    first, again = send(gateway, key, **body), send(gateway, key, **body)
    assert first.status_code == again.status_code == status
    assert gateway.ended(first)["status"] == gateway.ended(again)["status"] != "ok"
    assert first.headers["x-request-id"] != again.headers["x-request-id"]


def test_what_a_budget_refused_runs_once_there_is_room(gateway: GatewayProcess) -> None:
    key = uuid7()
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(gateway.chat, "narrow", script=SLOW)
        until(lambda: gateway.open_holds() == 1, "the hold")
        error_of(send(gateway, key, "narrow"), 429, "rate_limit_exceeded")
        assert slow.result().status_code == 200
    answer = send(gateway, key, "narrow")
    assert answer.status_code == 200
    assert "x-bursar-replayed" not in answer.headers


@pytest.mark.parametrize("stream", [False, True])
def test_what_its_client_left_runs_anew(gateway: GatewayProcess, fake: FakeRuntime, stream: bool) -> None:
    key, client_id, before = uuid7(), uuid7(), len(fake.received)
    asked = {"model": "plain", "messages": HELLO, "stream": stream}
    headers = gateway.headers("free", **{"idempotency-key": key, "x-request-id": client_id})
    script = sse(*events(chunk("one", usage(1))), 2.0, *events(closing(usage(1)), "[DONE]")) if stream else SLOW
    with httpx.Client(base_url=gateway.url, timeout=0.4) as leaving, pytest.raises(httpx.TimeoutException):
        leaving.post("/v1/chat/completions", json={**asked, "script": script}, headers=headers)
    assert gateway.ended(client_id)["status"] == "cut"
    answer = gateway.client.post("/v1/chat/completions", json={**asked, "script": script}, headers=headers)
    assert answer.status_code == 200
    assert "x-bursar-replayed" not in answer.headers
    assert len(fake.received) == before + 2


def test_what_its_client_left_after_it_was_served_is_not_run_again(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    """The stream was complete and charged when the connection went."""
    key, before = uuid7(), len(fake.received)
    script = sse(*events(chunk("one", usage(1)), closing(usage(1)), "[DONE]"), 5)
    headers = gateway.headers("free", **{"idempotency-key": key})
    body = {"model": "plain", "messages": HELLO, "stream": True, "script": script}
    with gateway.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as first:
        for line in first.iter_lines():
            if line == "data: [DONE]":
                break
    until(lambda: first.headers["x-request-id"] in fake.left, "the runtime to be left")
    answer = gateway.client.post("/v1/chat/completions", json=body, headers=headers)
    error = refused(gateway, answer, 409, "idempotency_completed")
    assert error["bursar"]["request_id"] == first.headers["x-request-id"]
    assert len(fake.received) == before + 1


@pytest.mark.parametrize("key", ["", "a b", "x" * 256, "schlüssel", "a\tb"])
def test_a_key_that_is_none_is_refused(gateway: GatewayProcess, fake: FakeRuntime, key: str) -> None:
    calls = len(fake.received)
    headers = [(name.encode(), value.encode()) for name, value in gateway.headers("free").items()]
    content = {"model": "plain", "messages": HELLO}
    sent = [*headers, (b"idempotency-key", key.encode())]
    answer = gateway.client.post("/v1/chat/completions", json=content, headers=sent)
    error = refused(gateway, answer, 400, "invalid_request")
    assert error["param"] == "idempotency-key"
    assert "Idempotency-Key" in error["message"]
    assert len(fake.received) == calls


def test_without_a_key_everything_runs(gateway: GatewayProcess) -> None:
    answers = [gateway.chat() for _ in range(2)]
    assert len({gateway.ended(answer)["request_id"] for answer in answers}) == 2


def test_an_answer_that_is_too_large_to_keep_is_named(forgetful: GatewayProcess, fake: FakeRuntime) -> None:
    key, calls = uuid7(), len(fake.received)
    script = {"steps": [whole(usage(1), content="x" * ANSWER_BYTES_MAX)]}
    first = send(forgetful, key, script=script)
    assert first.status_code == 200
    error = refused(forgetful, send(forgetful, key, script=script), 409, "idempotency_completed")
    assert error["bursar"]["request_id"] == first.headers["x-request-id"]
    assert len(fake.received) == calls + 1


def test_the_oldest_is_forgotten_when_there_are_too_many(forgetful: GatewayProcess) -> None:
    keys = [uuid7() for _ in range(KEPT + 1)]
    assert {send(forgetful, key).status_code for key in keys} == {200}
    replayed = ["x-bursar-replayed" in send(forgetful, key).headers for key in reversed(keys)]
    assert replayed == [True] * KEPT + [False]


def test_an_answer_is_forgotten_after_a_time(forgetful: GatewayProcess) -> None:
    key = uuid7()
    send(forgetful, key)
    assert "x-bursar-replayed" in send(forgetful, key).headers
    time.sleep(TTL_S + 0.1)
    assert "x-bursar-replayed" not in send(forgetful, key).headers


def test_answers_are_written_to_no_disk(gateway: GatewayProcess) -> None:
    key = uuid7()
    first = send(gateway, key, script={"steps": [whole(usage(1), content="a-secret-answer")]})
    assert "a-secret-answer" in first.text
    gateway.ended(first)
    for path in (path for path in gateway.home.rglob("*") if path.is_file()):
        assert b"a-secret-answer" not in path.read_bytes(), path
