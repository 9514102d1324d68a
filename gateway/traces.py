"""Traces: the attributes of a request's span, taken from the row that the ledger has of it."""

from collections.abc import Mapping
from typing import Any

from observability import names

# column of the usage row -> span attribute
_ATTRIBUTES = {
    "request_id": names.REQUEST_ID,
    "decision_id": names.DECISION_ID,
    "hold_id": names.HOLD_ID,
    "policy_revision": names.POLICY_REVISION,
    "org": names.ORG,
    "team": names.TEAM,
    "app": names.APP,
    "endpoint": names.ENDPOINT,
    "model": names.REQUEST_MODEL,
    "served_model": names.RESPONSE_MODEL,
    "runtime": names.RUNTIME,
    "status": names.STATUS,
    "input_tokens": names.USAGE_INPUT_TOKENS,
    "output_tokens": names.USAGE_OUTPUT_TOKENS,
    "list_cost_nusd": names.LIST_COST_NUSD,
    "gpu_us": names.GPU_US,
}


def traced(row: Mapping[str, Any]) -> dict[str, str | int]:
    """The span attributes of a usage row, without those that it lacks."""
    found = {attribute: row.get(column) for column, attribute in _ATTRIBUTES.items()}
    return {attribute: value for attribute, value in found.items() if value is not None}
