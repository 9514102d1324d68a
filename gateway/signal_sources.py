"""Where signals come from: a function for each place that notices something, which needs one line for it."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gateway.errors import POLICY_DENIED, UPSTREAM_ERROR, UPSTREAM_TIMEOUT, Refusal
from gateway.signals import (
    OTHER,
    POLICY_VIOLATION,
    QUALITY,
    QUALITY_FAILED,
    ROLLBACK,
    SPEND_ANOMALY,
    TOOL_BLOCKED,
    UPSTREAM_FAILED,
    VERIFICATION_FAILED,
    VERIFICATION_UNMADE,
    Signals,
)
from policy.checks.process import NOT_STARTED
from policy.quality import Assessment

TOOLS_MAX = 8
_NORMAL = "normal"

# What a refusal owes to the state of things and not to what was asked. Counted as a violation it would keep a risk
# level up for as long as the requests come that this very level refuses.
CIRCUMSTANCES = frozenset({"frozen", "budget_unknown", "model_not_registered", "tables_malformed"})
CIRCUMSTANCE_PREFIX = "risk"
# What a raised level may be the cause of: it can ask for a higher clearance, and lower the cap.
OF_RAISED_LEVELS = frozenset({"clearance_too_low", "max_input_tokens"})
# Why a check was not made, for reasons that are ours.
UNMADE = frozenset(
    {
        *("approval_required", "approval_unavailable", "busy", "library_missing", "not_configured"),
        *("policy_unavailable", "unknown_check", "second_model_failed", "second_model_refused", "expired"),
        # More than this gateway checks or keeps.
        *(NOT_STARTED, "too_large"),
    }
)


def note_of(
    signals: Signals,
    name: str,
    row: Mapping[str, Any],
    subject: str = "",
    count: int = 1,
    detail: Mapping[str, Any] | None = None,
    level: str = "",
) -> None:
    """Note something of one request; `row` begins as each of its records does, with who asked."""
    signals.note(
        name,
        org=row["org"],
        team=row["team"],
        app=row["app"],
        run_id=row.get("run_id", ""),
        request_id=row["request_id"],
        subject=subject,
        count=count,
        detail=detail,
        level=level,
    )


def refused(signals: Signals, row: Mapping[str, Any], refusal: Refusal) -> None:
    """Note what a request that was not served shows of its caller or of its runtime; `flow.refuse` calls this."""
    code = refusal.kind.code
    if code in (UPSTREAM_ERROR.code, UPSTREAM_TIMEOUT.code):
        note_of(signals, UPSTREAM_FAILED, row, row.get("model", ""), detail={"error_code": code})
    elif code == POLICY_DENIED.code:
        cause = _cause(refusal, row.get("risk_level", _NORMAL))
        if cause:
            note_of(signals, POLICY_VIOLATION, row, cause, detail={"model": row.get("model", "")})


def settled(signals: Signals, row: Mapping[str, Any], status: str, http_status: int, error_code: str) -> None:
    """Note a call that its runtime failed; `flow.settle` calls this.

    What a runtime said of the request (a 400, say) and that it is overloaded is no failure of it.
    """
    failed = status == "failed" and http_status >= UPSTREAM_ERROR.status
    if failed and error_code in (UPSTREAM_ERROR.code, UPSTREAM_TIMEOUT.code):
        detail = {"error_code": error_code, "served_model": row.get("served_model", "")}
        note_of(signals, UPSTREAM_FAILED, row, row.get("runtime", ""), detail=detail)


def tools_blocked(signals: Signals, row: Mapping[str, Any], offered: Iterable[str], blocked: Iterable[str]) -> None:
    """Note the tools of an admitted request that policy took out of it; `flow.admit` calls this once per request.

    Under any risk level but `normal` nothing is noted: the level itself may be what blocks, and would never fall.
    Tools that the decision of the tool itself denies, with reasons, are noted by `tool_denied`.
    """
    if row.get("risk_level", _NORMAL) != _NORMAL:
        return
    names = sorted(set(offered).intersection(blocked))
    for name in names[:TOOLS_MAX]:
        note_of(signals, TOOL_BLOCKED, row, name, detail={"phase": "offered"})
    if len(names) > TOOLS_MAX:
        note_of(signals, TOOL_BLOCKED, row, OTHER, len(names) - TOOLS_MAX, {"folded": True})


def tool_denied(
    signals: Signals, row: Mapping[str, Any], tool: str, server: str, phase: str, codes: Iterable[str]
) -> None:
    """Note a tool that `tools/decision` denied, unless every reason for it is a circumstance."""
    level = row.get("risk_level", _NORMAL)
    cause = next((code for code in codes if is_callers(code, level)), "")
    if cause:
        note_of(signals, TOOL_BLOCKED, row, tool, detail={"phase": phase, "server": server, "reason": cause})


def verified(signals: Signals) -> Callable[[str, dict[str, Any], int, dict[str, Any]], None]:
    """What verification notes its results with; the `detail` of each says which `check`, and of what `kinds` it failed.

    A check that could not be made, a person who has not said yes yet, and a tool that the risk level alone denies fail
    an answer and no caller: as failures they would raise the very level that asks for more checks.
    """

    def note(name: str, row: dict[str, Any], count: int, detail: dict[str, Any]) -> None:
        kinds = detail.get("kinds", ())
        level = row.get("risk_level", _NORMAL)
        if name == VERIFICATION_FAILED and all(kind in UNMADE or not is_callers(kind, level) for kind in kinds):
            name = VERIFICATION_UNMADE
        note_of(signals, name, row, detail["check"], count, detail)

    return note


def spend_anomaly(signals: Signals, row: Mapping[str, Any]) -> None:
    """Note that an app spends far more than it is used to; `row` is of the request with which it was seen.

    It is of the app and of no run: the run of that request may have spent the least of it.
    """
    whose = {name: row[name] for name in ("org", "team", "app", "request_id")}
    signals.note(SPEND_ANOMALY, **whose, subject="list_cost_nusd")


def rolled_back(
    signals: Signals,
    subject: str,
    org: str = "",
    team: str = "",
    app: str = "",
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Note a change that was taken back: of a bundle of everybody, or of the scope whose change it was."""
    signals.note(ROLLBACK, org=org, team=team, app=app, subject=subject, detail=detail)


