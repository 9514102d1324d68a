"""What goes into the engine and what comes out of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class FinishReason(StrEnum):
    """Why a request ended by itself, under vLLM's names."""

    STOP = "stop"
    LENGTH = "length"


class Submission(StrEnum):
    """The engine's answer to a submitted request."""

    ACCEPTED = "accepted"
    CONTEXT_EXCEEDED = "context_exceeded"
    QUEUE_FULL = "queue_full"


@dataclass(frozen=True, slots=True)
class SimRequest:
    """One sequence to compute.

    The simulator knows the output in advance (`output_tokens`, and `finish_reason` when the last is out); the scheduler
    does not look at it. Without output tokens the request ends when its prompt is computed, as an embedding does.
    """

    request_id: str
    prompt_tokens: Sequence[int]
    output_tokens: Sequence[int]
    finish_reason: FinishReason = FinishReason.LENGTH
    cache_salt: str = ""
    priority: int = 0
    read_prefix_cache: bool = True

    def __post_init__(self) -> None:
        if not self.prompt_tokens:
            raise ValueError("a request needs at least one prompt token")


class Emission(NamedTuple):
    """What one step produced for one request; `token` is None only for a request without output."""

    request_id: str
    token: int | None
    finish_reason: FinishReason | None
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step did; its emissions are visible `duration_us` after the step began."""

    emissions: list[Emission]
    duration_us: int
    prefill_tokens: int
    decode_sequences: int
    preemptions: int


@dataclass(slots=True)
class EngineTotals:
    """Sums since the engine began, counted as vLLM counts them.

    A prompt is counted when it is wholly computed, once per sequence; prefix queries and hits (tokens) at first
    admission, not again after a preemption.
    """

    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    busy_us: int = 0
