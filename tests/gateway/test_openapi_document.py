"""The OpenAPI document is true: what schemathesis makes of it is answered as it says."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway import openapi
from tests.gateway.fake_runtime import FakeRuntime
from tests.gateway.gateway_process import GatewayProcess

# A request that makes the runtime behind it fail is answered so, and the document says it is.
DOCUMENTED = {502, 503, 504}
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]

schema = schemathesis.openapi.from_dict(openapi.document())


@schema.parametrize()
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_one_that_the_document_describes(case: Any, gateway: GatewayProcess, fake: FakeRuntime) -> None:
    body = case.body if isinstance(case.body, dict) else {}
    if "model" in body:
        body["model"] = "embed" if case.path.endswith("embeddings") else "plain"
        body.pop("script", None)
    response = case.call(base_url=gateway.url, headers={"authorization": f"Bearer {gateway.key('free')}"}, timeout=20)
    checks = CHECKS if response.status_code in DOCUMENTED else [*CHECKS, not_a_server_error]
    case.validate_response(response, checks=checks)
    assert gateway.process.poll() is None


def test_nothing_is_held_after_all_that(gateway: GatewayProcess) -> None:
    assert gateway.open_holds() == 0


def test_the_document_is_served_as_it_is(gateway: GatewayProcess) -> None:
    assert gateway.client.get("/openapi.json").json() == openapi.document()


@pytest.mark.parametrize("path", sorted(openapi.document()["paths"]))
def test_every_path_of_the_document_exists_and_asks_for_a_key_unless_it_is_open(
    gateway: GatewayProcess, path: str
) -> None:
    ((method, operation),) = openapi.document()["paths"][path].items()
    answer = gateway.client.request(method, path.format(model="plain", request_id="x", approval_id="x"))
    assert answer.status_code == (200 if operation.get("security") == [] else 401)
