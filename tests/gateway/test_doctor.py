"""`bursar doctor` on policy: whether the bundle or the OPA server decides, and whether checks can be made."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from policy.checks import port
from tests.fake_opa import REVISION, FakeOpa, Reply, answers, said
from tests.gateway.deployment import closed_port, deploy, document
from tests.gateway.test_cli_commands import AWAY, DONE, ran
from tests.gateway.verified_deployment import deploy_verified

_USUAL = document("")
SIM = {**_USUAL["runtimes"][0], "id": "sim", "url": "sim://"}
MODEL = {**_USUAL["models"][0], "runtimes": ["sim"]}
DENIED = {"code": "unauthorized", "message": "request rejected by administrative policy"}
MISTAKE = {"code": "bundle_error", "message": "bundle is not signed"}

Asked = Callable[..., dict[str, tuple[str, str]]]


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    """What doctor finds without a home, by dependency; only what is said about policy may make it end with 3."""

    def asked(code: int, config: Path | None = None, **policy: Any) -> dict[str, tuple[str, str]]:
        home = tmp_path / "home"
        of = config or deploy(tmp_path, "", runtimes=[SIM], models=[MODEL], policy=policy)
        found = json.loads(ran(code, "doctor", "--json", home=home, config=of).stdout)
        assert not home.exists()
        return {each["dependency"]: (each["state"], each["detail"]) for each in found}

    return asked


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without the extra `verify`."""
    monkeypatch.setitem(port.LIBRARIES, "secrets", "detect_nothing")
    monkeypatch.setitem(port.LIBRARIES, "pii", "presidio_nowhere")


async def test_an_opa_that_answers_is_named_with_its_revision(asked: Asked) -> None:
    async with FakeOpa() as fake:
        found = await asyncio.to_thread(asked, DONE, url=fake.url, timeout_ms=10_000)
        assert found["policy"] == ("ok", f"{fake.url}, revision {REVISION}")


async def test_an_opa_that_serves_but_refuses_a_newer_bundle_says_why(asked: Asked) -> None:
    async with FakeOpa() as fake:

        def is_status() -> bool:
            return fake.heads[-1].startswith("GET /v1/status")

        async def reply(*given: Any) -> None:
            status = answers({"result": {"bundles": {"bursar": MISTAKE}}})
            await (status if is_status() else answers(said()))(*given)

        fake.reply = reply
        found = await asyncio.to_thread(asked, DONE, url=fake.url, timeout_ms=10_000)
        newer = "a newer bundle does not serve: bundle bursar: bundle_error: bundle is not signed"
        assert found["policy"] == ("ok", f"{fake.url}, revision {REVISION}; {newer}")


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (answers(DENIED, 401), "OPA answered 401: unauthorized: request rejected by administrative policy"),
        (answers(said(provenance={})), "OPA names no bundle: have it serve one that has a revision"),
        (answers(b"<html>"), "OPA answered 200 with what is not JSON"),
        (answers({}, 503), "OPA answered 503"),
    ],
)
async def test_an_opa_that_cannot_decide_is_away_and_it_is_said_why(asked: Asked, reply: Reply, why: str) -> None:
    async with FakeOpa(reply) as fake:
        state, detail = (await asyncio.to_thread(asked, AWAY, url=fake.url, timeout_ms=10_000))["policy"]
        assert state == "away"
        assert detail.startswith(f"{fake.url}: {why}")


def test_an_opa_that_nobody_serves_is_away(asked: Asked) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    state, detail = asked(AWAY, url=url)["policy"]
    assert state == "away"
    assert detail.startswith(f"{url}: OPA cannot be asked")


async def test_the_token_is_the_gateways_own(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeOpa() as fake:
        policy = {"url": fake.url, "timeout_ms": 10_000, "token_env": "OPA_TOKEN_OF_TESTS"}
        missing = await asyncio.to_thread(asked, AWAY, **policy)
        assert fake.heads == []
        monkeypatch.setenv("OPA_TOKEN_OF_TESTS", "t0ken")
        given = await asyncio.to_thread(asked, DONE, **policy)
        assert "Authorization: Bearer t0ken" in fake.heads[0]
    assert missing["policy"][0] == "away"
    assert "OPA_TOKEN_OF_TESTS, which is not set" in missing["policy"][1]
    assert given["policy"][0] == "ok"
    assert "t0ken" not in json.dumps(given)


@pytest.mark.usefixtures("nothing_installed")
def test_libraries_that_no_policy_names_are_not_missed(asked: Asked) -> None:
    found = asked(DONE)
    assert found["detect-nothing"] == ("optional", "not installed; the policy does not name the check secrets")
    assert found["presidio-nowhere"] == ("optional", "not installed; the policy does not name the check pii")


@pytest.mark.usefixtures("nothing_installed")
def test_libraries_of_checks_that_the_policy_names_are_missed(asked: Asked, tmp_path: Path) -> None:
    config = deploy_verified(tmp_path, "http://127.0.0.1:9", "http://127.0.0.1:9")
    found = asked(AWAY, config)
    for package, check in (("detect-nothing", "secrets"), ("presidio-nowhere", "pii")):
        said = f"the policy names the check {check}, and what it obliges to it is refused: install the extra `verify`"
        assert found[package] == ("away", said)


@pytest.mark.usefixtures("nothing_installed")
async def test_what_the_policy_of_an_opa_names_is_not_known_here_and_that_is_said(asked: Asked) -> None:
    async with FakeOpa() as fake:
        found = await asyncio.to_thread(asked, DONE, url=fake.url, timeout_ms=10_000)
    state, detail = found["presidio-nowhere"]
    assert state == "optional"
    assert "what OPA's policy obliges to the check pii is refused without it" in detail


def test_libraries_that_are_installed_are_shown_with_their_version_and_a_home_is_not_needed(asked: Asked) -> None:
    found = asked(DONE)
    assert found["home"][0] == "optional"
    assert found["detect-secrets"][0] == "ok"
    assert found["presidio-analyzer"][0] == "ok"
    assert found["presidio-analyzer"][1][0].isdigit()
