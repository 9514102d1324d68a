"""Calls: send an admitted request to its runtime, pass the answer on, and settle what was seen of it."""

import asyncio
import math
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import orjson

from gateway import errors, flow
from gateway.admission import Admitted
from gateway.answers import Collector
from gateway.errors import ErrorKind, Refusal
from gateway.flow import Outcome
from gateway.forward import Forwarder
from gateway.governance import Governance
from gateway.live import LiveCall
from gateway.metering import Observed
from gateway.noticing import Noticing
from gateway.repeats import Answer
from gateway.replies import Headers, Send, governed_headers, send_refusal, send_whole
from gateway.requests import Endpoint
from gateway.verification import Verification, Verifier
from gateway.withheld import Withheld, texts_of
from ledger.holds import State
from runtime.openai.sse import Meter, shown
from runtime.openai.usage import produced_bytes, read_report
from runtime.port import Garbage, Lost, RuntimeFailure, Unreachable
from runtime.wire import Response

_JSON = (b"content-type", b"application/json")
_SSE = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
# Answers that are about the request rather than about the runtime or Bursar's own credentials there.
_PASSED_ON = frozenset({400, 404, 413, 422})
_US = 1_000_000
# Turns of the event loop, each of which reads what the socket has; vLLM goes on writing to one that nobody reads.
_DRAIN_TURNS_MAX = 256
_DRAIN_QUIET_TURNS = 2

# why a live call was interrupted -> how it is recorded, and what is said where the client is still there
_STOPPED: dict[str, tuple[str, ErrorKind, str]] = {
    "client_left": ("cut", errors.CLIENT_LEFT, ""),
    "client_stalled": ("cut", errors.CLIENT_LEFT, ""),
    "timeout": ("failed", errors.UPSTREAM_TIMEOUT, "The runtime did not answer in time; what it produced is charged."),
    "drained": ("cut", errors.OVERLOADED, "The gateway is stopping; what was produced is charged."),
}


@dataclass(frozen=True, slots=True)
class Caller:
    """What every call of one worker needs: governance, the bounds of an answer, and what verifies it.

    Where decisions oblige checks and there is no `verifier`, nothing is sent. `is_exempt` is for answers that only the
    gateway reads. `noticing` reads along with some answers.
    """

    of: Governance
    forwarder: Forwarder
    event_bytes_max: int
    response_bytes_max: int
    verifier: Verifier | None = None
    is_exempt: bool = False
    noticing: Noticing | None = None

    def call(
        self,
        endpoint: Endpoint,
        admitted: Admitted,
        live: LiveCall,
        body: dict[str, Any],
        send: Send,
        traceparent: bytes | None,
    ) -> Coroutine[Any, Any, Refusal | None]:
        """Call the runtime and answer the client; the hold is settled when this returns None or raises.

        A refusal is returned when nothing could be sent: the hold is void and the client has not been answered.
        """
        return _Call(self, endpoint, admitted, live, send).run(body, traceparent)


