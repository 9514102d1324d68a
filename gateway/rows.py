"""Rows: the ledger records of one request, as the journal takes them.

A column that is empty or zero is left out: the ledger's default is the same, and every byte is hashed and synced.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import orjson

from domain.amounts import MILLION, Amounts
from domain.decision import Decision
from domain.intent import Intent
from domain.prices import Prices
from domain.usage import Usage
from gateway.errors import UPSTREAM_ERROR, Refusal
from ledger.book import Settlement
from ledger.holds import Demand, Hold

# The columns of a usage row that are left out where they have these values.
ABSENT: Mapping[str, Any] = {
    **dict.fromkeys(("client_request_id", "run_id", "parent_run_id", "hold_id", "decision_id", "policy_revision"), ""),
    **dict.fromkeys(("price_version", "served_model", "runtime", "replica", "error_code", "degraded", "pool"), ""),
    **dict.fromkeys(("user", "cache_domain"), ""),
    **dict.fromkeys(("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens"), 0),
    **dict.fromkeys(("reasoning_tokens", "held_tokens", "held_output_tokens", "held_list_cost_nusd"), 0),
    **dict.fromkeys(("held_gpu_us", "gpu_us", "queue_us", "ttft_us", "list_cost_nusd", "gpu_cost_nusd"), 0),
    **dict.fromkeys(("saved_cost_nusd", "kv_block_us", "energy_uj", "org_seq", "prompt_bytes"), 0),
    "stream": False,
    **dict.fromkeys(("charges", "prompt_blocks"), ()),
}


class Ended(Protocol):
    """How a call ended, in the columns of a row."""

    @property
    def status(self) -> str: ...
    @property
    def http_status(self) -> int: ...
    @property
    def error_code(self) -> str: ...
    @property
    def ttft_us(self) -> int: ...


def identity(intent: Intent, client_request_id: str) -> dict[str, Any]:
    """The columns that every row of a request begins with: who asked for what."""
    principal = intent.principal
    row: dict[str, Any] = {
        "request_id": intent.request_id,
        "org": principal.org,
        "team": principal.team,
        "app": principal.app,
        "key_id": principal.key_id,
        "endpoint": intent.endpoint,
        "model": intent.model,
        "risk_level": "normal",  # until it is decided on another one
    }
    if principal.user:
        row["user"] = principal.user
    if client_request_id:
        row["client_request_id"] = client_request_id
    if intent.run.run_id:
        row["run_id"] = intent.run.run_id
        row["parent_run_id"] = intent.run.parent_run_id
    if intent.stream:
        row["stream"] = True
    return row


def hold(
    row: dict[str, Any],
    held: Hold,
    demand: Demand,
    decision: Decision,
    price_version: str,
    model: str,
    runtime: str,
    degraded: tuple[str, ...],
) -> bytes:
    """Add the columns that a hold adds: the decision, the price, what serves it and how much is held.

    Returns the whole row as JSON members, because two records of the request begin with it.
    """
    fixed, rates, cap = demand.fixed, demand.per_output_mtok, held.cap
    row["hold_id"] = held.hold_id
    row["decision_id"] = decision.decision_id
    row["policy_revision"] = decision.revision
    row["price_version"] = price_version
    row["served_model"] = model
    row["runtime"] = runtime
    row["held_output_tokens"] = output = rates.tokens * cap // MILLION
    row["held_tokens"] = fixed.tokens + output
    row["held_list_cost_nusd"] = fixed.list_cost_nusd - (-rates.list_cost_nusd * cap // MILLION)
    row["held_gpu_us"] = fixed.gpu_us - (-rates.gpu_us * cap // MILLION)
    row["held_gpu_cost_nusd"] = fixed.gpu_cost_nusd - (-rates.gpu_cost_nusd * cap // MILLION)
    row["cache_domain"] = decision.obligations.cache_domain
    if degraded:
        row["degraded"] = ",".join(degraded)
    return orjson.dumps(row)[1:-1]


def opened(held: Hold, now_us: int) -> dict[str, Any]:
    """What the `hold` record of an opened hold adds to its row.

    Together they are all that its settlement needs if this process does not live to make it.
    """
    return {
        "ts_us": now_us,
        "event_id": held.hold_id,
        "action": "opened",
        "expires_at_us": held.expires_at_us,
        "cap": held.cap,
        "charges": [
            (counter.budget.id, counter.name, cell.start_s, counter.budget.resource, amount)
            for counter, cell, amount in held.lines
        ],
    }


def moved(held: Hold, action: str, now_us: int) -> dict[str, Any]:
    """The `hold` record of a renewal or a void."""
    row = held.row
    named = ("hold_id", "request_id", "org", "team", "app", "key_id", "model")
    return {
        **{name: row[name] for name in named},
        "ts_us": now_us,
        "action": action,
        "expires_at_us": held.expires_at_us,
    }


def settled(
    settlement: Settlement,
    usage: Usage,
    charged: Amounts,
    prices: Prices,
    outcome: Ended,
    duration_us: int,
    now_us: int,
) -> dict[str, Any]:
    """What the `usage` record that settles a hold adds to its row; a request has one, so its id is the event's."""
    row: dict[str, Any] = {
        "ts_us": now_us,
        "event_id": settlement.hold.row["request_id"],
        "status": outcome.status,
        "http_status": outcome.http_status,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "gpu_us": usage.gpu_us,
        "duration_us": duration_us,
        "list_cost_nusd": charged.list_cost_nusd,
        "gpu_cost_nusd": charged.gpu_cost_nusd,
        "certainty": usage.certainty,
        "charges": settlement.charges,
    }
    if outcome.error_code:
        row["error_code"] = outcome.error_code
    if outcome.ttft_us:
        row["ttft_us"] = outcome.ttft_us
    if usage.cached_input_tokens:
        row["cached_input_tokens"] = usage.cached_input_tokens
        row["saved_cost_nusd"] = prices.saved_cost_nusd(usage)
    if usage.reasoning_tokens:
        row["reasoning_tokens"] = usage.reasoning_tokens
    return row


def expired(settlement: Settlement, now_us: int) -> dict[str, Any]:
    """The `usage` record of a hold that lost its owner: charged in full, and so marked."""
    row = settlement.hold.row
    return {
        **row,
        "ts_us": now_us,
        "event_id": row["request_id"],
        "status": "expired",
        "error_code": "hold_expired",
        "input_tokens": row["held_tokens"] - row["held_output_tokens"],
        "output_tokens": row["held_output_tokens"],
        "gpu_us": row["held_gpu_us"],
        "list_cost_nusd": row["held_list_cost_nusd"],
        "gpu_cost_nusd": row["held_gpu_cost_nusd"],
        "duration_us": now_us - settlement.hold.opened_at_us,
        "certainty": "at_most",
        "charges": settlement.charges,
    }


def refused(intent_row: dict[str, Any], refusal: Refusal, duration_us: int, now_us: int) -> dict[str, Any]:
    """The `usage` record of a request of a known caller that never reached a runtime."""
    decision = refusal.decision
    decided = {} if decision is None else {"decision_id": decision.decision_id, "policy_revision": decision.revision}
    return {
        **intent_row,
        **decided,
        "ts_us": now_us,
        "event_id": intent_row["request_id"],
        "status": "failed" if refusal.kind.status == UPSTREAM_ERROR.status else "refused",
        "http_status": refusal.kind.status,
        "error_code": refusal.kind.code,
        "duration_us": duration_us,
        "certainty": "exact",
    }
