"""Draws: how lengths, counts and pauses are spread, each a small value that can be asked for numbers from a seed."""

import math
from collections.abc import Callable
from itertools import islice
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from runtime.workload.opening import open_workload
from runtime.workload.rows import TOKENS_MAX

EMPIRICAL_ROWS_MAX = 200_000
_US = 1_000_000

Dice = np.random.Generator
Positive = Annotated[float, Field(gt=0, le=1e9)]
NotNegative = Annotated[float, Field(ge=0, le=1e9)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]


class Part(BaseModel):
    """A part of a description: frozen, and with no member that is not named here."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class Constant(Part):
    """Always the same."""

    kind: Literal["constant"] = "constant"
    value: NotNegative

    def sampler(self, dice: Dice) -> Callable[[], float]:
        """What draws the next number."""
        return lambda: self.value


class Uniform(Part):
    """Anything from `low` to `high`, each as likely."""

    kind: Literal["uniform"]
    low: NotNegative
    high: NotNegative

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if self.low > self.high:
            raise ValueError("low is more than high")
        return self

    def sampler(self, dice: Dice) -> Callable[[], float]:
        """What draws the next number."""
        return lambda: float(dice.uniform(self.low, self.high))


class _Clipped(Part):
    """What has a tail, and is cut to what is possible."""

    min: NotNegative = 0.0
    max: Positive = 131_072.0

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.min > self.max:
            raise ValueError("min is more than max")
        return self

    def _clip(self, value: float) -> float:
        return min(max(value, self.min), self.max)


class Exponential(_Clipped):
    """Most are short, as waiting times are; `mean` is that before the cut."""

    kind: Literal["exponential"]
    mean: Positive

    def sampler(self, dice: Dice) -> Callable[[], float]:
        """What draws the next number."""
        return lambda: self._clip(float(dice.exponential(self.mean)))


class Lognormal(_Clipped):
    """Half are under `median`; a `sigma` of 1 puts the largest 1 % at ten times that, before the cut."""

    kind: Literal["lognormal"]
    median: Positive
    sigma: Annotated[float, Field(ge=0, le=10)]

    def sampler(self, dice: Dice) -> Callable[[], float]:
        """What draws the next number."""
        mu = math.log(self.median)
        return lambda: self._clip(float(dice.lognormal(mu, self.sigma)))


class Empirical(Part):
    """As a trace has them: each draw is the `of` length of one of its first 200,000 rows, whatever row came before."""

    kind: Literal["empirical"]
    trace: Annotated[str, Field(min_length=1, max_length=4096)]
    of: Literal["prompt", "output"]

    def sampler(self, dice: Dice) -> Callable[[], float]:
        """What draws the next number. TraceError."""
        rows = islice(open_workload(self.trace), EMPIRICAL_ROWS_MAX)
        values = np.fromiter(
            (row.prompt_tokens if self.of == "prompt" else row.output_tokens for row in rows), dtype=np.int32
        )
        return lambda: float(values[dice.integers(len(values))])


def _as_constant(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"kind": "constant", "value": value} if is_number else value


# A bare number stands for one that is always the same.
Draw = Annotated[
    Constant | Uniform | Exponential | Lognormal | Empirical, Field(discriminator="kind"), BeforeValidator(_as_constant)
]


def whole(sampler: Callable[[], float], least: int = 1) -> int:
    """A number of tokens, turns or the like."""
    return min(max(least, round(sampler())), TOKENS_MAX)


def pause_us(sampler: Callable[[], float]) -> int:
    """A pause, of one that is drawn in seconds."""
    return round(sampler() * _US)
