"""What goes into the engine, and what a step tells of a request."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, TypeAlias

RequestId: TypeAlias = str | int


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
    """One sequence to compute: its lengths in tokens and the hashes of its blocks, not what it says.

    `block_hashes` are chained, one for each whole block of the prompt and, where it is known, of the output after it:
    equal hashes mean that all tokens up to the block's end are equal. Without them nothing is shared. The output's
    length is known in advance; the scheduler looks at it only where vLLM knows it too (`max_tokens`, so not with
    FinishReason.STOP). Without output tokens the request ends when its prompt is computed, as an embedding does.
    """

    request_id: RequestId
    prompt_tokens: int
    output_tokens: int
    block_hashes: Sequence[Hashable] = ()
    finish_reason: FinishReason = FinishReason.LENGTH
    priority: int = 0
    read_prefix_cache: bool = True

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise ValueError("a request needs at least one prompt token")
        if self.output_tokens < 0:
            raise ValueError("a request cannot have less than no output tokens")


class Emission(NamedTuple):
    """What one step produced for one request; `tokens` is 1, or 0 for a request without output."""

    request_id: RequestId
    tokens: int
    finish_reason: FinishReason | None
    cached_tokens: int


@dataclass(slots=True)
class EngineTotals:
    """Sums since the engine began, counted as vLLM counts them, and what conservation is checked with.

    A prompt is counted when it is wholly computed, once per sequence; prefix queries and hits (tokens) at first
    admission, not again after a preemption. `computed_tokens` is what all steps computed, `reused_tokens` what all
    admissions found in the prefix cache, `lost_tokens` what preempted and aborted requests had of either.
    """

    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    busy_us: int = 0
    steps: int = 0
    computed_tokens: int = 0
    reused_tokens: int = 0
    lost_tokens: int = 0
