"""Sends a workload to an OpenAI-compatible server at its times, and records when each token came back.

It speaks through Bursar's own client of runtimes and not aiohttp, for on a machine that it shares with the engine a
cheaper client disturbs less of what it measures.
"""

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple

import orjson

from runtime.calibration.content import Content
from runtime.calibration.errors import CalibrationError, ClientLate, EngineLost, EngineRefused
from runtime.pool import Pool
from runtime.port import RuntimeFailure
from runtime.wire import Response
from runtime.workload.port import Arrival, Workload

_COMPLETION: Final = re.compile(rb'"completion_tokens": ?(\d+)')
_CACHED: Final = re.compile(rb'"cached_tokens": ?(\d+)')
_TOKEN_IDS: Final = re.compile(rb'"token_ids": ?\[([\d, ]*)\]')
_ERROR_BYTES_MAX: Final = 400
_PERMILLE: Final = 1_000
_LATE_PERMILLE: Final = 950
"""The client was late when more than one in twenty requests left later than allowed."""


@dataclass(frozen=True, slots=True)
class Target:
    """The server to drive, without the `/v1` of its API, and the model to ask for."""

    base_url: str
    model: str
    authorization: str | None = None


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one load may take: requests, tokens in all, seconds, connections, and how late a request may leave."""

    requests_max: int = 20_000
    tokens_max: int = 20_000_000
    seconds_max: float = 600.0
    connections_max: int = 2_048
    lag_us_max: int = 25_000


class Sample(NamedTuple):
    """What became of one request; times are microseconds from the run's begin.

    `tokens` holds, for each time that some arrived, when that was and how many output tokens there were then.
    """

    number: int
    due_us: int
    sent_us: int
    prompt_tokens: int
    cached_tokens: int
    tokens: tuple[tuple[int, int], ...]

    @property
    def first_us(self) -> int:
        """When the first token arrived."""
        return self.tokens[0][0]

    @property
    def last_us(self) -> int:
        """When the last token arrived."""
        return self.tokens[-1][0]

    @property
    def output_tokens(self) -> int:
        return self.tokens[-1][1]


@dataclass(frozen=True, slots=True)
class Run:
    """A load as it went: `key` stands in the ids of its requests, `begin_unix_us` is where its times count from."""

    name: str
    key: str
    begin_unix_us: int
    samples: tuple[Sample, ...]
    lag_us: int
    """How late nineteen in twenty requests left at most."""


def request_index(key: str, request_id: str) -> int | None:
    """Which request of a run an engine's id is of, None for another run's; an engine adds to ids at both ends."""
    found = re.search(rf"{re.escape(key)}-(\d+)(?!\d)", request_id)
    return int(found[1]) if found else None


async def drive(
    target: Target,
    workload: Workload,
    key: str,
    bounds: Bounds | None = None,
    progress: Callable[[int], None] | None = None,
) -> Run:
    """Send every request of a workload and wait for the last answer; `progress` is called with each that ended.

    `key` must be new for each run: it salts the prompts, so that no run finds another's in the cache. Raises
    EngineLost, EngineRefused and ClientLate, and then nothing of the run is returned.
    """
    bounds = bounds or Bounds()
    arrivals = _bounded(workload, bounds)
    pool = Pool(target.base_url, min(bounds.connections_max, len(arrivals)), connect_timeout_s=5.0)
    sending = _Sending(target, pool, arrivals, Content(key, workload.block_tokens, arrivals), key, progress)
    try:
        async with asyncio.timeout(bounds.seconds_max):
            await sending.run()
    except TimeoutError as error:
        ended = len(sending.samples)
        raise EngineLost(
            f"{workload.name}: {ended} of {len(arrivals)} requests had ended after {bounds.seconds_max:g} s: is the "
            "engine alive? Make the load smaller if it is"
        ) from error
    except BaseExceptionGroup as group:
        raise _first(group, workload.name) from group
    finally:
        await pool.close()
    samples = tuple(sorted(sending.samples))
    lag_us = _lag_us(samples)
    if lag_us > bounds.lag_us_max:
        raise ClientLate(
            f"{workload.name}: the client sent one request in twenty more than {lag_us / 1_000:.0f} ms late: what it "
            "measured is not the engine's; free a core for it or make the load smaller"
        )
    return Run(workload.name, key, sending.begin_unix_us, samples, lag_us)


def _bounded(workload: Workload, bounds: Bounds) -> list[Arrival]:
    arrivals = list(islice(workload, bounds.requests_max + 1))
    tokens = sum(each.prompt_tokens + each.output_tokens for each in arrivals)
    if not arrivals or len(arrivals) > bounds.requests_max or tokens > bounds.tokens_max:
        raise CalibrationError(
            f"{workload.name}: a load to be sent has 1 to {bounds.requests_max} requests and at most "
            f"{bounds.tokens_max} tokens; cut it down"
        )
    for index, each in enumerate(arrivals):
        if each.prompt_tokens < 1 or each.output_tokens < 1 or each.after >= index:
            raise CalibrationError(
                f"{workload.name}: request {index} has no prompt or no output, or waits for one that comes later"
            )
    return arrivals


def _lag_us(samples: Sequence[Sample]) -> int:
    lags = sorted(each.sent_us - each.due_us for each in samples)
    return lags[(len(lags) - 1) * _LATE_PERMILLE // _PERMILLE]


def _first(group: BaseExceptionGroup[BaseException], name: str) -> BaseException:
    """The failure that ended a load: the first, for the others are what the rest of it was cancelled with."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, RuntimeFailure):
        return EngineLost(f"{name}: the engine stopped answering in the middle of the load: {error}; see its log")
    return error


