"""The one table of telemetry names: GenAI semantic conventions, and Bursar's own metrics, spans and attributes.

The GenAI names were checked against open-telemetry/semantic-conventions-genai, which moved token usage from one
histogram to counters and per-operation histograms in September 2026. Both generations are emitted, because
dashboards for either exist.
"""

# GenAI attributes
OPERATION_NAME = "gen_ai.operation.name"
PROVIDER_NAME = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
REQUEST_STREAM = "gen_ai.request.stream"
RESPONSE_ID = "gen_ai.response.id"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
TOKEN_TYPE = "gen_ai.token.type"
TOKEN_MODALITY = "gen_ai.token.modality"
USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"
USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
USAGE_CACHE_READ_INPUT_TOKENS = "gen_ai.usage.cache_read.input_tokens"
USAGE_CACHE_WRITE_INPUT_TOKENS = "gen_ai.usage.cache_write.input_tokens"
USAGE_REASONING_OUTPUT_TOKENS = "gen_ai.usage.reasoning.output_tokens"
ERROR_TYPE = "error.type"

# GenAI metrics
CLIENT_TOKEN_USAGE = "gen_ai.client.token.usage"
CLIENT_USAGE_INPUT_TOKENS = "gen_ai.client.inference.usage.input_tokens"
CLIENT_USAGE_OUTPUT_TOKENS = "gen_ai.client.inference.usage.output_tokens"
CLIENT_USAGE_CACHE_READ_INPUT_TOKENS = "gen_ai.client.inference.usage.cache_read.input_tokens"
CLIENT_USAGE_CACHE_WRITE_INPUT_TOKENS = "gen_ai.client.inference.usage.cache_write.input_tokens"
CLIENT_USAGE_REASONING_OUTPUT_TOKENS = "gen_ai.client.inference.usage.reasoning.output_tokens"
CLIENT_OPERATION_INPUT_TOKENS = "gen_ai.client.inference.operation.input_tokens"
CLIENT_OPERATION_OUTPUT_TOKENS = "gen_ai.client.inference.operation.output_tokens"

# GenAI values
TOKEN_TYPE_INPUT = "input"
TOKEN_TYPE_OUTPUT = "output"
MODALITY_UNKNOWN = "unknown"  # runtimes do not break usage down by modality
PROVIDER_OPENAI = "openai"  # the telemetry flavour of every OpenAI-compatible runtime
OPERATIONS = {"chat": "chat", "completions": "text_completion", "embeddings": "embeddings"}

# Spans of one request, and what happens within it
SPAN_REQUEST = "bursar.request"
EVENT_HELD = "bursar.held"

# Bursar's attributes
REQUEST_ID = "bursar.request_id"
DECISION_ID = "bursar.decision_id"
HOLD_ID = "bursar.hold_id"
POLICY_REVISION = "bursar.policy_revision"
ORG = "bursar.org"
TEAM = "bursar.team"
APP = "bursar.app"
ENDPOINT = "bursar.endpoint"
RUNTIME = "bursar.runtime"
STATUS = "bursar.status"
ERROR_CODE = "bursar.error_code"
LIST_COST_NUSD = "bursar.list_cost_nusd"
GPU_US = "bursar.gpu_us"

# Bursar's metrics, counted
REQUESTS = "bursar_requests_total"
TOKENS = "bursar_tokens_total"
LIST_COST = "bursar_list_cost_nusd_total"
GPU_TIME = "bursar_gpu_us_total"
REFUSALS = "bursar_refusals_total"
UNAUTHENTICATED = "bursar_unauthenticated_total"
OVERAGE = "bursar_overage_total"
HOLD_EXPIRED = "bursar_hold_expired_total"
UPSTREAM_ERRORS = "bursar_upstream_errors_total"
REPLAYS = "bursar_replays_total"
REQUEST_DURATION = "bursar_request_duration_seconds"
TTFT = "bursar_ttft_seconds"
OVERHEAD = "bursar_overhead_seconds"
BREAKER_OPEN = "bursar_breaker_open"

# Bursar's metrics, read from their owners at scrape
HOLDS_OPEN = "bursar_holds_open"
IN_FLIGHT = "bursar_in_flight"
QUEUE_WAITING = "bursar_queue_waiting"
LEDGER_LAG_ROWS = "bursar_ledger_lag_rows"
LEDGER_LAG_SECONDS = "bursar_ledger_lag_seconds"
JOURNAL_FSYNCS = "bursar_journal_fsyncs_total"
JOURNAL_BYTES = "bursar_journal_bytes_total"
POLICY_CACHE_HITS = "bursar_policy_cache_hits_total"
POLICY_CACHE_MISSES = "bursar_policy_cache_misses_total"
POLICY_AWAY = "bursar_policy_away"
POLICY_BRIDGED = "bursar_policy_bridged_total"
POLICY_SHADOW_FAILURES = "bursar_policy_shadow_failures_total"
POLICY_ENGINE_RESTARTS = "bursar_policy_engine_restarts_total"
POLICY_INPUTS_REFUSED = "bursar_policy_inputs_refused_total"
POLICY_REVISION_INFO = "bursar_policy_revision"  # exposed with the suffix _info
TOOL_CALLS_DROPPED = "bursar_tool_calls_dropped_total"
QUALITY_SKIPPED = "bursar_quality_skipped_total"
CHECK_PROCESSES_ENDED = "bursar_check_processes_ended_total"
RISK_SCOPES_DROPPED = "bursar_risk_scopes_dropped_total"
RISK_SCORES_UNTOLD = "bursar_risk_scores_untold_total"
WEBHOOK_EVENTS_DROPPED = "bursar_webhook_events_dropped_total"
WEBHOOK_EVENTS_FAILED = "bursar_webhook_events_failed_total"
BUDGET_REMAINING = "bursar_budget_remaining"
BUDGET_COUNTERS_UNREAD = "bursar_budget_counters_unread"
BOOK_AWAY = "bursar_book_away"
BOOK_EXCHANGES = "bursar_book_exchanges_total"
BOOK_FETCHES = "bursar_book_fetches_total"
BOOK_WAITING = "bursar_book_waiting"
LEDGER_DRIFT = "bursar_ledger_drift"
ATTRIBUTION_STOPPED = "bursar_attribution_stopped"
ATTRIBUTION_WAITING = "bursar_attribution_waiting"
ATTRIBUTION_POSTED = "bursar_attribution_posted_total"
ATTRIBUTION_DROPPED = "bursar_attribution_dropped_total"
ACCELERATOR_TIME = "bursar_accelerator_us_total"
TELEMETRY_LOST = "bursar_telemetry_lost_total"
TOKEN_DRIFT = "bursar_token_drift_total"


def prometheus_name(name: str) -> str:
    """An OpenTelemetry metric name as Prometheus spells it; the annotation unit `{token}` leaves no suffix."""
    return name.replace(".", "_")