def judged(signals: Signals, row: Mapping[str, Any], assessment: Assessment) -> None:
    """Note how a sampled answer was judged: its score and flags, and nothing of its text."""
    detail = {"flags": list(assessment.flags), "score_permille": assessment.score_permille}
    model = row.get("served_model", "")
    note_of(signals, QUALITY, row, model, detail=detail, level="ok" if assessment.passes else "failed")
    if not assessment.passes:
        note_of(signals, QUALITY_FAILED, row, assessment.flags[0], detail=detail)


class Revisions:
    """The bundle revisions that have been in force, so that loading one of them again is known for a rollback.

    It knows those since the start, the last `kept_max` of them.
    """

    def __init__(self, first: str, kept_max: int = 64) -> None:
        self._kept_max = kept_max
        self._seen = {first: None}
        self._now = first

    def loaded(self, signals: Signals, revision: str) -> bool:
        """Take up the revision that is in force from now on; True, and noted, when that is a rollback."""
        last, self._now = self._now, revision
        if revision == last:
            return False
        is_back = revision in self._seen
        self._seen[revision] = None
        while len(self._seen) > self._kept_max:
            del self._seen[next(iter(self._seen))]
        if is_back:
            rolled_back(signals, "policy", detail={"from": last, "to": revision})
        return is_back


def is_callers(code: str, level: str = _NORMAL) -> bool:
    """Whether a reason, given at a risk level, is about what was asked, and not about the state of things."""
    if level != _NORMAL and code in OF_RAISED_LEVELS:
        return False
    return code not in CIRCUMSTANCES and not code.startswith(CIRCUMSTANCE_PREFIX)


def _cause(refusal: Refusal, level: str) -> str:
    """The first reason that is the caller's, none where there is none."""
    decision = refusal.decision
    if decision is None or decision.allow:
        code = "max_input_tokens" if "max_input_tokens" in refusal.detail else refusal.kind.code
        return code if is_callers(code, level) else ""
    if not decision.reasons:
        return "denied"
    return next((reason.code for reason in decision.reasons if is_callers(reason.code, level)), "")
