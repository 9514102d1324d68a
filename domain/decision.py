"""Decisions: what a policy answered, and what the answer obliges the gateway to do."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Band = Literal["ok", "warn", "critical", "exhausted"]
BANDS: tuple[Band, ...] = ("ok", "warn", "critical", "exhausted")


class Reason(NamedTuple):
    """Why a decision was made: a stable code and one sentence for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Obligations:
    """Conditions attached to an admission; None means that the policy sets none."""

    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    min_output_tokens: int = 1
    shrink_to_fit: bool = False
    fallback_models: tuple[str, ...] = ()
    priority: int | None = None
    blocked_tools: tuple[str, ...] = ()
    verify: tuple[str, ...] = ()
    cache_domain: str = "team"
    queue_ms_max: int = 0
    sample_trace: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """One evaluated policy answer, shared by every request with the same input under the same bundle.

    `decision_id` names the evaluation, `input_digest` the SHA-256 of its canonical input and `revision` the bundle.
    `is_last_known_good` marks one that stands in while the engine is away; `engine_decision_id` is the engine's own
    name for the evaluation, where it gives one.
    """

    decision_id: str
    allow: bool
    reasons: tuple[Reason, ...]
    obligations: Obligations
    revision: str
    input_digest: str
    input_json: bytes = field(repr=False, default=b"")
    is_last_known_good: bool = False
    engine_decision_id: str = ""
