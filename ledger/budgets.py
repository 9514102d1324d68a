"""Budgets: limits on one resource over a scope and a window, as configured."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from domain.amounts import RESOURCE_INDEX
from ledger.windows import Window

DIMENSIONS = ("org", "team", "app", "user", "key", "run", "model", "runtime")
EVERY = "*"


class Subject(NamedTuple):
    """The values of a request in each dimension that a scope can name."""

    org: str
    team: str
    app: str
    user: str
    key: str
    run: str
    model: str
    runtime: str


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on one resource for every request in its scope, in the resource's unit.

    `scope` maps a dimension to a value or to `*`, which keeps one counter per value. `warn_ratio` and `critical_ratio`
    are the thresholds at which the band falls.
    """

    id: str
    owner: str
    scope: tuple[tuple[str, str], ...]
    resource: str
    limit: int
    window: Window
    mode: Literal["hard", "soft"] = "hard"
    warn_ratio: float = 0.8
    critical_ratio: float = 0.95
    on_unavailable: Literal["deny", "lease", "allow"] = "lease"

    @property
    def is_hard(self) -> bool:
        return self.mode == "hard"

    @property
    def resource_index(self) -> int:
        return RESOURCE_INDEX[self.resource]

    @property
    def identity(self) -> tuple[object, ...]:
        """What makes two revisions of a budget keep the same counters: all but limit, mode, thresholds and owner."""
        return (self.id, self.scope, self.resource, self.window)

    def counter_of(self, subject: Subject) -> str | None:
        """The canonical name of the counter a subject falls on, or None when it is out of scope.

        A subject without a value in a starred dimension (no agent run, say) is out of scope.
        """
        parts = []
        for dimension, wanted in self.scope:
            value: str = getattr(subject, dimension)
            if wanted == EVERY:
                if not value:
                    return None
            elif value != wanted:
                return None
            parts.append(f"{dimension}={value}")
        return ",".join(parts) or EVERY
