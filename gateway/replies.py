"""Replies: the response headers that say what governed a request, and how a whole response is sent."""

import math
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from gateway.admission import Admitted
from gateway.errors import Refusal
from ledger.book import Route
from ledger.counters import Counter

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

# Headers that say what was left at one moment.
_MOMENTARY = (b"x-bursar-budget", b"x-ratelimit-")
# A resource that OpenAI's rate limit headers speak of -> their names: limit, remaining, reset.
_RATED = {
    resource: (
        f"x-ratelimit-limit-{resource}".encode(),
        f"x-ratelimit-remaining-{resource}".encode(),
        f"x-ratelimit-reset-{resource}".encode(),
    )
    for resource in ("requests", "tokens")
}


async def send_whole(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send a response whose body is at hand."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_refusal(send: Send, refusal: Refusal, request_id: str, *, close: bool = False) -> None:
    """Send a refusal in the shape of the API that was called; `close` ends the connection, unread body and all."""
    body = refusal.body()
    headers = refusal.headers(len(body))
    headers.append((b"x-request-id", request_id.encode()))
    if close:
        headers.append((b"connection", b"close"))
    if refusal.decision is not None:
        headers.append((b"x-bursar-decision", refusal.decision.decision_id.encode()))
        headers.append((b"x-bursar-policy", refusal.decision.revision.encode()))
    await send_whole(send, refusal.kind.status, headers, body)


def replayed(headers: Headers) -> Headers:
    """The headers of an answer that is sent again: its own ids, and nothing of what was left of budgets then."""
    lasting = [header for header in headers if not header[0].startswith(_MOMENTARY)]
    return [*lasting, (b"x-bursar-replayed", b"true")]


def governed_headers(admitted: Admitted, now_s: int) -> Headers:
    """The headers of an admitted request's response: its ids, its tightest budget and its rate limits."""
    decision = admitted.decision
    headers = [
        (b"x-request-id", admitted.ask.intent.request_id.encode()),
        (b"x-bursar-decision", decision.decision_id.encode()),
        (b"x-bursar-policy", decision.revision.encode()),
    ]
    if admitted.degraded:
        headers.append((b"x-bursar-degraded", ",".join(admitted.degraded).encode()))
    headers += budget_headers(admitted.route, now_s)
    return headers


def budget_headers(route: Route, now_s: int) -> Headers:
    """`x-bursar-budget` names the hard counter with the smallest part left; `x-ratelimit-*` are OpenAI's."""
    tightest: Counter | None = None
    least = math.inf
    rated: dict[str, tuple[int, Counter]] = {}
    for counter, _, hard in route.counters:
        if not hard:
            continue
        left = counter.available
        part = left / counter.limit if counter.limit else 0.0
        if part < least:
            tightest, least = counter, part
        resource = counter.budget.resource
        if resource in _RATED and (resource not in rated or left < rated[resource][0]):
            rated[resource] = (left, counter)
    headers: Headers = []
    for resource, (left, counter) in rated.items():
        limit_name, remaining_name, reset_name = _RATED[resource]
        headers.append((limit_name, b"%d" % counter.limit))
        headers.append((remaining_name, b"%d" % max(0, left)))
        if counter.budget.window.kind != "total":
            headers.append((reset_name, b"%ds" % max(0, counter.turns_s - now_s)))
    if tightest is not None:
        budget = tightest.budget
        value = f"{budget.id};remaining={max(0, tightest.available)};resource={budget.resource}"
        headers.append((b"x-bursar-budget", value.encode()))
    return headers
