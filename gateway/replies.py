"""Replies: the response headers that say what governed a request, and how a whole response is sent."""

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
    """`x-bursar-budget` names the hard counter with the smallest part left; `x-ratelimit-*` are OpenAI's.

    Of several counters of requests, or of tokens, the one with the fewest left speaks for all.
    """
    tightest: Counter | None = None
    least = 2.0
    limits: dict[str, Counter] = {}
    for counter, _, hard in route.counters:
        if not hard:
            continue
        left = counter.available
        part = left / counter.limit if counter.limit else 0.0
        if part < least:
            tightest, least = counter, part
        resource = counter.budget.resource
        if (resource == "requests" or resource == "tokens") and (
            resource not in limits or left < limits[resource].available
        ):
            limits[resource] = counter
    headers: Headers = []
    for resource, counter in limits.items():
        name = resource.encode()
        headers += (
            (b"x-ratelimit-limit-" + name, b"%d" % counter.limit),
            (b"x-ratelimit-remaining-" + name, b"%d" % max(0, counter.available)),
        )
        if counter.budget.window.kind != "total":
            headers.append((b"x-ratelimit-reset-" + name, b"%ds" % max(0, counter.turns_s - now_s)))
    if tightest is not None:
        value = f"{tightest.budget.id};remaining={max(0, tightest.available)};resource={tightest.budget.resource}"
        headers.append((b"x-bursar-budget", value.encode()))
    return headers
