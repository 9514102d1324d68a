"""Rows: the ledger records of one request, as the journal takes them."""

from typing import Any, Protocol

from domain.amounts import Amounts
from domain.decision import Decision
from domain.ids import uuid7
from domain.intent import Intent
from domain.prices import Prices
from domain.usage import Usage
from gateway.errors import UPSTREAM_ERROR, Refusal
from ledger.book import Settlement
from ledger.holds import Hold

RISK_LEVEL = "normal"


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
    principal, run = intent.principal, intent.run
    return {
        "request_id": intent.request_id,
        "client_request_id": client_request_id,
        "org": principal.org,
        "team": principal.team,
        "app": principal.app,
        "user": principal.user,
        "key_id": principal.key_id,
        "run_id": run.run_id,
        "parent_run_id": run.parent_run_id,
        "endpoint": intent.endpoint,
        "model": intent.model,
        "stream": intent.stream,
        "risk_level": RISK_LEVEL,
    }


def opened(hold: Hold, now_us: int) -> dict[str, Any]:
    """The `hold` record of an opened hold: all that its settlement needs if this process does not live to make it."""
    return {
        **hold.row,
        "ts_us": now_us,
        "event_id": hold.hold_id,
        "action": "opened",
        "expires_at_us": hold.expires_at_us,
        "cap": hold.cap,
        "charges": hold.charges(),
    }


def moved(hold: Hold, action: str, now_us: int) -> dict[str, Any]:
    """The `hold` record of a renewal or a void."""
    row = hold.row
    return {
        "ts_us": now_us,
        "hold_id": hold.hold_id,
        "request_id": row["request_id"],
        "org": row["org"],
        "team": row["team"],
        "app": row["app"],
        "user": row["user"],
        "key_id": row["key_id"],
        "model": row["model"],
        "action": action,
        "expires_at_us": hold.expires_at_us,
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
    """The `usage` record that settles a hold."""
    return {
        **settlement.hold.row,
        "ts_us": now_us,
        "event_id": uuid7(now_us // 1000),
        "status": outcome.status,
        "http_status": outcome.http_status,
        "error_code": outcome.error_code,
        "input_tokens": usage.input_tokens,
        "cached_input_tokens": usage.cached_input_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "output_tokens": usage.output_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "gpu_us": usage.gpu_us,
        "queue_us": usage.queue_us,
        "ttft_us": outcome.ttft_us,
        "duration_us": duration_us,
        "list_cost_nusd": charged.list_cost_nusd,
        "gpu_cost_nusd": charged.gpu_cost_nusd,
        "saved_cost_nusd": prices.saved_cost_nusd(usage),
        "kv_block_us": usage.kv_block_us,
        "energy_uj": usage.energy_uj,
        "certainty": usage.certainty,
        "charges": settlement.charges,
    }


def expired(settlement: Settlement, now_us: int) -> dict[str, Any]:
    """The `usage` record of a hold that lost its owner: charged in full, and so marked."""
    row = settlement.hold.row
    return {
        **row,
        "ts_us": now_us,
        "event_id": uuid7(now_us // 1000),
        "status": "expired",
        "http_status": 0,
        "error_code": "hold_expired",
        "input_tokens": row["held_tokens"] - row["held_output_tokens"],
        "output_tokens": row["held_output_tokens"],
        "gpu_us": row["held_gpu_us"],
        "list_cost_nusd": row["held_list_cost_nusd"],
        "duration_us": now_us - settlement.hold.opened_at_us,
        "certainty": "at_most",
        "charges": settlement.charges,
    }


def refused(intent_row: dict[str, Any], refusal: Refusal, duration_us: int, now_us: int) -> dict[str, Any]:
    """The `usage` record of a request of a known caller that never reached a runtime."""
    decision: Decision | None = refusal.decision
    return {
        **intent_row,
        "ts_us": now_us,
        "event_id": uuid7(now_us // 1000),
        "decision_id": decision.decision_id if decision else "",
        "policy_revision": decision.revision if decision else "",
        "status": "failed" if refusal.kind.status == UPSTREAM_ERROR.status else "refused",
        "http_status": refusal.kind.status,
        "error_code": refusal.kind.code,
        "duration_us": duration_us,
        "certainty": "exact",
    }
