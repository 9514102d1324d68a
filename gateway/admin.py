"""The admin plane: grants, keys, reload, approvals and the state of things, on its own listener with its own keys."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from gateway import errors, gates, views
from gateway.approvals import ApprovalError, Approvals, Person, SamePerson, TooManyPending, UnknownApproval
from gateway.approvals_config import ApprovalRules
from gateway.bodies import BoundedBodies
from gateway.controls import Controls, UnknownBudget
from gateway.errors import Refusal
from gateway.governance import Governance
from gateway.headroom import Scope, UnknownScope
from gateway.identity import read_head
from gateway.keys import ORGS_MAX, Key, KeyFieldError, KeysError, KeyStore, Kind
from gateway.public import Refused, plain_app, refusal_response
from gateway.reconciliation import Result
from gateway.reviews import Asked
from gateway.risks import Risks
from ledger.client import LedgerUnavailable, QueryFailed
from ledger.journal import JournalError
from policy.port import Document, PolicyUnavailable

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


class DecisionRequest(BaseModel):
    """A person's word on an approval, and why; both are recorded."""

    model_config = ConfigDict(extra="forbid", strict=True)

    approve: bool
    reason: Annotated[str, Field(max_length=1024)] = ""


class ReleaseRequest(BaseModel):
    """Which app is to be released, and as of which Unix second that is asked."""

    model_config = ConfigDict(extra="forbid", strict=True)

    release: Name
    app: Name
    team: Annotated[str, Field(max_length=128)] = ""
    org: Annotated[str, Field(max_length=128)] = ""
    at_s: int | None = Field(default=None, ge=0, le=1 << 40)


class LaunchRequest(BaseModel):
    """Which model or tool is to be enabled where, and as of which Unix second that is asked."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: Literal["model", "tool"]
    id: Annotated[str, Field(min_length=1, max_length=256)]
    env: Annotated[str, Field(max_length=128)] = ""
    at_s: int | None = Field(default=None, ge=0, le=1 << 40)


@dataclass(frozen=True, slots=True)
class AdminPlane:
    """What the routes work on; `reload` applies the configuration file for who asked, or says why it does not.

    `reconcile` compares in the name of an actor, and may mend and rebase. `rules` are those in force, `person` is who
    holds a key, `withheld` the answer that waits under an approval, and `headroom` that of an org, team, app and model.
    """

    of: Governance
    keys: KeyStore
    controls: Controls
    reload: Callable[[Asked], Awaitable[dict[str, Any]]]
    reconcile: Callable[[str, bool, bool], Awaitable[Result]]
    approvals: Approvals
    rules: Callable[[], ApprovalRules]
    person: Callable[[Key], Person]
    withheld: Callable[[str], bytes | None]
    headroom: Callable[[str, str, str, str], Awaitable[dict[str, Any]]]
    risks: Risks


def _plane(request: Request) -> AdminPlane:
    plane: AdminPlane = request.app.state.plane
    return plane


Plane = Annotated[AdminPlane, Depends(_plane)]


async def _key(request: Request, plane: Plane) -> Key:
    key = plane.keys.lookup(read_head(request.scope["headers"]).secret, "admin")
    if not isinstance(key, Key):
        plane.of.metrics.unauthenticated(key.value)
        raise Refused(errors.unauthenticated(key.value, "bsa-…"))
    return key


AdminKey = Annotated[Key, Depends(_key)]


async def _actor(key: AdminKey) -> str:
    return key.key_id


async def _person(key: AdminKey, plane: Plane) -> Person:
    return plane.person(key)


Actor = Annotated[str, Depends(_actor)]
Asker = Annotated[Person, Depends(_person)]
router = APIRouter()


def admin_app(plane: AdminPlane) -> FastAPI:
    """The application of the admin listener."""
    app = plain_app("Bursar admin", router)
    app.state.plane = plane
    app.add_middleware(BoundedBodies, bytes_max=BODY_BYTES_MAX, timeout_s=BODY_TIMEOUT_S)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(KeyFieldError, _unfit)
    app.add_exception_handler(KeysError, _away)
    app.add_exception_handler(JournalError, _away)
    app.add_exception_handler(LedgerUnavailable, _away)
    app.add_exception_handler(QueryFailed, _away)
    app.add_exception_handler(ApprovalError, _undecided)
    app.add_exception_handler(UnknownScope, _unknown_scope)
    app.add_exception_handler(PolicyUnavailable, _no_policy)
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


async def _undecided(request: Request, error: Exception) -> Response:
    kind = errors.INVALID_REQUEST._replace(status=403 if isinstance(error, SamePerson) else 409)
    if isinstance(error, UnknownApproval):
        kind = errors.APPROVAL_NOT_FOUND
    elif isinstance(error, TooManyPending):
        kind = errors.OVERLOADED
    return refusal_response(Refusal(kind, f"{error}."))


async def _no_policy(request: Request, error: Exception) -> Response:
    return refusal_response(errors.undecided(str(error)))


async def _unknown_scope(request: Request, error: Exception) -> Response:
    said = str(error)  # which may end with a question
    return refusal_response(errors.malformed(said if said.endswith("?") else f"{said}."))


async def _away(request: Request, error: Exception) -> Response:
    return refusal_response(Refusal(errors.GOVERNANCE_UNAVAILABLE, f"{error}."))


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether the process is alive."""
    return {"status": "ok"}


