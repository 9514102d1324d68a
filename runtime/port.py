"""What Bursar needs of a runtime: where it is, what it understands, and the ways in which calling it can fail.

RuntimeFailure
├── Unreachable   nothing was sent, so nothing was used
├── Lost          the request was sent and the connection ended without a complete answer
└── Garbage       it answered, but not in the protocol
"""

from dataclasses import dataclass, field

from domain.prices import GpuRate


class RuntimeFailure(Exception):
    """A call to a runtime did not end in a complete answer."""


class Unreachable(RuntimeFailure):
    """No connection could be made: nothing was sent."""


class Lost(RuntimeFailure):
    """The connection ended after the request was sent and before its answer was complete."""


class Garbage(RuntimeFailure):
    """The runtime answered with something that is not an OpenAI response."""


@dataclass(frozen=True, slots=True)
class RuntimeSpec:
    """One runtime as configured: its base URL (without `/v1`), its limits and what it charges for.

    `speaks_vllm` says that it takes `cache_salt`, `priority` and `continuous_usage_stats`. Holds go by the `hold_rate`,
    where there is one.
    """

    id: str
    base_url: str
    rate: GpuRate = field(default_factory=GpuRate)
    speaks_vllm: bool = True
    authorization: str | None = None
    connections_max: int = 1024
    connect_timeout_s: float = 5.0
    first_byte_timeout_s: float = 120.0
    idle_timeout_s: float = 60.0
    retries_max: int = 1
    breaker_failures: int = 5
    breaker_reset_s: float = 10.0
    hold_rate: GpuRate | None = None
