"""Trials: a load that was sent to an engine, and what the engine told of its steps meanwhile."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from runtime.calibration.drive import Bounds, Run, Sample, Target, drive, request_index
from runtime.calibration.engine import Telemetry
from runtime.calibration.errors import ClientLate, NothingSeen
from runtime.calibration.loads import Load
from runtime.calibration.observe import Life, Observation, Step

_SETTLE_S: Final = 10.0
_POLL_S: Final = 0.1
_ATTEMPTS: Final = 3
_ENDED_PERMILLE: Final = 900
"""The last tenth of a load runs ever emptier, so a rate is that of the requests before it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A load, how it went for its client, the steps that the engine took over it, and the requests as it saw them."""

    load: Load
    run: Run
    steps: tuple[Step, ...]
    lives: dict[int, Life]

    @property
    def ended_per_s(self) -> float:
        """How many requests a second ended, but for the last tenth of them."""
        ends = sorted(sample.last_us for sample in self.run.samples)
        count = max(1, len(ends) * _ENDED_PERMILLE // 1_000)
        begin_us = min(sample.sent_us for sample in self.run.samples)
        return count * 1e6 / max(1, ends[count - 1] - begin_us)

    @property
    def hit_rate(self) -> float:
        """Which part of all prompt tokens was found in the prefix cache, as the answers say."""
        return sum(each.cached_tokens for each in self.run.samples) / sum(
            each.prompt_tokens for each in self.run.samples
        )


class Trials:
    """Runs loads on one engine, one after another."""

    def __init__(
        self,
        target: Target,
        telemetry: Telemetry,
        new_key: Callable[[], str],
        bounds: Bounds | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        settle_s: float = _SETTLE_S,
    ) -> None:
        """`new_key` makes a name that no other run has; `progress` takes a load's name and how much of it is done.

        `settle_s` is how long the telemetry may lack what clients have got.
        """
        self._target, self._telemetry, self._new_key = target, telemetry, new_key
        self._bounds, self._progress, self._settle_s = bounds, progress, settle_s
        self._observation = Observation()
        self._observation.take(telemetry.latest())

    async def run(self, load: Load) -> Trial:
        """Send a load and gather what became of it; once the client was late, again, for that may have been a moment.

        Raises EngineLost, EngineRefused, ClientLate and NothingSeen.
        """
        for attempt in range(_ATTEMPTS):
            try:
                return await self._once(load)
            except ClientLate:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("the loop above returns or raises")

    async def _once(self, load: Load) -> Trial:
        self._follow()
        self._observation.begin()
        done = 0

        def ended(_: int) -> None:
            nonlocal done
            done += 1
            if self._progress is not None:
                self._progress(load.name, done, len(load.arrivals))

        run = await drive(self._target, load, self._new_key(), self._bounds, ended)
        lives = await self._settled(run)
        return Trial(load, run, tuple(self._observation.steps), lives)

    async def _settled(self, run: Run) -> dict[int, Life]:
        """The requests of a run, once the engine has told of all their tokens."""
        missing = len(run.samples)
        for _ in range(max(1, round(self._settle_s / _POLL_S))):
            self._follow()
            lives = self._lives(run.key)
            missing = sum(not _is_whole(sample, lives.get(sample.number)) for sample in run.samples)
            if missing == 0:
                return lives
            await asyncio.sleep(_POLL_S)
        raise NothingSeen(
            f"{run.name}: the engine's telemetry lacks {missing} of {len(run.samples)} requests: is the folder that of "
            "this engine, and is its plugin of this version?"
        )

    def _follow(self) -> None:
        self._observation.take(self._telemetry.records())

    def _lives(self, key: str) -> dict[int, Life]:
        found = {request_index(key, name): life for name, life in self._observation.lives.items()}
        return {index: life for index, life in found.items() if index is not None}


def steps_of(trials: Sequence[Trial]) -> list[Step]:
    """The steps of some trials, in order."""
    return [step for trial in trials for step in trial.steps]


def _is_whole(sample: Sample, life: Life | None) -> bool:
    return life is not None and len(life.emitted_us) >= sample.output_tokens
