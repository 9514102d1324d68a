"""Which request runs first, and which gives way."""

from typing import Protocol, TypeAlias

from runtime.sim.request import SimRequest

Rank: TypeAlias = tuple[int, int]


class SchedulingPolicy(Protocol):
    """Ranks requests: the lowest rank runs first, the highest is preempted first. Ranks must be unique."""

    def rank(self, request: SimRequest, serial: int) -> Rank:
        """The rank of a request; `serial` counts submissions."""


class PriorityFcfs:
    """Lower `priority` first, as in vLLM, and first come first served within a priority."""

    def rank(self, request: SimRequest, serial: int) -> Rank:
        return (request.priority, serial)
