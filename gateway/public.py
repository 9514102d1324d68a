"""The public routes that cost nothing: models, the caller's own budgets and usage, health and metrics.

Everything but the four of `UNAUTHENTICATED` asks for a key.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from domain.ids import uuid7
from domain.intent import Intent, Principal
from gateway import errors, openapi, views
from gateway.approvals import Approval
from gateway.catalogue import Offer
from gateway.corrections import Sum, summed, usage_view
from gateway.errors import ErrorKind, Refusal
from gateway.governance import Governance
from gateway.identity import read_head
from gateway.kept import Fetch, nothing_withheld
from gateway.keys import Key, KeyStore
from gateway.live import Live
from gateway.pseudonyms import Pseudonyms
from gateway.requests import ENDPOINTS
from ledger.book import Headroom
from ledger.client import LedgerClient, LedgerUnavailable, QueryFailed
from ledger.journal import JournalError
from ledger.tables import ADJUSTED
from observability.metrics import CONTENT_TYPE
from policy.port import PolicyUnavailable

UNAUTHENTICATED = ("/healthz", "/readyz", "/metrics", "/openapi.json")
US = 1_000_000
_CLEAR = Headroom("ok", "", ())
_OTHER_METHODS = ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"]
_KINDS: dict[int, ErrorKind] = {404: errors.UNKNOWN_ROUTE, 405: errors.METHOD_NOT_ALLOWED}
# An id holds the time at which it was made, so that little is read; no request lasts for a week.
_USAGE_SQL = """
SELECT * FROM usage
WHERE request_id = {request_id:String} AND org = {org:String} AND team = {team:String} AND app = {app:String}
  AND ts >= UUIDv7ToDateTime(toUUIDOrZero({request_id:String}), 'UTC') - INTERVAL 1 HOUR
  AND ts < UUIDv7ToDateTime(toUUIDOrZero({request_id:String}), 'UTC') + INTERVAL 7 DAY
ORDER BY status = 'adjusted', ts, seq
LIMIT 1000
"""


class Refused(Exception):
    """A route answers with a refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def refusal_response(refusal: Refusal, extra: Mapping[str, str] | None = None) -> Response:
    """A refusal as a response of FastAPI's, with `extra` headers."""
    body = refusal.body()
    headers = {name.decode(): value.decode() for name, value in refusal.headers(len(body))}
    return Response(body, refusal.kind.status, {**headers, "x-request-id": uuid7(), **(extra or {})})


def plain_app(title: str, router: APIRouter) -> FastAPI:
    """A FastAPI application of these routes that says its errors as the error table does."""
    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.include_router(router)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _failed)
    app.add_exception_handler(Exception, _broken)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return refusal_response(error.refusal)


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = _KINDS.get(error.status_code, errors.INVALID_REQUEST._replace(status=error.status_code))
    refusal = Refusal(kind, f"{request.method} {request.url.path}: {error.detail}.")
    return refusal_response(refusal, error.headers)


async def _broken(request: Request, error: Exception) -> Response:
    return refusal_response(errors.internal())


@dataclass(frozen=True, slots=True)
class PublicPlane:
    """What the routes look at; `ledger` finds the running ledger process, `fetch` answers that were withheld."""

    of: Governance
    keys: KeyStore
    live: Live
    pseudonyms: Pseudonyms
    ledger: Callable[[], LedgerClient | None]
    fetch: Fetch


def _plane(request: Request) -> PublicPlane:
    plane: PublicPlane = request.app.state.plane
    return plane


Plane = Annotated[PublicPlane, Depends(_plane)]


async def _caller(request: Request, plane: Plane) -> Principal:
    key = plane.keys.lookup(read_head(request.scope["headers"]).secret)
    if not isinstance(key, Key):
        plane.of.metrics.unauthenticated(key.value)
        raise Refused(errors.unauthenticated(key.value))
    return plane.pseudonyms.applied(key.principal, None)


Caller = Annotated[Principal, Depends(_caller)]
router = APIRouter()


def public_app(
    of: Governance,
    keys: KeyStore,
    live: Live,
    pseudonyms: Pseudonyms,
    ledger: Callable[[], LedgerClient | None],
    fetch: Fetch = nothing_withheld,
) -> FastAPI:
    """The application of these routes."""
    app = plain_app("Bursar", router)
    app.state.plane = PublicPlane(of, keys, live, pseudonyms, ledger, fetch)
    for path in ENDPOINTS:
        app.add_route(path, _not_post, methods=_OTHER_METHODS, include_in_schema=False)
    return app


async def _not_post(request: Request) -> Response:
    refusal = Refusal(errors.METHOD_NOT_ALLOWED, f"{request.method} {request.url.path}: send a POST.")
    return refusal_response(refusal, {"allow": "POST"})


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether the process is alive."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(plane: Plane) -> JSONResponse:
    """Whether requests are taken: 503 while draining, without room in the journal, or with no healthy runtime."""
    of, is_draining = plane.of, plane.live.is_draining
    runtimes = {name: client.is_healthy for name, client in of.catalogue.runtimes.items()}
    is_ready = not is_draining and of.has_room() and any(runtimes.values())
    parts = {
        "ready": is_ready,
        "draining": is_draining,
        "journal_has_room": of.has_room(),
        "journal_failed": of.journal.failure is not None,
        "policy_revision": of.decider.revision,
        "runtimes": runtimes,
    }
    return JSONResponse(parts, 200 if is_ready else 503)


