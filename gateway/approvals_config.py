"""Approvals as configured: what a second person must agree to, and for how long such a request stands."""

from typing import Annotated, Literal

from pydantic import Field

from gateway.config_values import DAY_S, Section, Whole


class ApprovalRules(Section):
    """What needs a second person: a reload that loosens something, and grants; `ttl_s` is how long it may be decided.

    What was in force before the last reload comes back unasked for `undo_s` after it. `bundle` says when a changed
    bundle counts as looser: `flips`, unless no recorded input shows it; `always`.
    """

    loosening: bool = True
    bundle: Literal["flips", "always"] = "flips"
    grants: bool = False
    ttl_s: Annotated[Whole, Field(gt=0, le=30 * DAY_S)] = DAY_S
    undo_s: Annotated[Whole, Field(ge=0, le=DAY_S)] = 3600
