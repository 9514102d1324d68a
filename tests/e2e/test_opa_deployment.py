"""The configuration in deploy/opa, on a real OPA: it decides for Bursar and for nobody else, and logs no inputs."""

import asyncio
import http.client
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from policy.bundle import FORBIDDEN_BUILTINS, load
from policy.opa import OpaEngine, OpaServer
from policy.opa_build import Key, build, capabilities
from policy.port import ADMISSION, EvaluationError
from tests import opa_server
from tests.bundle_service import BundleService, serving
from tests.e2e.test_opa_engine import GIVEN, SHIPPED, Keys, until
from tests.local_server import HOST

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy" / "opa"
TOKEN = "a-token-of-the-tests"
REQUEST_S = 10.0


class Deployment:
    """An OPA as it is deployed, but polling as fast as it can, and the service that it polls."""

    def __init__(self, folder: Path, service: BundleService, keys: Keys) -> None:
        self.service = service
        text = (DEPLOY / "config.yaml").read_text(encoding="utf-8")
        for name, value in {"BURSAR_BUNDLES_URL": service.url, "BURSAR_OPA_STATE": str(folder / "state")}.items():
            assert f"${{{name}}}" in text
            text = text.replace(f"${{{name}}}", value)
        config: dict[str, Any] = yaml.safe_load(text)
        config["bundles"]["bursar"]["polling"] = {"min_delay_seconds": 1, "max_delay_seconds": 1}
        self.opa = opa_server.OpaServer(
            config,
            paths=[DEPLOY / "system"],
            options=[
                *("--authentication", "token", "--authorization", "basic"),
                *("--set-file", f"keys.bursar.key={keys.public}"),
            ],
            headers={"Authorization": f"Bearer {TOKEN}"},
            environ={"BURSAR_OPA_TOKEN": TOKEN},
        )


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    keys = Keys(tmp_path, "ours")
    file = tmp_path / "bundle.tar.gz"
    build(SHIPPED, file, str(opa_server.binary()), Key(keys.private))
    with serving(file) as service:
        made = Deployment(tmp_path, service, keys)
        with made.opa:
            yield made


def engine_on(opa: opa_server.OpaServer, token: str = TOKEN) -> OpaEngine:
    return OpaEngine(OpaServer(opa.url, timeout_ms=5_000, token=token))


async def test_it_decides_for_the_one_who_has_the_token(deployment: Deployment) -> None:
    engine = engine_on(deployment.opa)
    async with asyncio.timeout(60):
        while engine.revision == "":
            await engine.poll()
    assert engine.revision == load(SHIPPED).revision
    assert engine.state.problem == ""
    answer = await engine.evaluate(ADMISSION, orjson.dumps(GIVEN.document()))
    assert isinstance(answer.value, dict)
    assert answer.value["allow"]
    await engine.close()
    for token in ("", "another"):
        stranger = engine_on(deployment.opa, token)
        with pytest.raises(EvaluationError, match=r"OPA answered 401: unauthorized"):
            await stranger.evaluate(ADMISSION, b"{}")
        await stranger.close()


async def test_its_log_names_each_decision_and_no_input_and_no_polls(deployment: Deployment) -> None:
    engine = engine_on(deployment.opa)
    await until(lambda: deployment.opa.get("/health?bundles=true")[0] == 200)
    await engine.poll()
    answer = await engine.evaluate(ADMISSION, orjson.dumps(GIVEN.document()))
    await engine.close()
    await until(lambda: bool(logged(deployment.opa)))
    entries = logged(deployment.opa)
    assert [entry["decision_id"] for entry in entries] == [answer.engine_decision_id]
    assert entries[0]["bundles"] == {"bursar": {"revision": answer.revision}}
    assert sorted(entries[0]["erased"]) == ["/input", "/result"]
    assert not {"input", "result"} & entries[0].keys()


def logged(opa: opa_server.OpaServer) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in opa.log_tail().splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("msg") == "Decision Log"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/v1/policies/bursar/admission", "package bursar.admission"),
        ("PUT", "/v1/data/bursar/admission", "{}"),
        ("PATCH", "/v1/data/bursar", "[]"),
        ("DELETE", "/v1/policies/bursar/admission/admission.rego", ""),
        ("GET", "/v1/policies", ""),
        ("GET", "/v1/data", ""),
        ("POST", "/v1/data/system/authz", "{}"),
        ("POST", "/v1/query", '{"query": "x := opa.runtime()"}'),
        ("POST", "/", "{}"),
        ("POST", "/v1/compile", "{}"),
    ],
)
def test_nothing_can_be_changed_or_read_beside_decisions(
    deployment: Deployment, method: str, path: str, body: str
) -> None:
    connection = http.client.HTTPConnection(HOST, deployment.opa.port, timeout=REQUEST_S)
    try:
        connection.request(method, path, body, {"Authorization": f"Bearer {TOKEN}"})
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["code"]) == (401, "unauthorized")
    finally:
        connection.close()


async def test_after_a_restart_it_serves_the_last_good_bundle_while_the_service_is_away(deployment: Deployment) -> None:
    await until(lambda: deployment.opa.get("/health?bundles=true")[0] == 200)
    deployment.opa.stop()
    deployment.service.file.unlink()
    deployment.opa.start()
    engine = engine_on(deployment.opa)
    await until(lambda: deployment.opa.get("/health?bundles=true")[0] == 200)
    assert (await engine.evaluate(ADMISSION, b"{}")).revision == load(SHIPPED).revision
    await engine.close()


def test_the_capabilities_are_those_that_are_made_again() -> None:
    """`.ci/opa_capabilities.py` writes them; a new OPA changes nothing, because they are those of a named version."""
    assert (DEPLOY / "capabilities.json").read_bytes() == capabilities(str(opa_server.binary()))


def test_the_capabilities_have_no_builtin_that_the_embedded_engine_is_refused() -> None:
    said = json.loads((DEPLOY / "capabilities.json").read_bytes())
    names = {builtin["name"] for builtin in said["builtins"]}
    assert not names & FORBIDDEN_BUILTINS
    assert not [builtin["name"] for builtin in said["builtins"] if builtin.get("nondeterministic")]
    assert {"count", "object.union", "array.concat"} < names
    assert said["allow_net"] == []


def test_the_shipped_bundle_needs_no_more(tmp_path: Path) -> None:
    command = [opa_server.binary(), "check", "--strict", "--capabilities", DEPLOY / "capabilities.json", "--bundle"]
    done = subprocess.run([*command, SHIPPED], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    copy = tmp_path / "rego"
    shutil.copytree(SHIPPED, copy)
    rules = copy / "bursar" / "admission" / "clock.rego"
    rules.write_text("package bursar.admission\n\nat := time.now_ns()\n", encoding="utf-8")
    done = subprocess.run([*command, copy], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "undefined function time.now_ns" in done.stderr


def test_the_policies_of_the_deployment_are_strict_and_formatted() -> None:
    rego = [str(DEPLOY / "system")]
    opa = str(opa_server.binary())
    for command in ([opa, "check", "--strict", *rego], [opa, "fmt", "--fail", "--diff", *rego]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
