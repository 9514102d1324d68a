"""Who may call: keys that are missing, unknown, expired, revoked or of the other plane leave no row."""

import time

import httpx
import pytest

from gateway.keys import KeyStore
from tests.gateway.gateway_process import HELLO, GatewayProcess, error_of, until

BODY = {"model": "plain", "messages": HELLO}
GUARDED = ("/v1/models", "/v1/models/plain", "/v1/budgets", "/v1/usage/x")


def post(gateway: GatewayProcess, **headers: str) -> httpx.Response:
    return gateway.client.post("/v1/chat/completions", json=BODY, headers=headers)


def assert_unauthenticated(gateway: GatewayProcess, headers: dict[str, str], reason: str) -> None:
    """On every route; counted in the metrics and nowhere in the journal, so that a flood cannot fill it."""
    rows, counted = len(gateway.records("usage")), gateway.metric("bursar_unauthenticated_total", reason=reason)
    answers = [post(gateway, **headers), *(gateway.client.get(path, headers=headers) for path in GUARDED)]
    for answer in answers:
        error = error_of(answer, 401, "invalid_api_key")
        assert f"is {reason}" in error["message"]
    assert len(gateway.records("usage")) == rows
    assert gateway.metric("bursar_unauthenticated_total", reason=reason) == counted + len(answers)


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": ""}, {"authorization": "Basic Zm9vOmJhcg=="}, {"x-api-key": ""}]
)
def test_a_missing_key_is_refused(gateway: GatewayProcess, headers: dict[str, str]) -> None:
    assert_unauthenticated(gateway, headers, "missing")


@pytest.mark.parametrize("secret", ["bsk-nothing", "x", "bsk-" + "A" * 43, "k" * 5000])
def test_an_unknown_key_is_refused(gateway: GatewayProcess, secret: str) -> None:
    assert_unauthenticated(gateway, {"authorization": f"Bearer {secret}"}, "unknown")


def test_an_expired_key_is_refused(gateway: GatewayProcess) -> None:
    secret = gateway.key("free", app="short", ttl_s=1)
    assert post(gateway, authorization=f"Bearer {secret}").status_code == 200
    time.sleep(1.1)
    assert_unauthenticated(gateway, {"authorization": f"Bearer {secret}"}, "expired")


def test_a_revoked_key_is_refused_at_once(gateway: GatewayProcess) -> None:
    made = gateway.admin.post("/admin/keys", json={"org": "acme", "team": "free", "app": "gone"}).json()
    headers = {"authorization": f"Bearer {made['secret']}"}
    assert post(gateway, **headers).status_code == 200
    revoked = gateway.admin.delete(f"/admin/keys/{made['key_id']}")
    assert revoked.status_code == 200
    assert revoked.json()["revoked_at"] is not None
    assert_unauthenticated(gateway, headers, "revoked")


def test_an_admin_key_is_unknown_on_the_data_plane(gateway: GatewayProcess) -> None:
    assert_unauthenticated(gateway, {"authorization": gateway.admin.headers["authorization"]}, "unknown")


def test_an_application_key_is_unknown_on_the_admin_plane(gateway: GatewayProcess) -> None:
    headers = {"authorization": f"Bearer {gateway.key('free')}"}
    for method, path in [
        ("GET", "/admin/holds"),
        ("GET", "/admin/budgets"),
        ("GET", "/admin/keys"),
        ("POST", "/admin/keys"),
        ("POST", "/admin/grant"),
        ("POST", "/admin/reload"),
        ("DELETE", "/admin/keys/x"),
    ]:
        error = error_of(gateway.admin.request(method, path, headers=headers), 401, "invalid_api_key")
        assert "Bearer bsa-" in error["message"]
        error_of(gateway.admin.request(method, path, headers={"authorization": ""}), 401, "invalid_api_key")


@pytest.mark.parametrize("spelling", ["Bearer {}", "bearer {}", "BEARER  {}"])
def test_a_bearer_token_is_read_however_it_is_spelt(gateway: GatewayProcess, spelling: str) -> None:
    assert post(gateway, authorization=spelling.format(gateway.key("free"))).status_code == 200


def test_the_key_may_stand_in_x_api_key(gateway: GatewayProcess) -> None:
    assert post(gateway, **{"x-api-key": gateway.key("free")}).status_code == 200


def test_a_key_is_shown_once_and_stored_as_a_digest(gateway: GatewayProcess) -> None:
    secret = gateway.key("free")
    assert secret.startswith("bsk-")
    listed = gateway.admin.get("/admin/keys").text
    assert secret not in listed
    for path in (path for path in gateway.home.rglob("*") if path.is_file()):
        assert secret.encode() not in path.read_bytes(), path


def test_the_user_is_stored_as_a_pseudonym(gateway: GatewayProcess) -> None:
    rows = [gateway.ended(gateway.chat(user=user)) for user in ("ada@example.com", "ada@example.com", "bob")]
    users = [row["user"] for row in rows]
    assert users[0] == users[1] != users[2]
    assert all(user.startswith("u-") for user in users)
    journal = b"".join(path.read_bytes() for path in (gateway.home / "journal").rglob("*.seg"))
    assert b"ada@example.com" not in journal


def test_a_key_that_is_made_and_revoked_by_another_process_is_followed(gateway: GatewayProcess) -> None:
    """As by another gateway of the same home, or by a command that asks only one of them."""
    store = KeyStore(gateway.home / "keys")
    key, secret = store.create(org="acme", team="free", app="elsewhere")
    headers = {"authorization": f"Bearer {secret}"}
    until(lambda: gateway.client.get("/v1/models", headers=headers).status_code == 200, "the key to be known")
    store.revoke(key.key_id)
    until(lambda: gateway.client.get("/v1/models", headers=headers).status_code == 401, "the key to be revoked")
    assert_unauthenticated(gateway, headers, "revoked")
