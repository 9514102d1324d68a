"""What a workload is: requests in order of arrival, and in one pass, so that a trace may be larger than memory.

WorkloadError
└── TraceError   a trace file cannot be read; names the file, the line and what to do
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class WorkloadError(ValueError):
    """A workload cannot be made as asked."""


class TraceError(WorkloadError):
    """A trace cannot be read: the message names the file, the line and what is wrong there."""


class Arrival(NamedTuple):
    """One request: when it comes, its lengths in tokens, and the blocks of its prefix.

    `at_us` counts from the workload's begin; where `after` is not -1, from the end of that earlier request (its index
    in the workload), as a user's next turn does. `blocks` are prefix-chained ids, each of the workload's `block_tokens`
    tokens from the prompt's begin (the last may be cut short by the prompt's end; more ids than the prompt needs go on
    into the output): equal ids mean that everything up to and in the block is equal. Without ids nothing is shared.
    """

    at_us: int
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    priority: int = 0
    after: int = -1


class Workload(Protocol):
    """Requests with a name and the size of the blocks that their ids stand for; iterating anew begins anew."""

    @property
    def name(self) -> str: ...

    @property
    def block_tokens(self) -> int: ...

    def __iter__(self) -> Iterator[Arrival]: ...
