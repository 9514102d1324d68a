"""Views: what callers, operators and the metrics see of the budget book."""

from typing import Any

from domain.intent import Principal
from gateway.headroom import Scope, risk_of
from gateway.keys import Key
from ledger.book import Book
from ledger.budgets import Budget, Subject
from ledger.counters import Counter
from ledger.holds import Hold
from policy.risk import GRAINS, Tracker

COUNTERS_SHOWN_MAX = 1_000
RAISED_SHOWN_MAX = 1_000


def counter_view(counter: Counter, now_s: int) -> dict[str, Any]:
    """One counter as JSON, in the unit of its resource."""
    budget = counter.budget
    return {
        "budget": budget.id,
        "owner": budget.owner,
        "counter": counter.name,
        "resource": budget.resource,
        "window": budget.window.text,
        "mode": budget.mode,
        "limit": counter.limit,
        "spent": counter.spent,
        "held": counter.held,
        "spent_elsewhere": counter.spent_elsewhere,
        "held_elsewhere": counter.held_elsewhere,
        "stranded": counter.stranded,
        "remaining": max(0, counter.available),
        "band": counter.band,
        "resets_in_s": None if budget.window.kind == "total" else max(0, counter.turns_s - now_s),
        "grants": [grant.grant_id for grant in counter.grants],
    }


def live_counters(book: Book, now_s: int, budget: str | None = None) -> list[Counter]:
    """The live counters, of one budget or of all, bounded."""
    return [counter for counter in book.counters(now_s) if budget in (None, counter.budget.id)][:COUNTERS_SHOWN_MAX]


def own_counters(book: Book, principal: Principal, models: dict[str, list[str]], now_s: int) -> list[Counter]:
    """The counters that a caller's requests fall on, over the models and runtimes offered."""
    seen: dict[tuple[str, str], Counter] = {}
    for model, runtimes in models.items():
        for runtime in runtimes:
            subject = Subject(*principal[:5], run="", model=model, runtime=runtime)
            for counter, _, _ in book.route(subject, now_s).counters:
                seen[counter.budget.id, counter.name] = counter
    return list(seen.values())


def remaining(book: Book, now_s: int) -> list[tuple[str, int]]:
    """(budget, remaining) of every live counter."""
    return [(counter.budget.id, max(0, counter.available)) for counter in book.counters(now_s)]


def budget_view(budget: Budget) -> dict[str, Any]:
    """One budget as configured."""
    return {
        "id": budget.id,
        "owner": budget.owner,
        "scope": dict(budget.scope),
        "resource": budget.resource,
        "limit": budget.limit,
        "window": budget.window.text,
        "mode": budget.mode,
        "thresholds": [budget.warn_ratio, budget.critical_ratio],
        "on_unavailable": budget.on_unavailable,
    }


def hold_view(hold: Hold) -> dict[str, Any]:
    """One open hold: whose it is, what it holds and when it would expire."""
    row = hold.row
    named = ("hold_id", "request_id", "org", "team", "app", "model", "runtime")
    return {
        **{name: row[name] for name in named},
        "cap": hold.cap,
        "opened_at_us": hold.opened_at_us,
        "expires_at_us": hold.expires_at_us,
        "charges": hold.charges(),
    }


def risk_view(tracker: Tracker | None, scope: Scope, now_s: int) -> dict[str, Any]:
    """The risk level of a scope, None where nothing is scored, and the scopes above normal, bounded."""
    if tracker is None:
        return {"level": None, "of": "no risk scoring has been applied", "raised": []}
    found = risk_of(tracker, scope)
    raised = [
        {"scope": each.text, "level": tracker.level(each), "score_milli": tracker.score(each, now_s) // GRAINS}
        for each in tracker.raised()[:RAISED_SHOWN_MAX]
    ]
    return {"level": found.level, "of": found.where, "raised": raised}


def key_view(key: Key) -> dict[str, Any]:
    """One key without anything secret."""
    principal = key.principal
    return {
        "key_id": key.key_id,
        "kind": key.kind,
        "org": principal.org,
        "team": principal.team,
        "app": principal.app,
        "user": principal.user,
        "roles": list(principal.roles),
        "clearance": principal.clearance,
        "orgs": list(key.orgs),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    }
