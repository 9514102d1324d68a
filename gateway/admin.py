"""The admin plane: grants, keys, reload and the state of the book, on its own listener with its own keys."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from gateway import errors, views
from gateway.bodies import BoundedBodies
from gateway.controls import Controls, UnknownBudget
from gateway.errors import Refusal
from gateway.governance import Governance
from gateway.identity import read_head
from gateway.keys import ORGS_MAX, Key, KeyFieldError, KeysError, KeyStore, Kind
from gateway.public import Refused, plain_app, refusal_response
from gateway.reconciliation import Result
from ledger.client import LedgerUnavailable, QueryFailed
from ledger.journal import JournalError

US = 1_000_000
HOLDS_SHOWN_MAX = 1_000
BODY_BYTES_MAX = 64 << 10
BODY_TIMEOUT_S = 3.0
Name = Annotated[str, Field(min_length=1, max_length=128)]


class GrantRequest(BaseModel):
    """Extra limit for a budget's counter, for a while; the amount is in the budget's unit."""

    model_config = ConfigDict(extra="forbid", strict=True)

    budget: Name
    amount: int = Field(gt=0, le=1 << 60)
    ttl_s: int = Field(gt=0, le=366 * 86400)
    counter: Annotated[str, Field(min_length=1, max_length=2048)] = "*"
    reason: Annotated[str, Field(max_length=1024)] = ""


class ReconcileRequest(BaseModel):
    """Whether to post correction rows, and whether to set the drift of runtimes aside."""

    model_config = ConfigDict(extra="forbid", strict=True)

    mend: bool = False
    rebase: bool = False


class ForgottenReplica(BaseModel):
    """A replica of the shared book of which the leases were freed: amounts by resource, and on how many counters."""

    model_config = ConfigDict(extra="forbid", strict=True)

    replica: Annotated[str, Field(min_length=1, max_length=256)]
    counters: int = Field(ge=0)
    freed: dict[Name, int] = Field(max_length=64)


class KeyRequest(BaseModel):
    """A new key: for an application unless `kind` says otherwise; `orgs` are those that a ledger key opens."""

    model_config = ConfigDict(extra="forbid", strict=True)

    org: Name
    team: Name
    app: Name
    user: Annotated[str, Field(max_length=256)] = ""
    roles: list[Name] = Field(default_factory=list, max_length=64)
    clearance: Name = "internal"
    kind: Kind = "app"
    orgs: list[Name] = Field(default_factory=list, max_length=ORGS_MAX)
    ttl_s: int | None = Field(default=None, gt=0, le=3660 * 86400)


@dataclass(frozen=True, slots=True)
class AdminPlane:
    """What the routes work on; `reload` applies the configuration file in the name of an actor.

    `reconcile` compares in the name of an actor, and may mend and rebase.
    """

    of: Governance
    keys: KeyStore
    controls: Controls
    reload: Callable[[str], Awaitable[dict[str, Any]]]
    reconcile: Callable[[str, bool, bool], Awaitable[Result]]


def _plane(request: Request) -> AdminPlane:
    plane: AdminPlane = request.app.state.plane
    return plane


Plane = Annotated[AdminPlane, Depends(_plane)]


async def _actor(request: Request, plane: Plane) -> str:
    key = plane.keys.lookup(read_head(request.scope["headers"]).secret, "admin")
    if not isinstance(key, Key):
        plane.of.metrics.unauthenticated(key.value)
        raise Refused(errors.unauthenticated(key.value))
    return key.key_id


Actor = Annotated[str, Depends(_actor)]
router = APIRouter()


def admin_app(
    of: Governance,
    keys: KeyStore,
    controls: Controls,
    reload: Callable[[str], Awaitable[dict[str, Any]]],
    reconcile: Callable[[str, bool, bool], Awaitable[Result]],
) -> FastAPI:
    """The application of the admin listener."""
    app = plain_app("Bursar admin", router)
    app.state.plane = AdminPlane(of, keys, controls, reload, reconcile)
    app.add_middleware(BoundedBodies, bytes_max=BODY_BYTES_MAX, timeout_s=BODY_TIMEOUT_S)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(KeyFieldError, _unfit)
    app.add_exception_handler(KeysError, _away)
    app.add_exception_handler(JournalError, _away)
    app.add_exception_handler(LedgerUnavailable, _away)
    app.add_exception_handler(QueryFailed, _away)
    return app


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return refusal_response(errors.malformed(f"The body is not valid JSON: {first['ctx']['error']}."))
    field = ".".join(str(part) for part in first["loc"] if part != "body")
    return refusal_response(errors.malformed(f"{field or 'The body'}: {first['msg']}.", field or None))


async def _unfit(request: Request, error: Exception) -> Response:
    return refusal_response(errors.malformed(f"{error}.", str(error).split(":", 1)[0]))


async def _away(request: Request, error: Exception) -> Response:
    return refusal_response(Refusal(errors.GOVERNANCE_UNAVAILABLE, f"{error}."))


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether the process is alive."""
    return {"status": "ok"}


