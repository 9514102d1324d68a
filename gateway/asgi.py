"""The ASGI data plane: identify the caller, read the request, and take it through the flow."""

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import structlog

from domain.ids import uuid7
from domain.intent import Intent, Principal
from gateway import errors, flow, rows
from gateway.admission import Admitted, Ask
from gateway.bodies import read_whole
from gateway.calls import Caller
from gateway.errors import Refusal
from gateway.governance import Governance
from gateway.identity import Head, read_head
from gateway.keys import Key, KeyStore
from gateway.live import EXTENSION, Connection, Live, LiveCall
from gateway.pseudonyms import Pseudonyms
from gateway.repeats import Answer, Name
from gateway.replies import App, Message, Receive, Send, replayed, send_refusal, send_whole
from gateway.requests import ENDPOINTS, Endpoint, read_body, read_intent
from gateway.traces import traced
from observability.names import EVENT_HELD
from observability.tracing import Span, Tracing

log = structlog.get_logger("gateway")


@dataclass(frozen=True, slots=True)
class BodyBounds:
    """How much of a body is read, and for how long."""

    bytes_max: int
    timeout_s: float


class Arrival(NamedTuple):
    """One request of a known caller, before its body is read."""

    endpoint: Endpoint
    head: Head
    principal: Principal
    request_id: str
    arrived_us: int

    def unread(self, model: str = "") -> Ask:
        """The ask of a request that cannot be understood, so that it too leaves a row."""
        intent = Intent(
            self.request_id,
            self.principal,
            self.endpoint.name,
            model,
            stream=False,
            input_bound=0,
            max_output_tokens=None,
            run=self.head.run,
        )
        return Ask(intent, self.arrived_us, rows.identity(intent, self.head.request_id))


@dataclass(frozen=True, slots=True)
class DataPlane:
    """The ASGI application of the public listener; `others` serves what does not go through the flow."""

    of: Governance
    keys: KeyStore
    live: Live
    caller: Caller
    tracing: Tracing
    pseudonyms: Pseudonyms
    body_bounds: BodyBounds
    others: App

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one HTTP request."""
        endpoint = ENDPOINTS.get(scope["path"])
        if endpoint is None or scope["method"] != "POST":
            await self.others(scope, receive, send)
            return
        arrived_us = self.of.now_us()
        request_id = uuid7(arrived_us // 1000)
        head = read_head(scope["headers"])
        key = self.keys.lookup(head.secret)
        if not isinstance(key, Key):
            self.of.metrics.unauthenticated(key.value)
            await send_refusal(send, errors.unauthenticated(key.value), request_id, close=True)
            return
        arrival = Arrival(endpoint, head, key.principal, request_id, arrived_us)
        connection: Connection = scope["extensions"][EXTENSION]
        call = LiveCall(connection, time.monotonic() + self.body_bounds.timeout_s)
        connection.call = call
        self.live.calls.add(call)
        try:
            await self._serve(arrival, call, receive, send)
        except asyncio.CancelledError:
            if not call.stopped:
                raise
            connection.task.uncancel()
            await self._refuse(call, arrival.unread(), errors.interrupted(call.stopped), send, close=True)
        except Exception:
            if call.hold is not None or call.is_recorded:
                raise
            log.exception("request failed", request_id=request_id)
            await self._refuse(call, arrival.unread(), errors.internal(), send, close=True)
        finally:
            connection.call = None
            self.live.calls.discard(call)

    async def _serve(self, arrival: Arrival, call: LiveCall, receive: Receive, send: Send) -> None:
        """Serve a known caller: one usage row, whatever happens, unless an answer that has one is sent again."""
        live = self.live
        if live.can_serve():
            arrived = call.connection.take_body(self.body_bounds.bytes_max)
            data = await read_whole(arrival.head, receive, self.body_bounds.bytes_max) if arrived is None else arrived
        else:
            data = errors.overloaded(is_draining=live.is_draining)
        if isinstance(data, Refusal):
            await self._refuse(call, arrival.unread(), data, send, close=True)
            return
        body = read_body(data)
        if isinstance(body, Refusal):
            await self._refuse(call, arrival.unread(), body, send)
            return
        if arrival.head.idempotency_key is None:
            await self._govern(arrival, call, body, send)
        else:
            name = Name(arrival.principal.key_id, arrival.endpoint.name, arrival.head.idempotency_key)
            await self._govern_once(name, arrival, call, data, body, send)

    async def _govern_once(
        self, name: Name, arrival: Arrival, call: LiveCall, data: bytes, body: dict[str, Any], send: Send
    ) -> None:
        """Govern a request unless its client has sent it before under the same name."""
        begun = self.of.repeats.begin(name, data, arrival.request_id, arrival.arrived_us)
        if isinstance(begun, Refusal):
            await self._refuse(call, arrival.unread(body["model"]), begun, send)
            return
        if isinstance(begun, Answer):
            call.is_recorded = True
            self.of.metrics.replayed(name.endpoint)
            await send_whole(send, 200, replayed(begun.headers), begun.body)
            return
        call.attempt = begun
        try:
            await self._govern(arrival, call, body, send)
        finally:
            self.of.repeats.end(begun, self.of.now_us())

    async def _govern(self, arrival: Arrival, call: LiveCall, body: dict[str, Any], send: Send) -> None:
        ask = self._ask(arrival, body)
        if isinstance(ask, Refusal):
            await self._refuse(call, arrival.unread(body["model"]), ask, send)
            return
        call.deadline_s = math.inf
        result = await flow.admit(self.of, ask)
        while isinstance(result, Admitted):
            traceparent = arrival.head.traceparent
            span = self.tracing.start(traceparent, result.decision.obligations.sample_trace, arrival.arrived_us)
            onward = traceparent
            if span is not None:
                span.event(EVENT_HELD)
                onward = span.header
            refusal = await self.caller.call(arrival.endpoint, result, call, body, send, onward)
            if span is not None:
                self._end(span, ask, refusal)
            if refusal is None:
                return
            # A model stands in for a runtime that cannot be reached, not for checks that cannot be made.
            is_away = refusal.kind is errors.UPSTREAM_ERROR
            result = await flow.fall_back(self.of, ask, result, refusal) if is_away else refusal
        await self._refuse(call, ask, result, send)

    def _ask(self, arrival: Arrival, body: dict[str, Any]) -> Ask | Refusal:
        offer = self.of.catalogue.offers.get(body["model"])
        if offer is None:
            return errors.unknown_model(body["model"])
        principal = self.pseudonyms.applied(arrival.principal, body.get("user"))
        head = arrival.head
        intent = read_intent(
            arrival.endpoint, body, principal, arrival.request_id, offer.measure, head.run, head.priority
        )
        if isinstance(intent, Refusal):
            return intent
        return Ask(intent, arrival.arrived_us, rows.identity(intent, head.request_id), body)

    async def _refuse(self, call: LiveCall, ask: Ask, refusal: Refusal, send: Send, *, close: bool = False) -> None:
        if call.is_recorded:  # and was interrupted while that was being said
            return
        call.is_recorded = True
        flow.refuse(self.of, ask, refusal)
        if refusal.kind is not errors.CLIENT_LEFT:
            await send_refusal(send, refusal, ask.intent.request_id, close=close)

    def _end(self, span: Span, ask: Ask, refusal: Refusal | None) -> None:
        row = self.of.recent.get(ask.intent.request_id) or ask.row
        span.end(traced(row), refusal.kind.code if refusal else row.get("error_code") or None)