@router.get("/admin/budgets")
async def budgets(plane: Plane, actor: Actor, budget: str | None = None) -> dict[str, Any]:
    """Every budget with its live counters, or one."""
    book = plane.of.book
    configured = [views.budget_view(each) for each in book.budgets.values() if budget in (None, each.id)]
    if budget is not None and not configured:
        raise Refused(errors.malformed(f"There is no budget {budget!r}.", "budget"))
    is_current = await plane.of.look(views.live_counters(book, plane.of.now_us() // US, budget))
    now_s = plane.of.now_us() // US
    counters = [views.counter_view(each, now_s) for each in views.live_counters(book, now_s, budget)]
    return {"shared": book.is_shared, "is_current": is_current, "budgets": configured, "counters": counters}


@router.get("/admin/holds")
async def holds(plane: Plane, actor: Actor) -> dict[str, Any]:
    """How many holds are open, and the oldest of them."""
    open_holds = list(plane.of.book.holds.values())
    shown = [views.hold_view(hold) for hold in open_holds[:HOLDS_SHOWN_MAX]]
    return {"open": len(open_holds), "holds": shown}


@router.post("/admin/grant")
async def grant(asked: GrantRequest, plane: Plane, by: Asker) -> JSONResponse:
    """Raise a limit for a while, or ask for a second person's word on it where grants need one."""
    rules = plane.rules()
    if not rules.grants:
        return JSONResponse(_granted(plane, asked, by.actor))
    if asked.budget not in plane.of.book.budgets:
        raise Refused(errors.malformed(f"There is no budget {asked.budget!r}.", "budget"))
    detail = asked.model_dump()
    approval = plane.approvals.request("grant", asked.budget, requested_by=by, ttl_s=rules.ttl_s, detail=detail)
    message = f"not granted: another admin must agree with `bursar approve {approval.id}`"
    return JSONResponse({"applied": False, "message": message, "approval": approval.view()}, 202)


def _granted(plane: AdminPlane, asked: GrantRequest, actor: str) -> dict[str, Any]:
    try:
        return plane.controls.grant(**asked.model_dump(), actor=actor)
    except UnknownBudget as error:
        raise Refused(errors.malformed(f"{error}.", "budget")) from error


@router.get("/admin/approvals")
async def approvals(plane: Plane, actor: Actor, state: Literal["pending", "any"] = "pending") -> dict[str, Any]:
    """What waits for a person's word; with `state=any` also what ended last."""
    found = plane.approvals.every(pending_only=state == "pending")
    return {"approvals": [each.view() for each in found]}


@router.get("/admin/approvals/{approval_id}")
async def one_approval(approval_id: str, plane: Plane, actor: Actor) -> dict[str, Any]:
    """One approval, with the answer that waits for it: who read that is a row, what it says is none."""
    approval = plane.approvals.get(approval_id)
    answer = plane.withheld(approval_id)
    if answer is None:
        return approval.view()
    plane.controls.record("answer_read", actor, approval_id, digest=approval.digest)
    return {**approval.view(), "answer": answer.decode(errors="replace")}


@router.post("/admin/approvals/{approval_id}")
async def decide(approval_id: str, said: DecisionRequest, plane: Plane, by: Asker) -> JSONResponse:
    """Approve or deny; what was approved is done at once, and `result` says how that went."""
    approval = plane.approvals.get(approval_id)
    if said.approve and approval.kind == "reload":
        result = await plane.reload(Asked(by, approval_id, said.reason))
        if not result["applied"]:
            return JSONResponse(result, 409)
        return JSONResponse({"approval": plane.approvals.get(approval_id).view(), "result": result})
    decided = plane.approvals.decide(approval_id, by, approve=said.approve, reason=said.reason)
    answer: dict[str, Any] = {"approval": decided.view()}
    if said.approve and approval.kind == "grant":
        answer["result"] = _granted(plane, GrantRequest(**approval.detail), approval.requested_by.actor)
    return JSONResponse(answer)


@router.get("/admin/keys")
async def list_keys(plane: Plane, actor: Actor) -> dict[str, Any]:
    """Every key without its secret, revoked ones included."""
    return {"keys": [views.key_view(key) for key in plane.keys.list()]}


@router.post("/admin/keys")
async def create_key(asked: KeyRequest, plane: Plane, actor: Actor) -> JSONResponse:
    """Make a key; its secret is in this answer and nowhere else."""
    # The disk is waited for in a thread, while streams go on; the row is written where the book lives.
    key, secret = await asyncio.to_thread(plane.controls.make_key, **asked.model_dump(), made_by=actor)
    return JSONResponse(plane.controls.made_key(key, secret, actor), 201)


@router.delete("/admin/keys/{key_id}")
async def revoke_key(key_id: str, plane: Plane, actor: Actor) -> dict[str, Any]:
    """Revoke a key from now on."""
    key = await asyncio.to_thread(plane.keys.revoke, key_id)
    if key is None:
        raise Refused(Refusal(errors.UNKNOWN_ROUTE, f"There is no key {key_id!r}."))
    return plane.controls.revoked_key(key, actor)


@router.post("/admin/reload")
async def reload_now(plane: Plane, by: Asker) -> JSONResponse:
    """Apply the configuration file and the policy bundle again; what loosens something waits for a second person."""
    result = await plane.reload(Asked(by))
    if result["applied"]:
        return JSONResponse(result)
    return JSONResponse(result, 202 if "approval" in result else 422)


@router.get("/admin/headroom")
async def headroom(
    plane: Plane, actor: Actor, org: str = "", team: str = "", app: str = "", model: str = ""
) -> dict[str, Any]:
    """How much room a scope has left, and what binds it."""
    return await plane.headroom(org, team, app, model)


@router.get("/admin/risk")
async def risk(plane: Plane, actor: Actor, org: str = "", team: str = "", app: str = "") -> dict[str, Any]:
    """The risk level of a scope, and every team, app and run that is above normal, bounded."""
    return views.risk_view(plane.risks.tracker, Scope(org, team, app), plane.of.now_us() // US)


@router.post("/admin/gates/release")
async def gate_release(asked: ReleaseRequest, plane: Plane, actor: Actor) -> dict[str, Any]:
    """Whether an app may be released: decided by the policy in force on what is known of the app, and recorded."""
    room = await plane.headroom(asked.org, asked.team, asked.app, "")
    scope = Scope(**room["scope"])
    level = views.risk_view(plane.risks.tracker, scope, plane.of.now_us() // US)["level"]
    catalogue = plane.of.catalogue
    at_s = plane.of.now_us() // US if asked.at_s is None else asked.at_s
    document = gates.release(asked.release, catalogue.env_name, room, level, at_s, freeze=catalogue.freeze)
    verdict = await _gate(plane, actor, "release", f"{scope.app}@{asked.release}", document, asked.at_s)
    return {**verdict, "headroom": room}


@router.post("/admin/gates/launch")
async def gate_launch(asked: LaunchRequest, plane: Plane, actor: Actor) -> dict[str, Any]:
    """Whether a model or tool may be enabled in an environment: decided by the policy in force, and recorded."""
    env = asked.env or plane.of.catalogue.env_name
    at_s = plane.of.now_us() // US if asked.at_s is None else asked.at_s
    document = gates.launch(asked.kind, asked.id, env, at_s)
    return await _gate(plane, actor, "launch", asked.id, document, asked.at_s)


async def _gate(
    plane: AdminPlane, actor: str, gate: gates.Gate, subject: str, document: Document, at_s: int | None
) -> dict[str, Any]:
    """What a gate says, recorded; of a time that somebody named as what was asked, for it is no go-ahead now."""
    decision = await plane.of.decider.ask(gates.ENTRIES[gate], document)
    verdict = gates.said(gate, subject, document, decision).view()
    action = "gate_checked" if at_s is None else "gate_asked"
    plane.controls.record(action, actor, subject, digest=decision.revision, detail=verdict)
    return verdict


@router.post("/admin/replicas/forgotten")
async def forgot_replica(said: ForgottenReplica, plane: Plane, actor: Actor) -> dict[str, Any]:
    """Record that the leases of a lost replica were freed."""
    plane.controls.forgot_replica(**said.model_dump(), actor=actor)
    return said.model_dump()


@router.post("/admin/reconcile")
async def reconcile(asked: ReconcileRequest, plane: Plane, actor: Actor) -> dict[str, Any]:
    """Compare counters, runtimes and journal with the ledger; mend by correction rows where that is asked for."""
    return asdict(await plane.reconcile(actor, asked.mend, asked.rebase))