@router.get("/admin/budgets")
async def budgets(plane: Plane, actor: Actor, budget: str | None = None) -> dict[str, Any]:
    """Every budget with its live counters, or one."""
    book, now_s = plane.of.book, plane.of.now_us() // US
    configured = [views.budget_view(each) for each in book.budgets.values() if budget in (None, each.id)]
    if budget is not None and not configured:
        raise Refused(errors.malformed(f"There is no budget {budget!r}.", "budget"))
    return {"shared": book.is_shared, "budgets": configured, "counters": views.book_view(book, now_s, budget)}


@router.get("/admin/holds")
async def holds(plane: Plane, actor: Actor) -> dict[str, Any]:
    """How many holds are open, and the oldest of them."""
    open_holds = list(plane.of.book.holds.values())
    shown = [views.hold_view(hold) for hold in open_holds[:HOLDS_SHOWN_MAX]]
    return {"open": len(open_holds), "holds": shown}


@router.post("/admin/grant")
async def grant(asked: GrantRequest, plane: Plane, actor: Actor) -> dict[str, Any]:
    """Raise a limit for a while."""
    try:
        return plane.controls.grant(**asked.model_dump(), actor=actor)
    except UnknownBudget as error:
        raise Refused(errors.malformed(f"{error}.", "budget")) from error


@router.get("/admin/keys")
async def list_keys(plane: Plane, actor: Actor) -> dict[str, Any]:
    """Every key without its secret, revoked ones included."""
    return {"keys": [views.key_view(key) for key in plane.keys.list()]}


@router.post("/admin/keys")
async def create_key(asked: KeyRequest, plane: Plane, actor: Actor) -> JSONResponse:
    """Make a key; its secret is in this answer and nowhere else."""
    # The disk is waited for in a thread, while streams go on; the row is written where the book lives.
    key, secret = await asyncio.to_thread(plane.controls.make_key, **asked.model_dump())
    return JSONResponse(plane.controls.made_key(key, secret, actor), 201)


@router.delete("/admin/keys/{key_id}")
async def revoke_key(key_id: str, plane: Plane, actor: Actor) -> dict[str, Any]:
    """Revoke a key from now on."""
    key = await asyncio.to_thread(plane.keys.revoke, key_id)
    if key is None:
        raise Refused(Refusal(errors.UNKNOWN_ROUTE, f"There is no key {key_id!r}."))
    return plane.controls.revoked_key(key, actor)


@router.post("/admin/reload")
async def reload_now(plane: Plane, actor: Actor) -> JSONResponse:
    """Apply the configuration file and the policy bundle again."""
    result = await plane.reload(actor)
    return JSONResponse(result, 200 if result["applied"] else 422)


@router.post("/admin/replicas/forgotten")
async def forgot_replica(said: ForgottenReplica, plane: Plane, actor: Actor) -> dict[str, Any]:
    """Record that the leases of a lost replica were freed."""
    plane.controls.forgot_replica(**said.model_dump(), actor=actor)
    return said.model_dump()


@router.post("/admin/reconcile")
async def reconcile(asked: ReconcileRequest, plane: Plane, actor: Actor) -> dict[str, Any]:
    """Compare counters, runtimes and journal with the ledger; mend by correction rows where that is asked for."""
    return asdict(await plane.reconcile(actor, asked.mend, asked.rebase))
