"""The admin plane: grants, keys, reload and the state of the book, on its own listener with its own keys."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from gateway import errors, views
from gateway.bodies import BoundedBodies
from gateway.controls import Controls, UnknownBudget
from gateway.errors import Refusal
from gateway.governance import Governance
from gateway.identity import read_head
from gateway.keys import Key, KeyFieldError, KeysError, KeyStore
from gateway.public import Refused, plain_app, refusal_response
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


class KeyRequest(BaseModel):
    """A new key for an application."""

    model_config = ConfigDict(extra="forbid", strict=True)

    org: Name
    team: Name
    app: Name
    user: Annotated[str, Field(max_length=256)] = ""
    roles: list[Name] = Field(default_factory=list, max_length=64)
    clearance: Name = "internal"
    kind: Literal["app", "admin"] = "app"
    ttl_s: int | None = Field(default=None, gt=0, le=3660 * 86400)


def admin_app(
    of: Governance, keys: KeyStore, controls: Controls, reload: Callable[[str], Awaitable[dict[str, Any]]]
) -> FastAPI:
    """The application of the admin listener; `reload` applies the configuration file in the name of an actor."""
    app = plain_app("Bursar admin")
    app.add_middleware(BoundedBodies, bytes_max=BODY_BYTES_MAX, timeout_s=BODY_TIMEOUT_S)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return refusal_response(errors.malformed(f"The body is not valid JSON: {first['ctx']['error']}."))
        field = ".".join(str(part) for part in first["loc"] if part != "body")
        return refusal_response(errors.malformed(f"{field or 'The body'}: {first['msg']}.", field or None))

    @app.exception_handler(KeyFieldError)
    async def unfit(request: Request, error: KeyFieldError) -> Response:
        return refusal_response(errors.malformed(f"{error}.", str(error).split(":", 1)[0]))

    async def away(request: Request, error: Exception) -> Response:
        return refusal_response(Refusal(errors.GOVERNANCE_UNAVAILABLE, f"{error}."))

    app.add_exception_handler(KeysError, away)
    app.add_exception_handler(JournalError, away)

    async def actor(request: Request) -> str:
        key = keys.lookup(read_head(request.scope["headers"]).secret, "admin")
        if not isinstance(key, Key):
            of.metrics.unauthenticated(key.value)
            raise Refused(errors.unauthenticated(key.value))
        return key.key_id

    Actor = Annotated[str, Depends(actor)]

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/admin/budgets")
    async def budgets(actor: Actor, budget: str | None = None) -> dict[str, Any]:
        now_s = of.now_us() // US
        configured = [views.budget_view(each) for each in of.book.budgets.values() if budget in (None, each.id)]
        if budget is not None and not configured:
            raise Refused(errors.malformed(f"There is no budget {budget!r}.", "budget"))
        return {"budgets": configured, "counters": views.book_view(of.book, now_s, budget)}

    @app.get("/admin/holds")
    async def holds(actor: Actor) -> dict[str, Any]:
        open_holds = list(of.book.holds.values())
        shown = [views.hold_view(hold) for hold in open_holds[:HOLDS_SHOWN_MAX]]
        return {"open": len(open_holds), "holds": shown}

    @app.post("/admin/grant")
    async def grant(asked: GrantRequest, actor: Actor) -> dict[str, Any]:
        try:
            return controls.grant(**asked.model_dump(), actor=actor)
        except UnknownBudget as error:
            raise Refused(errors.malformed(f"{error}.", "budget")) from error

    @app.get("/admin/keys")
    async def list_keys(actor: Actor) -> dict[str, Any]:
        return {"keys": [views.key_view(key) for key in keys.list()]}

    @app.post("/admin/keys")
    async def create_key(asked: KeyRequest, actor: Actor) -> JSONResponse:
        return JSONResponse(controls.create_key(**asked.model_dump(), actor=actor), 201)

    @app.delete("/admin/keys/{key_id}")
    async def revoke_key(key_id: str, actor: Actor) -> dict[str, Any]:
        revoked = controls.revoke_key(key_id, actor)
        if revoked is None:
            raise Refused(Refusal(errors.UNKNOWN_ROUTE, f"There is no key {key_id!r}."))
        return revoked

    @app.post("/admin/reload")
    async def reload_now(actor: Actor) -> JSONResponse:
        result = await reload(actor)
        return JSONResponse(result, 200 if result["applied"] else 422)

    return app
