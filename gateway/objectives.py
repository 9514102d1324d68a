"""Objectives: the SLOs of `bursar.yaml`, each a promise of how many requests are served well, and when it alarms."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, field_validator

from domain.amounts import MILLION
from gateway.config_values import DAY_S, Count, Id, Name, Number, Section
from ledger.slo import MILLI, Alert, Objective, burn_milli_max

SLOS_MAX = 256
WINDOW_S_MAX = 366 * DAY_S
_DURATION = re.compile(r"([1-9][0-9]{0,5})([mhdw])")
_UNIT_S = {"m": 60, "h": 3_600, "d": DAY_S, "w": 7 * DAY_S}


def seconds(duration: str) -> int:
    """The length of `5m`, `6h`, `28d` or `4w`; ValueError for anything else, and for more than a year."""
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise ValueError("must be a number and a unit: 5m, 6h, 28d or 4w")
    length_s = int(match[1]) * _UNIT_S[match[2]]
    if length_s > WINDOW_S_MAX:
        raise ValueError(f"must be {WINDOW_S_MAX // DAY_S}d at most")
    return length_s


def _duration(value: str) -> str:
    assert seconds(value)
    return value


def _one_value(value: str) -> str:
    if value == "*":
        raise ValueError("must name one value: leave it out where an SLO is over all of them")
    return value


Duration = Annotated[str, Field(max_length=8), AfterValidator(_duration)]
Milliseconds = Annotated[Number, Field(ge=0.01, le=DAY_S * 1_000)]
Burn = Annotated[Number, Field(ge=1, le=MILLION)]
OneName = Annotated[Name, AfterValidator(_one_value)]


class SloScope(Section):
    """Which requests an SLO is about: those with these values; a dimension that is not named does not matter."""

    org: OneName | None = None
    team: OneName | None = None
    app: OneName | None = None
    model: OneName | None = None

    def named(self) -> tuple[tuple[str, str], ...]:
        """The dimensions that matter with their values, always in the same order."""
        return tuple((dimension, value) for dimension, value in self if value is not None)


class _BurnAlert(Section):
    """Alarms while the error budget burns at least `burn` times too fast over both windows."""

    model_config = ConfigDict(validate_default=True)

    long: Duration
    short: Duration
    burn: Burn

    @field_validator("short")
    @classmethod
    def _shorter(cls, value: str, info: ValidationInfo) -> str:
        if "long" in info.data and seconds(value) >= seconds(info.data["long"]):
            raise ValueError(f"must be shorter than long, {info.data['long']}: it ends the alarm soon after the cause")
        return value

    @property
    def alert(self) -> Alert:
        """The alert as the ledger takes it."""
        return Alert(seconds(self.long), seconds(self.short), round(self.burn * MILLI))


class FastAlert(_BurnAlert):
    """An outage: in 30 days it would take 2 % of the error budget within an hour."""

    long: Duration = "1h"
    short: Duration = "5m"
    burn: Burn = 14.4


class SlowAlert(_BurnAlert):
    """A leak: in 30 days it would take 5 % of the error budget within six hours."""

    long: Duration = "6h"
    short: Duration = "30m"
    burn: Burn = 6


class Slo(Section):
    """A promise over a rolling window: of the requests in scope a share is served, or takes `threshold_ms` at most.

    A percentile is written as the share: p99 under 800 ms is `objective: 0.99` with `threshold_ms: 800`. Loosening one
    that is `frozen` takes a second person.
    """

    model_config = ConfigDict(validate_default=True)

    id: Id
    owner: Name
    scope: SloScope
    kind: Literal["availability", "ttft", "inter_token", "e2e"]
    threshold_ms: Milliseconds | None = None
    objective: Annotated[Number, Field(gt=0, lt=1)]
    window: Duration = "28d"
    fast: FastAlert = FastAlert()
    slow: SlowAlert = SlowAlert()
    events_min: Count = 1
    frozen: bool = False

    @field_validator("threshold_ms")
    @classmethod
    def _fits_kind(cls, value: float | None, info: ValidationInfo) -> float | None:
        kind = info.data.get("kind")
        if value is None and kind not in (None, "availability"):
            raise ValueError(f"is required: {kind} is a time, and this is the most that a good request takes")
        if value is not None and kind == "availability":
            raise ValueError("does not belong to availability, which is no time: leave it out, or say which kind")
        return value

    @field_validator("objective")
    @classmethod
    def _in_millionths(cls, value: float) -> float:
        ppm = round(value * MILLION)
        if abs(value * MILLION - ppm) > 1e-6 or not 0 < ppm < MILLION:
            raise ValueError("may have six decimals at most")
        return value

    @field_validator("fast", "slow")
    @classmethod
    def _can_alarm(cls, value: _BurnAlert, info: ValidationInfo) -> _BurnAlert:
        window, objective = info.data.get("window"), info.data.get("objective")
        if window is not None and seconds(value.long) > seconds(window):
            raise ValueError(f"its long window, {value.long}, must not be longer than the SLO's own, {window}")
        if objective is not None:
            burn_max = burn_milli_max(round(objective * MILLION)) / MILLI
            if value.burn > burn_max:
                raise ValueError(
                    f"a burn of {value.burn:g} is never reached under an objective of {objective:g}: were every "
                    f"request bad, it would be {burn_max:g}; set a lower {info.field_name}.burn"
                )
        return value

    @property
    def target(self) -> Objective:
        """The promise as the ledger measures it."""
        return Objective(
            id=self.id,
            owner=self.owner,
            scope=self.scope.named(),
            kind=self.kind,
            objective_ppm=round(self.objective * MILLION),
            window_s=seconds(self.window),
            fast=self.fast.alert,
            slow=self.slow.alert,
            threshold_us=round((self.threshold_ms or 0) * 1_000),
            events_min=self.events_min,
        )


Slos = Annotated[tuple[Slo, ...], Field(max_length=SLOS_MAX)]
