"""Arrivals: when sessions begin, whatever they are; open ones by a clock, closed ones when their user has time."""

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from pydantic import Field

from runtime.workload.draws import Dice, Draw, Part, Positive

_US = 1_000_000
Rate = Annotated[float, Field(gt=0, le=1e6)]


class Constant(Part):
    """One after the other, always as far apart."""

    kind: Literal["constant"]
    rate_per_s: Rate

    def times_us(self, dice: Dice) -> Iterator[int]:
        """The moments at which sessions begin, without end."""
        return _spaced(lambda: 1 / self.rate_per_s)


class Poisson(Part):
    """Independent of each other, as those of many users are."""

    kind: Literal["poisson"]
    rate_per_s: Rate

    def times_us(self, dice: Dice) -> Iterator[int]:
        """The moments at which sessions begin, without end."""
        return _spaced(lambda: float(dice.exponential(1 / self.rate_per_s)))


class Gamma(Part):
    """In bursts: `cv` is the standard deviation of the gaps over their mean; 1 is Poisson, more is burstier."""

    kind: Literal["gamma"]
    rate_per_s: Rate
    cv: Annotated[float, Field(gt=0, le=100)]

    def times_us(self, dice: Dice) -> Iterator[int]:
        """The moments at which sessions begin, without end."""
        shape = 1 / self.cv**2
        scale_s = 1 / (shape * self.rate_per_s)
        return _spaced(lambda: float(dice.gamma(shape, scale_s)))


class Ramp(Part):
    """A Poisson process whose rate goes from one to another in `over_s`, and stays there."""

    kind: Literal["ramp"]
    from_per_s: Annotated[float, Field(ge=0, le=1e6)]
    to_per_s: Rate
    over_s: Positive

    def rate_at(self, at_s: float) -> float:
        """Sessions per second at that moment."""
        return self.from_per_s + (self.to_per_s - self.from_per_s) * min(at_s / self.over_s, 1.0)

    def times_us(self, dice: Dice) -> Iterator[int]:
        """The moments at which sessions begin, without end."""
        return _thinned(dice, max(self.from_per_s, self.to_per_s), self.rate_at)


class Diurnal(Part):
    """A Poisson process whose rate swings around its mean by `amplitude` of it, once in `period_s`, and begins low."""

    kind: Literal["diurnal"]
    rate_per_s: Rate
    amplitude: Annotated[float, Field(ge=0, le=1)]
    period_s: Positive = 86_400.0

    def rate_at(self, at_s: float) -> float:
        """Sessions per second at that moment."""
        return self.rate_per_s * (1 - self.amplitude * math.cos(2 * math.pi * at_s / self.period_s))

    def times_us(self, dice: Dice) -> Iterator[int]:
        """The moments at which sessions begin, without end."""
        return _thinned(dice, self.rate_per_s * (1 + self.amplitude), self.rate_at)


class Closed(Part):
    """So many users, each of whom begins a session `think_s` after the last request of the one before has ended."""

    kind: Literal["closed"]
    users: Annotated[int, Field(ge=1, le=100_000)]
    think_s: Draw


Arrivals = Annotated[Constant | Poisson | Gamma | Ramp | Diurnal | Closed, Field(discriminator="kind")]


def _spaced(gap_s: Callable[[], float]) -> Iterator[int]:
    at_s = 0.0
    while True:
        at_s += gap_s()
        yield int(at_s * _US)


def _thinned(dice: Dice, rate_max: float, rate_at: Callable[[float], float]) -> Iterator[int]:
    """Of a Poisson process of the highest rate each moment, as likely as the rate at it is of that (Lewis, Shedler)."""
    at_s = 0.0
    while True:
        at_s += float(dice.exponential(1 / rate_max))
        if dice.random() * rate_max < rate_at(at_s):
            yield int(at_s * _US)
