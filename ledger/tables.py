"""Tables of the ledger: which kind of event goes where, and which of its keys become columns."""

from typing import NamedTuple

_OWN = ("ts_us", "event_id", "writer", "seq")


class Table(NamedTuple):
    """One table, its name being also the kind of its events, and the columns an insert names."""

    name: str
    columns: tuple[str, ...]


EVENTS = Table("events", (*_OWN, "kind", "org", "request_id", "sha256"))

_USAGE = """
    request_id client_request_id hold_id decision_id policy_revision price_version org team app user key_id run_id
    parent_run_id endpoint model served_model runtime replica status http_status error_code stream input_tokens
    cached_input_tokens cache_write_tokens output_tokens reasoning_tokens held_tokens held_output_tokens
    held_list_cost_nusd held_gpu_us gpu_us queue_us ttft_us duration_us list_cost_nusd gpu_cost_nusd saved_cost_nusd
    kv_block_us energy_uj certainty degraded cache_domain risk_level pool charges org_seq adjusts
    prompt_bytes prompt_blocks energy_source
"""
_HOLD = "hold_id request_id action org team app user key_id model expires_at_us charges"
_DECISION_INPUTS = (
    "decision_id entry is_shadow engine_decision_id input_digest policy_revision allow reasons obligations input"
)
_CONTROL = "action actor subject digest detail"
_SIGNAL = "name org team app run_id request_id subject level value detail"
_TOOL_CALL = """
    request_id decision_id org team app key_id run_id tool server tool_kind phase verdict reasons
"""

_RUNTIME_SAMPLE = """
    runtime replica state running waiting kv_usage_permille prompt_tokens generation_tokens prefix_queries prefix_hits
    preemptions accelerators nusd_per_hour steps wall_us capacity_us busy_us idle_us lost_us attributed_us
    unattributed_us foreign_us in_flight_us kv_block_us energy_uj energy_source nvml_busy_permille losses uncertain
    sources
"""

# The status of a row of `usage` that corrects another one: sums include it, counts of requests do not.
ADJUSTED = "adjusted"

# Kinds that are not here are rows of `events` only.
BY_KIND = {
    name: Table(name, (*_OWN, *columns.split()))
    for name, columns in (
        ("usage", _USAGE),
        ("hold", _HOLD),
        ("decision_inputs", _DECISION_INPUTS),
        ("control", _CONTROL),
        ("signal", _SIGNAL),
        ("tool_call", _TOOL_CALL),
        ("runtime_sample", _RUNTIME_SAMPLE),
    )
}
# `events` stands last: a range that is in it is in all the others.
IN_ORDER = (*BY_KIND.values(), EVENTS)
