"""A machine-readable model of a running engine: its parts, its knobs and what couples them, and what it can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

KnobValue = int | float | str | bool | None
TelemetryStatus = Literal["on", "off", "unknown"]


@dataclass(frozen=True, slots=True)
class KnobState:
    """A knob and the value that it has now; `live` says that it can be changed without a restart."""

    name: str
    value: KnobValue
    default: KnobValue
    unit: str
    live: bool
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    couples: tuple[str, ...]
    changes_outputs: bool
    why: str


@dataclass(frozen=True, slots=True)
class CouplingState:
    """A condition over several knobs, by its name, and why it does not hold now; None when it does."""

    name: str
    knobs: tuple[str, ...]
    violated: str | None


@dataclass(frozen=True, slots=True)
class Component:
    """A part of the engine: what it does, by which knobs it is set, and the parts that it hands work to."""

    name: str
    does: str
    knobs: tuple[str, ...]
    feeds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the engine can hold; None where it does not say."""

    num_blocks: int | None
    block_size_tokens: int | None
    cache_tokens: int | None
    model_len_tokens: int | None
    seats: int | None
    accelerators: int


@dataclass(frozen=True, slots=True)
class TelemetryState:
    """Whether the engine tells of its steps: `off` with the reason, `unknown` where Bursar was told no folder.

    Since `since_us` it writes its newest segment, into which it wrote last at `told_us`; Unix microseconds.
    """

    status: TelemetryStatus
    reason: str = ""
    session: str = ""
    since_us: int = 0
    lost_lines: int = 0
    told_us: int = 0


@dataclass(frozen=True, slots=True)
class Description:
    """An engine as it runs now. `versions` are of the engine, and of what else it names."""

    engine: str
    model: str
    device: str
    versions: Mapping[str, str]
    components: tuple[Component, ...]
    knobs: tuple[KnobState, ...]
    couplings: tuple[CouplingState, ...]
    capacity: Capacity
    telemetry: TelemetryState

    def as_json(self) -> dict[str, Any]:
        """The whole as JSON has it."""
        return asdict(self)

    def value(self, name: str) -> KnobValue:
        """The value that a knob has now; KeyError when the engine has no such knob."""
        return {knob.name: knob.value for knob in self.knobs}[name]
