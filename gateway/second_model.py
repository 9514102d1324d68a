"""The second model: asked through the gateway itself whether an answer may be released, at its principal's expense.

The question is a request as any other: decided, held, called, settled and recorded, with the run of the request whose
answer it is about. Its own answer is read by the gateway alone, so that policy's checks do not apply to it.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import orjson

from domain.ids import uuid7
from gateway import flow, rows
from gateway.admission import Admitted, Ask
from gateway.calls import Caller
from gateway.errors import Refusal
from gateway.live import Live, LiveCall
from gateway.replies import Message
from gateway.requests import CHAT, read_intent
from gateway.verification_config import SecondModel
from policy.checks import verdict
from runtime.openai.answers import choices_of

REFUSED = "second_model_refused"
FAILED = "second_model_failed"
UNCLEAR = "verdict_unclear"
SAYS_NO = "not_released"
_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "verdict",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"release": {"type": "boolean"}},
            "required": ["release"],
            "additionalProperties": False,
        },
    },
}


class _Inside:
    """The connection of a request that comes from no client: the task that makes it can be interrupted."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.task = task
        self.call: LiveCall | None = None

    def take_body(self, bytes_max: int) -> bytes | None:
        return None

    def respond(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        return False


class _Reply:
    """What would have been sent to a client."""

    def __init__(self) -> None:
        self.status = 0
        self.body = b""

    async def send(self, message: Message) -> None:
        self.status = message.get("status", self.status)
        self.body += message.get("body", b"")


@dataclass(frozen=True, slots=True)
class Judging:
    """Asks the configured model; `caller` is exempt from verification."""

    caller: Caller
    live: Live
    config: SecondModel

    async def ask(self, admitted: Admitted, request: str, answer: str) -> str:
        """The kind of finding: "" where the model says that the answer may be released, and nothing else."""
        reply, prompt = _Reply(), verdict.prompt(self.config.prompt, request, answer)
        # A task of its own: what interrupts the question must not interrupt the request that it is about.
        kind = await asyncio.create_task(self._asked(admitted, prompt, reply))
        if kind:
            return kind
        if reply.status != 200:
            return FAILED
        choices = choices_of(_json(reply.body))
        release = verdict.read(choices[0].content) if len(choices) == 1 else None
        if release is None:
            return UNCLEAR
        return "" if release else SAYS_NO

    async def _asked(self, admitted: Admitted, prompt: str, reply: _Reply) -> str:
        of, task = self.caller.of, asyncio.current_task()
        assert task is not None
        body = {
            "model": self.config.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self.config.max_output_tokens,
            "temperature": 0,
            "response_format": _FORMAT,
        }
        ask = self._ask(admitted, body)
        if isinstance(ask, str):
            return ask
        call = LiveCall(_Inside(task), time.monotonic(), on_client=False)
        call.deadline_s = float("inf")
        self.live.calls.add(call)
        try:
            result = await flow.admit(of, ask)
            while isinstance(result, Admitted):
                refusal = await self.caller.call(CHAT, result, call, body, reply.send, None)
                if refusal is None:
                    return ""
                result = await flow.fall_back(of, ask, result, refusal)
            flow.refuse(of, ask, result, is_callers=False)
        finally:
            self.live.calls.discard(call)
        return REFUSED

    def _ask(self, admitted: Admitted, body: dict[str, Any]) -> Ask | str:
        """The ask of the question: of the same principal and run, and named after the request that it is about."""
        of, verified = self.caller.of, admitted.ask.intent
        now_us = of.now_us()
        offer = of.catalogue.offers.get(self.config.model)
        if offer is None:
            return REFUSED
        request_id = uuid7(now_us // 1000)
        intent = read_intent(CHAT, body, verified.principal, request_id, offer.measure, verified.run)
        if isinstance(intent, Refusal):
            return REFUSED
        return Ask(intent, now_us, rows.identity(intent, f"verifies-{verified.request_id}"), body)


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
