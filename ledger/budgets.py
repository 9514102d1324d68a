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
            parts.append(f"{dimension}={_escaped(value)}")
        return ",".join(parts) or EVERY

    def counts(self, resource: str, counter: str) -> bool:
        """Whether this budget keeps a counter of that resource and name, made under whatever revision of it."""
        if resource != self.resource or not self.scope:
            return resource == self.resource and counter == EVERY
        parts = counter.split(",")
        return len(parts) == len(self.scope) and all(
            part.startswith(f"{dimension}=") if wanted == EVERY else part == f"{dimension}={_escaped(wanted)}"
            for part, (dimension, wanted) in zip(parts, self.scope, strict=True)
        )


def _escaped(value: str) -> str:
    """A value as counter names show it: without commas, so that no two subjects can share a name."""
    return value.replace("%", "%25").replace(",", "%2C")