class _Sending:
    """One load under way."""

    def __init__(
        self,
        target: Target,
        pool: Pool,
        arrivals: Sequence[Arrival],
        content: Content,
        key: str,
        progress: Callable[[int], None] | None,
    ) -> None:
        self.samples: list[Sample] = []
        self.begin_unix_us = 0
        self._target, self._pool, self._arrivals = target, pool, arrivals
        self._content, self._key, self._progress = content, key, progress
        self._began_ns = 0
        self._followers: dict[int, list[int]] = {}
        # Made before the clock starts: a body of thousands of numbers takes longer than a step of a small engine.
        self._bodies = {
            index: self._body(index, content.prompt(index, each))
            for index, each in enumerate(arrivals)
            if content.is_fixed(each)
        }
        headers = "Content-Type: application/json\r\n"
        if target.authorization is not None:
            headers += f"Authorization: {target.authorization}\r\n"
        self._headers = headers

    async def run(self) -> None:
        opening = []
        for index, each in enumerate(self._arrivals):
            if each.after < 0:
                opening.append((each.at_us, index))
            else:
                self._followers.setdefault(each.after, []).append(index)
        # The two clocks are read together, so that the engine's times, which are Unix times, can be laid beside these.
        self.begin_unix_us, self._began_ns = time.time_ns() // 1_000, time.monotonic_ns()
        async with asyncio.TaskGroup() as group:
            for at_us, index in sorted(opening):
                await self._until(at_us)
                group.create_task(self._one(group, index, at_us))

    def _now_us(self) -> int:
        return (time.monotonic_ns() - self._began_ns) // 1_000

    async def _until(self, at_us: int) -> None:
        wait_us = at_us - self._now_us()
        if wait_us > 0:
            await asyncio.sleep(wait_us / 1e6)

    async def _one(self, group: asyncio.TaskGroup, index: int, due_us: int) -> None:
        await self._until(due_us)
        arrival = self._arrivals[index]
        body = self._bodies.pop(index, None)
        prompt: list[int] = []
        if body is None or self._content.wants_output(arrival):
            prompt = self._content.prompt(index, arrival)
            body = body or self._body(index, prompt)
        headers = f"{self._headers}X-Request-Id: {self._key}-{index}\r\n"
        sent_us = self._now_us()
        response = await self._pool.post("/v1/completions", body, headers.encode())
        try:
            reading = _Reading(index, arrival, self._content.wants_output(arrival))
            await reading.read(response, self._now_us)
        finally:
            response.close()
        if reading.wants_ids:
            self._content.produced(arrival, prompt, reading.token_ids)
        sample = Sample(index, due_us, sent_us, arrival.prompt_tokens, reading.cached, tuple(reading.tokens))
        self.samples.append(sample)
        for follower in self._followers.get(index, ()):
            group.create_task(self._one(group, follower, sample.last_us + self._arrivals[follower].at_us))
        if self._progress is not None:
            self._progress(index)

    def _body(self, index: int, prompt: list[int]) -> bytes:
        arrival = self._arrivals[index]
        fields: dict[str, Any] = {
            "model": self._target.model,
            "prompt": prompt,
            "max_tokens": arrival.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        if arrival.priority:
            fields["priority"] = arrival.priority
        if self._content.wants_output(arrival):
            fields["return_token_ids"] = True
        return orjson.dumps(fields)


class _Reading:
    """The answer to one request, as it arrives."""

    def __init__(self, index: int, arrival: Arrival, wants_ids: bool) -> None:
        self.tokens: list[tuple[int, int]] = []
        self.token_ids: list[int] = []
        self.cached = 0
        self.wants_ids = wants_ids
        self._index, self._arrival = index, arrival
        self._rest = b""

    async def read(self, response: Response, now_us: Callable[[], int]) -> None:
        """Read to the end; raises EngineRefused where it is not what was asked for, and RuntimeFailure."""
        if response.status != 200:
            said = (await response.read_any())[:_ERROR_BYTES_MAX].decode(errors="replace")
            raise EngineRefused(f"request {self._index} was answered with {response.status}: {said}")
        while data := await response.read_any():
            self._take(data, now_us())
        count = self.tokens[-1][1] if self.tokens else 0
        if count != self._arrival.output_tokens:
            said = self._rest[:_ERROR_BYTES_MAX].decode(errors="replace")
            raise EngineRefused(
                f"request {self._index} was answered with {count} tokens of {self._arrival.output_tokens}, counted by "
                f"stream_options.continuous_usage_stats {said}".rstrip()
            )
        if self.wants_ids and len(self.token_ids) != count:
            raise EngineRefused(
                "the engine does not return token ids, which a workload needs whose prompts hold earlier answers"
            )

    def _take(self, data: bytes, now_us: int) -> None:
        """Take in what has arrived: whole lines only, for a number may be cut in two."""
        text = self._rest + data
        end = text.rfind(b"\n") + 1
        self._rest, text = text[end:], text[:end]
        counts = _COMPLETION.findall(text)
        if counts and int(counts[-1]) > (self.tokens[-1][1] if self.tokens else 0):
            self.tokens.append((now_us, int(counts[-1])))
        cached = _CACHED.findall(text)
        if cached:
            self.cached = int(cached[-1])
        if self.wants_ids:
            for found in _TOKEN_IDS.findall(text):
                self.token_ids += map(int, found.replace(b" ", b"").split(b",") if found else ())
