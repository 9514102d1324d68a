"""Every route answers as the error table says: unknown ones, wrong methods, and what a caller may see."""

import pytest

from tests.gateway.gateway_process import GatewayProcess, error_of

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
OPEN = ("/healthz", "/readyz", "/metrics", "/openapi.json")


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/responses", "/v2/models", "/admin/holds", "/docs", "/v1/chat/completions/"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_an_unknown_route_is_denied(gateway: GatewayProcess, method: str, path: str) -> None:
    answer = gateway.client.request(method, path, headers=gateway.headers("free"))
    assert path in error_of(answer, 404, "unknown_route")["message"]


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("path", ENDPOINTS)
def test_an_endpoint_takes_posts_only(gateway: GatewayProcess, method: str, path: str) -> None:
    answer = gateway.client.request(method, path, headers=gateway.headers("free"))
    error_of(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/plain", "/v1/budgets", "/v1/usage/x", *OPEN])
def test_a_view_takes_gets_only(gateway: GatewayProcess, path: str) -> None:
    answer = gateway.client.post(path, headers=gateway.headers("free"), json={})
    error_of(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "GET"


@pytest.mark.parametrize("path", OPEN)
def test_the_open_routes_ask_for_no_key(gateway: GatewayProcess, path: str) -> None:
    assert gateway.client.get(path).status_code == 200


def test_readiness_names_its_parts(gateway: GatewayProcess) -> None:
    said = gateway.client.get("/readyz").json()
    assert said["ready"] is True
    assert said["draining"] is False
    assert said["journal_has_room"] is True
    assert set(said["runtimes"]) == {"fake", "brief", "fragile", "foreign", "dead"}


def test_models_are_those_offered_to_the_caller(gateway: GatewayProcess) -> None:
    listed = gateway.client.get("/v1/models", headers=gateway.headers("free")).json()
    names = {model["id"] for model in listed["data"]}
    assert {"plain", "embed"} <= names
    assert "hidden" not in names
    barred = gateway.client.get("/v1/models", headers=gateway.headers("barred")).json()
    assert barred["data"] == []


def test_a_model_that_is_not_offered_is_not_found(gateway: GatewayProcess) -> None:
    headers = gateway.headers("free")
    assert gateway.client.get("/v1/models/plain", headers=headers).json()["id"] == "plain"
    for model in ("hidden", "nobody"):
        error_of(gateway.client.get(f"/v1/models/{model}", headers=headers), 404, "model_not_found")


def test_a_caller_sees_its_own_budgets_only(gateway: GatewayProcess) -> None:
    views = gateway.client.get("/v1/budgets", headers=gateway.headers("shrink")).json()["data"]
    assert {view["budget"] for view in views} == {"org-day", "shrink-day"}
    (own,) = (view for view in views if view["budget"] == "shrink-day")
    assert (own["resource"], own["limit"], own["window"]) == ("tokens", 200, "day")
    assert own["remaining"] == own["limit"] - own["spent"] - own["held"]


def test_the_cost_of_a_request_is_at_hand_for_its_caller_only(gateway: GatewayProcess) -> None:
    answer = gateway.chat()
    request_id = answer.headers["x-request-id"]
    row = gateway.client.get(f"/v1/usage/{request_id}", headers=gateway.headers("free")).json()
    assert (row["object"], row["request_id"], row["status"]) == ("usage", request_id, "ok")
    assert (row["input_tokens"], row["output_tokens"], row["list_cost_nusd"]) == (7, 3, 7 * 3_000 + 3 * 15_000)
    for other in (gateway.headers("other"), {"authorization": f"Bearer {gateway.key('free', app='else')}"}):
        error_of(gateway.client.get(f"/v1/usage/{request_id}", headers=other), 404, "usage_not_found")
    error_of(gateway.client.get("/v1/usage/nothing", headers=gateway.headers("free")), 404, "usage_not_found")


def test_the_answer_says_what_governed_it(gateway: GatewayProcess) -> None:
    answer = gateway.chat("roomy")
    row = gateway.ended(answer)
    assert answer.headers["x-bursar-decision"] == row["decision_id"]
    assert answer.headers["x-bursar-policy"] == row["policy_revision"]
    budget, remaining, resource = answer.headers["x-bursar-budget"].split(";")
    assert (budget, resource) == ("roomy-day", "resource=tokens")
    assert remaining == f"remaining={answer.headers['x-ratelimit-remaining-tokens']}"
    assert answer.headers["x-ratelimit-limit-tokens"] == "10000"
    assert answer.headers["x-ratelimit-reset-tokens"].endswith("s")
    assert "x-bursar-degraded" not in answer.headers