@router.get("/metrics")
async def metrics(plane: Plane) -> Response:
    """The metrics in Prometheus' text format."""
    return Response(plane.of.metrics.render(), media_type=CONTENT_TYPE)


@router.get("/openapi.json")
async def document() -> dict[str, Any]:
    """The OpenAPI document of the public listener."""
    return openapi.document()


@router.get("/v1/models")
async def models(plane: Plane, principal: Caller) -> dict[str, Any]:
    """The models offered to the caller."""
    offers = plane.of.catalogue.offers.values()
    offered = [_model_view(offer.model) for offer in offers if await _is_offered(plane.of, principal, offer)]
    return {"object": "list", "data": offered}


@router.get("/v1/models/{model:path}")
async def one_model(model: str, plane: Plane, principal: Caller) -> dict[str, Any]:
    """One model offered to the caller."""
    offer = plane.of.catalogue.offers.get(model)
    if offer is None or not await _is_offered(plane.of, principal, offer):
        raise Refused(errors.unknown_model(model))
    return _model_view(model)


@router.get("/v1/budgets")
async def budgets(plane: Plane, principal: Caller) -> dict[str, Any]:
    """The counters that the caller's requests fall on."""
    of = plane.of
    runtimes = {offer.model: [client.spec.id for client in offer.runtimes] for offer in of.catalogue.offers.values()}
    is_current = await of.look(views.own_counters(of.book, principal, runtimes, of.now_us() // US))
    now_s = of.now_us() // US
    counters = views.own_counters(of.book, principal, runtimes, now_s)
    return {"object": "list", "is_current": is_current, "data": [views.counter_view(each, now_s) for each in counters]}


@router.get("/v1/usage/{request_id}")
async def usage(request_id: str, plane: Plane, principal: Caller) -> dict[str, Any]:
    """What one request of the caller's used: from memory while it is recent, then from the ledger."""
    recent = plane.of.recent
    row, corrections = recent.get(request_id), recent.corrected(request_id)
    if row is None:
        row, corrections = await asyncio.to_thread(_from_ledger, plane.ledger, request_id, principal)
    if row is None or (row["org"], row["team"], row["app"]) != principal[:3]:
        message = f"No request {request_id!r} of yours is known; a row reaches the ledger within seconds."
        raise Refused(Refusal(errors.USAGE_NOT_FOUND, message))
    return usage_view(row, corrections)


@router.get("/v1/approvals/{approval_id}")
async def approval(approval_id: str, plane: Plane, principal: Caller) -> Response:
    """The answer that was withheld until a person approved it: 202 while it waits, for the key that asked."""
    found = plane.fetch(approval_id, principal)
    if isinstance(found, Refusal):
        raise Refused(found)
    if isinstance(found, Approval):
        body = {"object": "approval", "id": found.id, "state": found.state, "expires_at": found.expires_at}
        return JSONResponse(body, 202, {"retry-after": "1"})
    headers = [(name, value) for name, value in found.headers if name != b"content-length"]
    return Response(found.body, 200, {name.decode(): value.decode() for name, value in headers})


async def _is_offered(of: Governance, principal: Principal, offer: Offer) -> bool:
    """Whether policy would admit this caller to the model on any of its endpoints, budgets aside."""
    for endpoint in sorted(offer.endpoints):
        if await _admits(of, principal, offer.model, endpoint):
            return True
    return False


async def _admits(of: Governance, principal: Principal, model: str, endpoint: str) -> bool:
    intent = Intent("", principal, endpoint, model, stream=False, input_bound=0, max_output_tokens=None)
    try:
        return (await of.decider.decide(of.policy_input(intent, model, _CLEAR))).allow
    except PolicyUnavailable as error:
        raise Refused(errors.undecided(error.said)) from error
    except JournalError as error:
        raise Refused(errors.journal_unavailable()) from error


def _model_view(model: str) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": 0, "owned_by": "bursar"}


def _from_ledger(
    find: Callable[[], LedgerClient | None], request_id: str, principal: Principal
) -> tuple[dict[str, Any] | None, Sum | None]:
    """The settlement of a request, and the sum of its corrections; both None where it is not known."""
    client = find()
    if client is None:
        return None, None
    try:
        rows = client.rows(_USAGE_SQL, request_id=request_id, org=principal.org, team=principal.team, app=principal.app)
    except (LedgerUnavailable, QueryFailed) as error:
        raise Refused(Refusal(errors.GOVERNANCE_UNAVAILABLE, f"The ledger cannot be asked now: {error}.")) from error
    if not rows or rows[0]["status"] == ADJUSTED:
        return None, None
    return rows[0], summed(rows[1:])
