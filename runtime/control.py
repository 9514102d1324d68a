"""What Bursar needs of a runtime that it may change: describe it, and apply a set of knobs with a way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from runtime.description import Description, KnobValue

# In the order in which they can follow each other; `failed` and `rolled back` come back to `stopped` and `started`.
Stage = Literal["refused", "drained", "stopped", "started", "verified", "failed", "rolled back", "died"]
Outcome = Literal["applied", "refused", "rolled back", "down"]


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that was done with a runtime or befell it, and when."""

    at_us: int
    stage: Stage
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a set of knobs.

    `applied`: it runs and was verified. `refused`: nothing was done. `rolled back`: it failed, and the last good set
    runs again. `down`: nothing runs. `knobs` are those of what runs now.
    """

    outcome: Outcome
    knobs: Mapping[str, KnobValue]
    happenings: tuple[Happening, ...]

    @property
    def reason(self) -> str:
        """Why the set does not run; empty when it does."""
        said = [happening.detail for happening in self.happenings if happening.stage in ("refused", "failed")]
        return said[0] if said and self.outcome != "applied" else ""


class RuntimeControl(Protocol):
    """A runtime whose knobs can be changed."""

    def describe(self) -> Description:
        """A machine-readable model of what runs now."""

    def apply(self, knobs: Mapping[str, KnobValue]) -> Applied:
        """Change some knobs, live or by a restart; what fails is rolled back."""
