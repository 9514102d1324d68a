"""The admin plane: grants, keys and views, live at once and each a row."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.gateway.deployment import HELLO_BOUND
from tests.gateway.gateway_process import GatewayProcess, error_of, until


def control(gateway: GatewayProcess, action: str, subject: str) -> list[dict[str, Any]]:
    return [row for row in gateway.records("control") if (row["action"], row["subject"]) == (action, subject)]


def counter(gateway: GatewayProcess, budget: str) -> dict[str, Any]:
    (found,) = gateway.admin.get("/admin/budgets", params={"budget": budget}).json()["counters"]
    return dict(found)


def test_a_grant_raises_a_limit_at_once_and_is_a_row(gateway: GatewayProcess) -> None:
    error_of(gateway.chat("granted", max_tokens=1000), 429, "insufficient_quota")
    asked = {"budget": "granted-day", "amount": 2000, "ttl_s": 60, "reason": "a demo"}
    granted = gateway.admin.post("/admin/grant", json=asked).json()
    answer = gateway.chat("granted", max_tokens=1000)
    assert answer.status_code == 200
    gateway.ended(answer)
    seen = counter(gateway, "granted-day")
    assert seen["limit"] == 100 + 2000
    assert granted["grant_id"] in seen["grants"]
    (row,) = control(gateway, "grant", "granted-day")
    assert row["grant"] == granted
    assert (row["detail"]["amount"], row["detail"]["reason"]) == (2000, "a demo")
    assert row["actor"] == granted["actor"]


def test_a_grant_ends_when_it_said(gateway: GatewayProcess) -> None:
    asked = {"budget": "ending-total", "amount": 10**6, "ttl_s": 4}
    assert gateway.admin.post("/admin/grant", json=asked).status_code == 200
    answer = gateway.chat("ending", max_tokens=50)
    assert answer.status_code == 200
    gateway.ended(answer)

    until(lambda: counter(gateway, "ending-total")["limit"] == 50, "the grant to end")
    error_of(gateway.chat("ending", max_tokens=50), 429, "insufficient_quota")


def test_a_grant_for_one_counter_leaves_the_others(gateway: GatewayProcess) -> None:
    asked = {"budget": "small-minute-tokens", "amount": 1, "ttl_s": 60}
    error_of(gateway.admin.post("/admin/grant", json=asked), 400, "invalid_request")
    asked = {"budget": "minute-tokens", "counter": "team=somebody-else", "amount": 10**6, "ttl_s": 60}
    assert gateway.admin.post("/admin/grant", json=asked).status_code == 200
    error = error_of(gateway.chat("small-minute", max_tokens=100), 429, "insufficient_quota")
    assert (error["bursar"]["limit"], error["bursar"]["asked"]) == (60, HELLO_BOUND + 100)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"amount": 0}, "amount"),
        ({"amount": -1}, "amount"),
        ({"amount": 1.5}, "amount"),
        ({"amount": "5"}, "amount"),
        ({"amount": 1 << 61}, "amount"),
        ({"amount": 10**40}, "amount"),
        ({"ttl_s": 0}, "ttl_s"),
        ({"ttl_s": 10**9}, "ttl_s"),
        ({"budget": ""}, "budget"),
        ({"budget": None}, "budget"),
        ({"budget": "nobody"}, "budget"),
        ({"extra": 1}, "extra"),
        ({"reason": "x" * 2000}, "reason"),
        ({"counter": []}, "counter"),
    ],
)
def test_a_wrong_grant_names_the_field_and_changes_nothing(
    gateway: GatewayProcess, change: dict[str, Any], field: str
) -> None:
    rows = len(gateway.records("control"))
    asked = {"budget": "org-day", "amount": 5, "ttl_s": 60, **change}
    error = error_of(gateway.admin.post("/admin/grant", json=asked), 400, "invalid_request")
    assert error["param"] == field
    assert len(gateway.records("control")) == rows


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff"])
@pytest.mark.parametrize("path", ["/admin/grant", "/admin/keys"])
def test_a_body_that_is_not_an_object_is_refused(gateway: GatewayProcess, path: str, content: bytes) -> None:
    headers = {"content-type": "application/json"}
    error = error_of(gateway.admin.post(path, content=content, headers=headers), 400, "invalid_request")
    assert not str(error["param"]).isdigit()


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"team": "*"}, "team"),
        ({"org": ""}, "org"),
        ({"org": " acme"}, "org"),
        ({"app": "a\nb"}, "app"),
        ({"user": "*"}, "user"),
        ({"roles": ["*"]}, "roles"),
        ({"roles": "admin"}, "roles"),
        ({"kind": "root"}, "kind"),
        ({"ttl_s": -5}, "ttl_s"),
        ({"clearance": "c" * 200}, "clearance"),
        ({"secret": "mine"}, "secret"),
    ],
)
def test_a_wrong_key_names_the_field(gateway: GatewayProcess, change: dict[str, Any], field: str) -> None:
    before = gateway.admin.get("/admin/keys").json()
    answer = gateway.admin.post("/admin/keys", json={"org": "acme", "team": "free", "app": "web", **change})
    assert str(error_of(answer, 400, "invalid_request")["param"]).startswith(field)
    assert gateway.admin.get("/admin/keys").json() == before


def test_keys_are_made_listed_and_revoked_live(gateway: GatewayProcess) -> None:
    asked = {"org": "acme", "team": "free", "app": "made", "roles": ["reader"], "ttl_s": 3600}
    answer = gateway.admin.post("/admin/keys", json=asked)
    assert answer.status_code == 201
    made = answer.json()
    secret, key_id = made.pop("secret"), made["key_id"]
    assert made in gateway.admin.get("/admin/keys").json()["keys"]
    headers = {"authorization": f"Bearer {secret}"}
    assert gateway.client.get("/v1/models", headers=headers).status_code == 200
    assert gateway.admin.delete(f"/admin/keys/{key_id}").json()["revoked_at"]
    error_of(gateway.client.get("/v1/models", headers=headers), 401, "invalid_api_key")
    assert len(control(gateway, "key_created", key_id)) == len(control(gateway, "key_revoked", key_id)) == 1
    assert secret not in str(gateway.records("control"))
    assert gateway.admin.delete("/admin/keys/nothing").status_code == 404


def test_an_open_hold_is_shown_while_it_is_open(gateway: GatewayProcess) -> None:
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(gateway.chat, max_tokens=9, script={"steps": [0.6, "{}"]})
        until(lambda: gateway.open_holds() == 1, "the hold")
        (shown,) = gateway.admin.get("/admin/holds").json()["holds"]
    assert (shown["team"], shown["model"], shown["cap"]) == ("free", "plain", 9)
    assert shown["charges"][0] == ["org-day", "org=acme", shown["charges"][0][2], "tokens", HELLO_BOUND + 9]
    assert gateway.ended(slow.result())["request_id"] == shown["request_id"]


def test_an_unknown_budget_is_named(gateway: GatewayProcess) -> None:
    answer = gateway.admin.get("/admin/budgets", params={"budget": "nobody"})
    assert error_of(answer, 400, "invalid_request")["param"] == "budget"


def test_the_admin_plane_has_no_data_plane_routes(gateway: GatewayProcess) -> None:
    for method, path in [
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/nowhere"),
        ("GET", "/docs"),
    ]:
        error_of(gateway.admin.request(method, path), 404, "unknown_route")
    answer = gateway.admin.put("/admin/grant", json={})
    error_of(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"
