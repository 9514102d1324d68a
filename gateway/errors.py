"""The error table: every way in which a request can be refused or fail, and how it is said to an OpenAI client."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from domain.decision import Decision, Reason
from ledger.holds import Shortfall


class ErrorKind(NamedTuple):
    """A row of the table: HTTP status, OpenAI's `type` and `code`, and whether waiting can help."""

    status: int
    type: str
    code: str
    retryable: bool = False


INVALID_REQUEST = ErrorKind(400, "invalid_request_error", "invalid_request")
INVALID_API_KEY = ErrorKind(401, "invalid_request_error", "invalid_api_key")
POLICY_DENIED = ErrorKind(403, "policy_denied", "policy_denied")
VERIFICATION_FAILED = ErrorKind(403, "verification_failed", "verification_failed")
APPROVAL_REQUIRED = ErrorKind(403, "approval_required", "approval_required")
APPROVAL_DENIED = ErrorKind(403, "approval_denied", "approval_denied")
APPROVAL_NOT_FOUND = ErrorKind(404, "invalid_request_error", "approval_not_found")
MODEL_NOT_FOUND = ErrorKind(404, "invalid_request_error", "model_not_found")
UNKNOWN_ROUTE = ErrorKind(404, "invalid_request_error", "unknown_route")
USAGE_NOT_FOUND = ErrorKind(404, "invalid_request_error", "usage_not_found")
METHOD_NOT_ALLOWED = ErrorKind(405, "invalid_request_error", "method_not_allowed")
REQUEST_TIMEOUT = ErrorKind(408, "invalid_request_error", "request_timeout")
IDEMPOTENCY_IN_PROGRESS = ErrorKind(409, "invalid_request_error", "idempotency_in_progress", retryable=True)
IDEMPOTENCY_COMPLETED = ErrorKind(409, "invalid_request_error", "idempotency_completed")
REQUEST_TOO_LARGE = ErrorKind(413, "invalid_request_error", "request_too_large")
URL_TOO_LONG = ErrorKind(414, "invalid_request_error", "url_too_long")
IDEMPOTENCY_KEY_REUSED = ErrorKind(422, "invalid_request_error", "idempotency_key_reused")
HEADERS_TOO_LARGE = ErrorKind(431, "invalid_request_error", "headers_too_large")
INSUFFICIENT_QUOTA = ErrorKind(429, "insufficient_quota", "insufficient_quota")
RATE_LIMIT_EXCEEDED = ErrorKind(429, "requests", "rate_limit_exceeded", retryable=True)
CLIENT_LEFT = ErrorKind(499, "client_left", "client_left")
INTERNAL_ERROR = ErrorKind(500, "internal_error", "internal_error")
UPSTREAM_ERROR = ErrorKind(502, "upstream_error", "upstream_error")
UPSTREAM_TIMEOUT = ErrorKind(504, "upstream_error", "upstream_timeout")
OVERLOADED = ErrorKind(503, "overloaded", "overloaded", retryable=True)
GOVERNANCE_UNAVAILABLE = ErrorKind(503, "governance_unavailable", "governance_unavailable", retryable=True)
POLICY_UNAVAILABLE = ErrorKind(503, "policy_unavailable", "policy_unavailable", retryable=True)

RETRY_AFTER_S = 1
# Clients retry a 429 and a 409 by themselves, and waiting changes nothing here.
_NOT_TO_RETRY = (INSUFFICIENT_QUOTA, IDEMPOTENCY_COMPLETED)
_JSON = (b"content-type", b"application/json")


@dataclass(frozen=True, slots=True)
class Refusal:
    """One refused or failed request: a kind, a sentence for the caller and what else helps them.

    `detail` goes into the body under `bursar`; `reset_s` is in how many seconds another try can succeed.
    """

    kind: ErrorKind
    message: str
    param: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    reset_s: int | None = None
    decision: Decision | None = None
    type: str | None = None

    def body(self) -> bytes:
        """The body in OpenAI's shape."""
        error: dict[str, Any] = {
            "message": self.message,
            "type": self.type or self.kind.type,
            "param": self.param,
            "code": self.kind.code,
        }
        if self.detail:
            error["bursar"] = self.detail
        return orjson.dumps({"error": error})

    def headers(self, length: int) -> list[tuple[bytes, bytes]]:
        """The response headers of this refusal, before those that every response of a request has."""
        headers = [_JSON, (b"content-length", b"%d" % length)]
        if self.kind.retryable:
            seconds = max(1, self.reset_s if self.reset_s is not None else RETRY_AFTER_S)
            headers.append((b"retry-after", b"%d" % seconds))
            if self.kind is RATE_LIMIT_EXCEEDED:
                of = "requests" if self.type == "requests" else "tokens"
                headers.append((f"x-ratelimit-reset-{of}".encode(), b"%ds" % seconds))
        if self.kind in _NOT_TO_RETRY:
            headers.append((b"x-should-retry", b"false"))
        return headers


