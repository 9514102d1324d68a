"""What policy and budgets refuse: the reasons and the budget are named, and nothing is charged."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from tests.gateway.deployment import HELLO_BOUND
from tests.gateway.fake_runtime import FakeRuntime, usage, whole
from tests.gateway.gateway_process import GatewayProcess, error_of, until


def refused(
    gateway: GatewayProcess, fake: FakeRuntime, answer: httpx.Response, status: int, code: str
) -> dict[str, Any]:
    """The error of a refusal, which left one row, charged nothing and never reached the runtime."""
    error = error_of(answer, status, code)
    row = gateway.ended(answer)
    assert (row["status"], row["http_status"], row["error_code"]) == ("refused", status, code)
    assert not row["charges"]
    assert row["input_tokens"] == row["output_tokens"] == row["list_cost_nusd"] == 0
    assert row["request_id"] not in fake.received
    return error


def spent(gateway: GatewayProcess, budget: str) -> tuple[int, int]:
    """What is spent and held of a budget."""
    counters = gateway.admin.get("/admin/budgets", params={"budget": budget}).json()["counters"]
    return sum(counter["spent"] for counter in counters), sum(counter["held"] for counter in counters)


def test_a_denial_lists_its_reasons(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    headers = {"authorization": f"Bearer {gateway.key('free', clearance='public')}"}
    answer = gateway.chat(headers=headers)
    error = refused(gateway, fake, answer, 403, "policy_denied")
    assert [reason["code"] for reason in error["bursar"]["reasons"]] == ["clearance_too_low"]
    assert error["message"] == error["bursar"]["reasons"][0]["message"]
    assert answer.headers["x-bursar-decision"] == gateway.ended(answer)["decision_id"]
    assert answer.headers["x-bursar-policy"]


def test_an_endpoint_that_policy_does_not_offer_is_denied(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    headers = gateway.headers("free")
    answer = gateway.client.post("/v1/completions", json={"model": "hidden", "prompt": "x"}, headers=headers)
    refused(gateway, fake, answer, 404, "model_not_found")


def test_a_model_that_is_not_offered_is_not_found(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    for answer in (gateway.chat(model="hidden"), gateway.chat(team="barred")):
        error = refused(gateway, fake, answer, 404, "model_not_found")
        assert error["param"] == "model"
        assert error["bursar"]["reasons"][0]["code"] == "model_not_offered"


def test_more_input_than_policy_admits_is_denied(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    answer = gateway.chat(model="capped", messages=[{"role": "user", "content": "x" * 3000}])
    error = refused(gateway, fake, answer, 403, "policy_denied")
    assert error["bursar"]["max_input_tokens"] == 2000
    assert error["bursar"]["input_bound"] > 3000


def test_a_day_that_is_used_up_is_a_quota(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    first = gateway.ended(gateway.chat("quota", max_tokens=3))
    assert first["charges"][-1][-1] == 10
    answer = gateway.chat("quota", max_tokens=60)
    error = refused(gateway, fake, answer, 429, "insufficient_quota")
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers
    detail = error["bursar"]
    assert 0 < detail.pop("resets_in_s") <= 86400
    assert detail == {
        "budget": "quota-day",
        "owner": "finance",
        "counter": "team=quota",
        "resource": "tokens",
        "window": "day",
        "limit": 100,
        "remaining": 90,
        "asked": HELLO_BOUND + 60,
    }
    assert error["type"] == "insufficient_quota"
    assert all(text in error["message"] for text in ("quota-day", "90 of 100", str(HELLO_BOUND + 60)))
    assert spent(gateway, "quota-day") == (10, 0)


def test_a_total_that_is_used_up_does_not_reset(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    answer = gateway.chat("spent", max_tokens=10)
    assert answer.status_code == 200
    gateway.ended(answer)
    answer = gateway.chat("spent", max_tokens=16)
    error = refused(gateway, fake, answer, 429, "insufficient_quota")
    assert error["bursar"]["resets_in_s"] is None
    assert error["bursar"]["remaining"] == 40
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers


def test_a_request_larger_than_its_window_is_a_quota_however_short(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    answer = gateway.chat("small-minute", max_tokens=61)
    error = refused(gateway, fake, answer, 429, "insufficient_quota")
    assert error["bursar"]["window"] == "minute"
    assert error["bursar"]["asked"] > error["bursar"]["limit"]
    assert "more than its whole minute window" in error["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers


def test_a_short_window_that_is_full_is_a_rate_limit(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    for _ in range(2):
        answer = gateway.chat("hour")
        assert answer.status_code == 200
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    answer = gateway.chat("hour")
    error = refused(gateway, fake, answer, 429, "rate_limit_exceeded")
    assert error["type"] == "requests"
    assert error["bursar"]["budget"] == "hour-requests"
    assert (error["bursar"]["remaining"], error["bursar"]["asked"]) == (0, 1)
    retry_s = int(answer.headers["retry-after"])
    assert 3500 < retry_s <= 3660
    assert answer.headers["x-ratelimit-reset-requests"] == f"{retry_s}s"
    assert error["bursar"]["resets_in_s"] == retry_s
    assert "x-should-retry" not in answer.headers


def test_a_failed_request_gives_its_place_in_the_window_back(gateway: GatewayProcess) -> None:
    before = spent(gateway, "one-at-a-time")
    answer = gateway.chat("narrow", model="absent")
    error_of(answer, 502, "upstream_error")
    assert gateway.ended(answer)["status"] == "failed"
    assert spent(gateway, "one-at-a-time") == before


def test_a_full_concurrency_is_a_rate_limit_until_it_ends(gateway: GatewayProcess, fake: FakeRuntime) -> None:
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(gateway.chat, "narrow", script={"steps": [0.8, whole(usage(1))]})
        until(lambda: gateway.open_holds() == 1, "the hold of the slow request")
        answer = gateway.chat("narrow")
        error = error_of(answer, 429, "rate_limit_exceeded")
        assert (error["bursar"]["resource"], error["bursar"]["limit"]) == ("concurrency", 1)
        assert error["type"] == "requests"
        assert int(answer.headers["retry-after"]) >= 1
        assert slow.result().status_code == 200
    assert gateway.ended(answer)["status"] == "refused"
    assert gateway.chat("narrow").status_code == 200


def test_a_request_may_wait_for_a_concurrency_slot(gateway: GatewayProcess) -> None:
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(gateway.chat, "patient", model="patient", script={"steps": [0.7, whole(usage(1))]})
        until(lambda: gateway.open_holds() == 1, "the hold of the slow request")
        answer = gateway.chat("patient", model="patient")
        assert answer.status_code == 200
        assert slow.result().status_code == 200
    row = gateway.ended(answer)
    assert row["duration_us"] > 200_000
    gateway.ended(slow.result())


def test_waiting_ends_when_policy_says(gateway: GatewayProcess) -> None:
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(gateway.chat, "patient", model="patient", script={"steps": [4, whole(usage(1))]})
        until(lambda: gateway.open_holds() == 1, "the hold of the slow request")
        answer = gateway.chat("patient", model="patient")
        error_of(answer, 429, "rate_limit_exceeded")
        assert slow.result().status_code == 200
    assert 2_900_000 < gateway.ended(answer)["duration_us"] < 3_900_000


def test_what_one_request_of_many_may_have_is_never_given_twice(gateway: GatewayProcess) -> None:
    """Eight at once on one slot: those that are served follow one another, and the counter ends where it began."""
    started = threading.Barrier(8)

    def ask() -> httpx.Response:
        started.wait()
        return gateway.chat("narrow", script={"steps": [0.2, whole(usage(1))]})

    with ThreadPoolExecutor(8) as pool:
        answers = [future.result() for future in [pool.submit(ask) for _ in range(8)]]
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses[0] == 200
    assert set(statuses[1:]) == {429}
    for answer in answers:
        gateway.ended(answer)
    assert spent(gateway, "one-at-a-time") == (0, 0)
