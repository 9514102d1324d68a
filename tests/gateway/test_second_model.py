"""What the gateway asks a second model is recorded as a request of its principal, and shows nothing of them."""

import asyncio
from pathlib import Path

from gateway.calls import Caller
from gateway.forward import Forwarder
from gateway.live import Live
from gateway.second_model import REFUSED, Judging
from gateway.verification_config import SecondModel
from tests.gateway.one_worker import OneWorker, admitted


async def test_a_question_that_policy_refuses_is_recorded_and_is_no_violation_of_its_caller(tmp_path: Path) -> None:
    """The model `capped` takes 2,000 tokens."""
    worker = OneWorker(tmp_path)
    of = await worker.open()
    request = await admitted(of)
    judging = Judging(Caller(of, Forwarder(b"salt"), 1, 1), Live(10), SecondModel(model="capped"))
    assert await asyncio.wait_for(judging.ask(request, "x" * 9_000, "y"), 30) == REFUSED
    of.journal.sync()
    [row] = worker.records("usage")
    assert (row["status"], row["http_status"], row["error_code"]) == ("refused", 403, "policy_denied")
    assert row["client_request_id"] == f"verifies-{request.ask.intent.request_id}"
    assert of.noticing.signals.waiting == 0
    await worker.close()