class _Call:
    """One request from its sending to its settlement, whatever happens between."""

    def __init__(self, caller: Caller, endpoint: Endpoint, admitted: Admitted, live: LiveCall, send: Send) -> None:
        self.caller = caller
        self.of = caller.of
        self.endpoint = endpoint
        self.admitted = admitted
        self.send = send
        self.live = live
        self.meter: Meter | None = None
        self.response: Response | None = None
        self.verification: Verification | None = None
        self.whole: Observed | None = None
        self.collector: Collector | None = None
        self.sent = False
        self.started = False
        self.ttft_us = 0

    async def run(self, body: dict[str, Any], traceparent: bytes | None) -> Refusal | None:
        runtime, live = self.admitted.runtime, self.live
        live.hold, live.on_client = self.admitted.hold, False
        live.deadline_s = time.monotonic() + runtime.spec.first_byte_timeout_s
        runtime.in_flight += 1
        try:
            if self.admitted.decision.obligations.verify and not self.caller.is_exempt:
                refusal = await self._oblige(body)
                if refusal is not None:
                    flow.void(self.of, self.admitted)
                    return refusal
            self.response = await self._send(body, traceparent)
            await self._answer(self.response)
        except Unreachable as unreachable:
            flow.void(self.of, self.admitted)
            self.of.metrics.upstream_error(runtime.spec.id, type(unreachable).__name__)
            return Refusal(errors.UPSTREAM_ERROR, f"The call failed: {unreachable}; nothing was charged.")
        except RuntimeFailure as error:
            await self._fail(error)
        except asyncio.CancelledError:
            if not live.stopped:
                raise
            live.connection.task.uncancel()
            await self._drain()
            if self.response is not None:
                self.response.close()  # at once, so that the runtime computes no more than the steps in flight
            await self._stop(*_STOPPED[live.stopped])
        finally:
            if self.admitted.hold.state is State.OPEN:
                self._settle(self._seen(), "cut", errors.CLIENT_LEFT)
            if self.response is not None:
                self.response.close()
            runtime.in_flight -= 1
        return None

    async def _oblige(self, body: dict[str, Any]) -> Refusal | None:
        """Begin the verification that policy obliges; a refusal where the answer could not be verified."""
        verifier, live, decision = self.caller.verifier, self.live, self.admitted.decision
        if verifier is None:
            return Refusal(errors.POLICY_UNAVAILABLE, "The policy obliges checks; none is set up.", decision=decision)
        deadline_s, live.deadline_s = live.deadline_s, math.inf
        begun = await verifier.begin(self.admitted, body)
        live.deadline_s = deadline_s
        if isinstance(begun, Refusal):
            return begun
        self.verification = begun if begun.names else None
        return None

    def _send(self, body: dict[str, Any], traceparent: bytes | None) -> Coroutine[Any, Any, Response]:
        forwarder, intent = self.caller.forwarder, self.admitted.ask.intent
        if intent.stream:
            show_final, show_all = shown(body)
            self.meter = Meter(
                choices=intent.choices,
                show_final=show_final,
                show_all=show_all,
                event_bytes_max=self.caller.event_bytes_max,
            )
        if self.caller.noticing is not None:
            self.collector = self.caller.noticing.collector(intent, body, generates=self.endpoint.generates)
        headers = forwarder.headers(self.admitted, traceparent)
        payload = forwarder.body(self.admitted, body)
        self.sent = True
        return self.admitted.runtime.post(self.endpoint.path, payload, headers)

    def _answer(self, response: Response) -> Coroutine[Any, Any, None]:
        if response.status != 200:
            return self._pass_error(response)
        if self.meter is None:
            return self._whole(response)
        if self.verification is not None:
            return self._withhold(response, self.meter, self.verification)
        return self._stream(response, self.meter)

    async def _drain(self) -> None:
        """Take in what the runtime has already sent: a report that lies unread would be charged short."""
        if self.meter is None or self.response is None:
            return
        quiet = 0
        for _ in range(_DRAIN_TURNS_MAX):
            try:
                data = self.response.read_nowait()
                self.meter.feed(data)
            except RuntimeFailure:
                return
            quiet = 0 if data else quiet + 1
            if quiet > _DRAIN_QUIET_TURNS:
                return
            await asyncio.sleep(0)

    async def _stream(self, response: Response, meter: Meter) -> None:
        live, send = self.live, self.send
        idle_s = self.admitted.runtime.spec.idle_timeout_s
        arrived_us, now_us = self.admitted.ask.arrived_us, self.of.now_us
        while data := await response.read_any():
            if not self.started:
                self.ttft_us = now_us() - arrived_us
                self.started = True
                await send({"type": "http.response.start", "status": 200, "headers": _SSE + self._headers()})
            out = meter.feed(data)
            if self.collector is not None:
                self.collector.feed(out)
            if meter.done:
                self._settle_stream(meter)
            live.deadline_s = time.monotonic() + idle_s
            if out:
                live.on_client = True
                await send({"type": "http.response.body", "body": out, "more_body": True})
                live.on_client = False
        rest = meter.finish()
        if not meter.done:
            raise Lost(f"runtime {self.admitted.runtime.spec.id} ended the stream before it was complete")
        self._settle_stream(meter)
        await send({"type": "http.response.body", "body": rest})

    async def _withhold(self, response: Response, meter: Meter, verification: Verification) -> None:
        """A stream of which each event waits until its text has been verified."""
        live, idle_s = self.live, self.admitted.runtime.spec.idle_timeout_s
        withheld = Withheld(verification.granularity, self.caller.response_bytes_max)
        while not meter.done and (data := await response.read_any()):
            self.ttft_us = self.ttft_us or self.of.now_us() - self.admitted.ask.arrived_us
            out = meter.feed(data)
            if meter.error is not None:
                break  # whose text may quote what was not verified
            withheld.feed(out)
            if self.collector is not None:
                self.collector.feed(out)
            if texts := withheld.due():
                live.deadline_s = math.inf
                if (refusal := await verification.texts(texts)) is not None:
                    await self._withdraw(refusal)
                    return
            live.deadline_s = time.monotonic() + idle_s
            await self._release(withheld.passed(), is_last=False)
        withheld.feed(meter.finish())
        if meter.error is not None:
            await self._withdraw(errors.broken_off(self.admitted.runtime.spec.id))
            return
        if not meter.done:
            raise Lost(f"runtime {self.admitted.runtime.spec.id} ended the stream before it was complete")
        live.deadline_s = math.inf
        refusal = await verification.finish(
            withheld.choices, withheld.rest, lambda: Answer(_SSE + self._headers(), withheld.held)
        )
        if refusal is not None:
            await self._withdraw(refusal)
            return
        self._settle_stream(meter)
        live.deadline_s = time.monotonic() + idle_s
        await self._release(withheld.all_passed(), is_last=True)

    async def _release(self, out: bytes, *, is_last: bool) -> None:
        if not out and not is_last:
            return
        self.live.on_client = True
        if not self.started:
            self.started = True
            await self.send({"type": "http.response.start", "status": 200, "headers": _SSE + self._headers()})
        await self.send({"type": "http.response.body", "body": out, "more_body": not is_last})
        self.live.on_client = False

    async def _withdraw(self, refusal: Refusal) -> None:
        """End a stream of which something may not be released, at the runtime too, and charge what it produced."""
        await self._drain()
        if self.response is not None:
            self.response.close()
        await self._say(refusal, self._seen())

    def _settle_stream(self, meter: Meter) -> None:
        has_failed = meter.error is not None
        self._settle(self._seen(), "failed" if has_failed else "ok", errors.UPSTREAM_ERROR if has_failed else None)

    async def _whole(self, response: Response) -> None:
        data = response.read_nowait() if response.is_complete else await self._read(response)
        self._check_size(len(data))
        try:
            answer = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise Garbage("the answer is not JSON") from error
        if not isinstance(answer, dict):
            raise Garbage("the answer is not a JSON object")
        if self.collector is not None:
            self.collector.whole(answer)
        report = read_report(answer.get("usage"))
        choices = answer.get("choices")
        produced = sum(map(produced_bytes, choices)) if report is None and isinstance(choices, list) else 0
        seen = Observed(sent=True, is_complete=True, report=report, produced=produced)
        if self.verification is not None:
            refusal = await self._verify(self.verification, answer, data, seen)
            if refusal is not None:
                await self._say(refusal, seen)
                return
        self._settle(seen, "ok")
        headers = [_JSON, (b"content-length", b"%d" % len(data)), *self._headers()]
        if self.live.attempt is not None:
            self.live.attempt.answer = Answer(headers, data)
        self.started = True
        if not self.live.connection.respond(200, headers, data):
            await send_whole(self.send, 200, headers, data)

    async def _verify(
        self, verification: Verification, answer: dict[str, Any], data: bytes, seen: Observed
    ) -> Refusal | None:
        """Why a whole answer may not be released; None where it may."""
        self.whole, self.live.deadline_s = seen, math.inf
        length = b"content-length", b"%d" % len(data)
        return await verification.whole(
            answer, lambda: Answer([_JSON, length, *self._headers()], data), generates=self.endpoint.generates
        )

    async def _pass_error(self, response: Response) -> None:
        """The runtime answered with an error of its own: complete, so nothing is charged unless it reported usage."""
        runtime, status, data = self.admitted.runtime.spec.id, response.status, await self._read(response)
        answer = _object(data)
        seen = Observed(sent=True, is_complete=True, is_error=True, report=read_report(answer.get("usage")))
        self.of.metrics.upstream_error(runtime, f"http_{status // 100}xx")
        refusal: Refusal | None = None
        if status not in _PASSED_ON or not isinstance(answer.get("error"), dict):
            kind = errors.OVERLOADED if status in (429, 503) else errors.UPSTREAM_ERROR
            refusal = Refusal(kind, f"Runtime {runtime} answered {status}; nothing was charged.")
        elif self.verification is not None:
            refusal = await self.verification.texts(texts_of(answer))  # it may quote what the model wrote
        if refusal is not None:
            await self._say(refusal, seen)
            return
        self._settle(seen, "failed", errors.UPSTREAM_ERROR._replace(status=status))
        self.verification = None  # it is no answer, and not all its checks were made
        headers = [_JSON, (b"content-length", b"%d" % len(data)), *self._headers()]
        await send_whole(self.send, status, headers, data)

    async def _fail(self, error: RuntimeFailure) -> None:
        self.of.metrics.upstream_error(self.admitted.runtime.spec.id, type(error).__name__)
        refusal = Refusal(errors.UPSTREAM_ERROR, f"The call failed: {error}; what it may have produced is charged.")
        await self._say(refusal, self._seen())

    async def _stop(self, status: str, kind: ErrorKind, message: str) -> None:
        if kind is errors.CLIENT_LEFT:
            self._settle(self._seen(), status, kind)
            return
        self.of.metrics.upstream_error(self.admitted.runtime.spec.id, self.live.stopped)
        await self._say(Refusal(kind, message), self._seen(), status)

    async def _say(self, refusal: Refusal, seen: Observed, status: str = "failed") -> None:
        """Settle, then tell the client: as a response, or as the last event of the stream it is already reading."""
        self._settle(seen, status, refusal.kind)
        if not self.started:
            await send_refusal(self.send, refusal, self.admitted.ask.intent.request_id)
        else:
            await self.send({"type": "http.response.body", "body": errors.stream_error(refusal)})

    def _seen(self) -> Observed:
        meter = self.meter
        if meter is None:
            return self.whole or Observed(self.sent)
        try:
            report = meter.report
        except Garbage:
            # Output that came with reports was not counted otherwise, so nothing is known of how much it was.
            return Observed(self.sent)
        is_complete = meter.done and meter.error is None  # also where its client did not stay for it
        return Observed(self.sent, is_complete, streamed=True, report=report, produced=meter.produced)

    def _settle(self, seen: Observed, status: str, kind: ErrorKind | None = None) -> None:
        """Settle once; later calls for the same hold change nothing."""
        if self.admitted.hold.state is not State.OPEN:
            return
        outcome = Outcome(seen, status, kind.status if kind else 200, kind.code if kind else "", self.ttft_us)
        flow.settle(self.of, self.admitted, outcome)
        if self.live.attempt is not None:
            self.live.attempt.is_served = status == "ok"
        noticing, verification = self.caller.noticing, self.verification
        if noticing is not None and self.collector is not None and status == "ok":
            is_ruled = verification is not None and verification.rules_tools
            noticing.answered(self.admitted.hold.row, self.collector, is_ruled=is_ruled)

    async def _read(self, response: Response) -> bytes:
        whole = bytearray()
        while data := await response.read_any():
            whole += data
            self._check_size(len(whole))
        return bytes(whole)

    def _check_size(self, size: int) -> None:
        if size > self.caller.response_bytes_max:
            raise Garbage(f"the answer is larger than {self.caller.response_bytes_max} bytes")

    def _headers(self) -> Headers:
        headers = governed_headers(self.admitted, self.of.now_us() // _US)
        if self.verification is not None:
            headers.append(self.verification.header)
        return headers


def _object(data: bytes) -> dict[str, Any]:
    try:
        answer = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return answer if isinstance(answer, dict) else {}