def short_of_budget(short: Shortfall, now_s: int, decision: Decision) -> Refusal:
    """A hold did not fit: say which budget, what it had left, what was asked and when it resets."""
    reset_s = None if short.resets_at_s is None else max(1, short.resets_at_s - now_s)
    if short.is_cut_off:
        return _cut_off(short, decision)
    detail = {
        "budget": short.budget,
        "owner": short.owner,
        "counter": short.counter,
        "resource": short.resource,
        "window": short.window,
        "limit": short.limit,
        "remaining": short.remaining,
        "asked": short.asked,
        "resets_in_s": reset_s,
    }
    left = f"has {short.remaining} of {short.limit} {short.resource} left and this request needs {short.asked}"
    where = f"Budget {short.budget} ({short.counter})"
    if short.is_short:
        reset_s = reset_s or RETRY_AFTER_S
        of = "requests" if short.resource in ("requests", "concurrency") else "tokens"
        message = f"{where} {left}; try again in {reset_s} s."
        return Refusal(RATE_LIMIT_EXCEEDED, message, detail=detail, reset_s=reset_s, decision=decision, type=of)
    if short.asked > short.limit:
        message = f"{where} {left}, which is more than its whole {short.window} window: ask {short.owner} to raise it."
    elif reset_s is None:
        message = f"{where} {left}; it does not reset: ask {short.owner} for a grant."
    else:
        message = f"{where} {left}; it resets in {reset_s} s, or ask {short.owner} for a grant."
    return Refusal(INSUFFICIENT_QUOTA, message, detail=detail, decision=decision)


def _cut_off(short: Shortfall, decision: Decision) -> Refusal:
    """The budget may have room, but that could not be found out where all of it is counted, and no lease does."""
    where = f"Budget {short.budget} ({short.counter})"
    message = f"{where} is shared, and what other gateways leave of it could not be found out now; try again shortly."
    detail = {"budget": short.budget, "owner": short.owner, "counter": short.counter, "resource": short.resource}
    return Refusal(GOVERNANCE_UNAVAILABLE, message, detail=detail, decision=decision)


def denied(decision: Decision, risk: dict[str, str] | None = None) -> Refusal:
    """Rego said no: list its reasons; a model outside the caller's offer is not found rather than forbidden.

    `risk` is the `level` above normal that it was asked at, and whose that is, the `scope`.
    """
    reasons = decision.reasons or (Reason("denied", "The policy denied this request without a reason."),)
    detail: dict[str, Any] = {"reasons": [{"code": reason.code, "message": reason.message} for reason in reasons]}
    if risk is not None:
        detail["risk"] = risk
    message = " ".join(reason.message for reason in reasons)
    if any(reason.code == "model_not_offered" for reason in reasons):
        return Refusal(MODEL_NOT_FOUND, message, "model", detail, decision=decision)
    return Refusal(POLICY_DENIED, message, detail=detail, decision=decision)


def undecided(why: str) -> Refusal:
    """No policy decision could be made, so nothing is admitted."""
    return Refusal(POLICY_UNAVAILABLE, f"The policy could not be evaluated: {why}.")


def internal() -> Refusal:
    """Something broke that should not: the log says what, the caller only that."""
    return Refusal(INTERNAL_ERROR, "The gateway failed on this request; its log says how.")


def interrupted(why: str) -> Refusal:
    """A request stopped before anything was sent to a runtime; `why` is that of a live call."""
    if why == "client_left":
        return Refusal(CLIENT_LEFT, "The client left before its request was answered.")
    if why == "client_stalled":
        return Refusal(REQUEST_TIMEOUT, "The body did not arrive in time.")
    return overloaded(is_draining=True)


def broken_off(runtime: str) -> Refusal:
    """A runtime reported an error within a stream of which something had not been verified yet."""
    message = f"Runtime {runtime} broke off its answer with an error; what was not verified by then is withheld."
    return Refusal(UPSTREAM_ERROR, message)


def unauthenticated(reason: str, wanted: str = "bsk-…") -> Refusal:
    """No valid key: say which way it is not valid, and how one begins that is `wanted`."""
    return Refusal(INVALID_API_KEY, f"The API key is {reason}. Send a valid one as `Authorization: Bearer {wanted}`.")


def too_large(bytes_max: int) -> Refusal:
    """The body is over the limit, and the rest of it is not read."""
    return Refusal(REQUEST_TOO_LARGE, f"The body is larger than {bytes_max} bytes.", detail={"bytes_max": bytes_max})


def overloaded(*, is_draining: bool) -> Refusal:
    """Nothing more is taken in for now."""
    why = "is stopping" if is_draining else "has as many requests in flight as it takes"
    return Refusal(OVERLOADED, f"The gateway {why}; try again shortly.")


def unknown_model(model: str) -> Refusal:
    """No such model is configured, whoever asks."""
    return Refusal(MODEL_NOT_FOUND, f"Model {model!r} does not exist here or is not offered to you.", "model")


def journal_unavailable(decision: Decision | None = None) -> Refusal:
    """What cannot be recorded is not admitted; why it cannot is for the operator, not for the caller."""
    message = "The journal cannot take a record of this request, so it is not admitted."
    return Refusal(GOVERNANCE_UNAVAILABLE, message, decision=decision)


def unhealthy(model: str, decision: Decision) -> Refusal:
    """Every runtime of the model has its circuit breaker open."""
    message = f"No runtime of model {model!r} is healthy now; nothing was charged."
    return Refusal(UPSTREAM_ERROR, message, decision=decision)


def too_much_input(bound: int, bound_max: int, decision: Decision) -> Refusal:
    """Policy bounds the input under what this request may be."""
    message = f"The input can be {bound} tokens and the policy admits {bound_max}."
    return Refusal(
        POLICY_DENIED, message, detail={"input_bound": bound, "max_input_tokens": bound_max}, decision=decision
    )


def unverified(check: str, kinds: list[str], places: list[dict[str, str]], reason: str, decision: Decision) -> Refusal:
    """The answer did not pass a check, or that could not be made: name the check and what it found, never the text."""
    why = f": {reason}" if reason else ""
    message = f"The answer is withheld, check {check} says {', '.join(kinds)}{why}. What was produced is charged."
    detail = {"check": check, "kinds": kinds, "findings": places}
    return Refusal(VERIFICATION_FAILED, message, detail=detail, decision=decision)


def approval_required(approval_id: str, expires_at: int, decision: Decision) -> Refusal:
    """The answer is finished, charged and waits for a person: say where it can be fetched."""
    where = f"/v1/approvals/{approval_id}"
    message = f"The answer is withheld until a person approves it; then it is at {where}. What was produced is charged."
    detail = {"approval": approval_id, "answer": where, "expires_at": expires_at}
    return Refusal(APPROVAL_REQUIRED, message, detail=detail, decision=decision)


def unknown_approval(approval_id: str) -> Refusal:
    """Nothing of this caller's waits, or waited, under that id."""
    message = f"No answer of yours is kept under approval {approval_id!r}: it may have been forgotten; ask again."
    return Refusal(APPROVAL_NOT_FOUND, message)


def not_approved(approval_id: str, state: str, reason: str) -> Refusal:
    """The answer will not be released."""
    why = f": {reason}" if reason else ""
    message = f"Approval {approval_id} is {state}{why}. The answer is not released."
    return Refusal(APPROVAL_DENIED, message, detail={"approval": approval_id, "state": state})


def malformed(message: str, param: str | None = None) -> Refusal:
    """The request itself is wrong: name the field."""
    return Refusal(INVALID_REQUEST, message, param)


def in_progress(request_id: str) -> Refusal:
    """The request that this one repeats has not ended."""
    message = f"Request {request_id} has this Idempotency-Key and is in progress; try again shortly."
    return Refusal(IDEMPOTENCY_IN_PROGRESS, message, detail={"request_id": request_id})


def completed(request_id: str) -> Refusal:
    """The request that this one repeats was served, and its answer is not kept."""
    usage = f"/v1/usage/{request_id}"
    message = f"Request {request_id} had this Idempotency-Key; its answer is not kept, what it used is at {usage}."
    return Refusal(IDEMPOTENCY_COMPLETED, message, detail={"request_id": request_id, "usage": usage})


def key_reused(request_id: str) -> Refusal:
    """Another request has the same Idempotency-Key."""
    message = f"Request {request_id} has this Idempotency-Key and another body; give each request a key of its own."
    return Refusal(IDEMPOTENCY_KEY_REUSED, message, "idempotency-key", {"request_id": request_id})


def stream_error(refusal: Refusal) -> bytes:
    """A failure after the response began, as the last event of its stream."""
    return b"data: " + refusal.body() + b"\n\n"
