"""Quality: the answers that are sampled are scored once they are settled, and their text is forgotten."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from gateway import signal_sources
from gateway.answers import Collector, offered_in
from gateway.signals import Signals
from policy.checks.port import JSON_SCHEMA, CheckError, Finding
from policy.quality import Answer, Assessment, Expected, assess, expected_of, is_sampled

CHECKING_MAX = 16

BreaksSchema = Callable[[Mapping[str, Any], str], Awaitable[bool]]


class Checks(Protocol):
    """What makes checks in a process of its own."""

    async def find(self, check: str, given: dict[str, Any], /) -> list[Finding]:
        """What a check finds; raises CheckError."""


def by_process(process: Checks) -> BreaksSchema:
    """Has texts held to schemas in the process that makes the checks of verification, which is started if need be."""

    async def breaks(schema: Mapping[str, Any], text: str) -> bool:
        return bool(await process.find(JSON_SCHEMA, {"texts": [["", text]], "schema": dict(schema)}))

    return breaks


class QualityConfig(Protocol):
    """What sampling needs of the configuration."""

    @property
    def sample(self) -> float: ...
    @property
    def answer_characters_max(self) -> int: ...
    @property
    def passes_at_permille(self) -> int: ...


class Sampler:
    """Scores the sampled answers of one worker; `config` is replaced on a reload.

    `breaks_schema` says whether a text breaks a schema that the client wrote, or raises CheckError where that cannot be
    said; without it an answer by a schema is held only to being JSON. At most `checking_max` answers wait for it; those
    beyond are not scored, and counted in `skipped`.
    """

    def __init__(
        self,
        signals: Signals,
        config: QualityConfig,
        breaks_schema: BreaksSchema | None = None,
        checking_max: int = CHECKING_MAX,
    ) -> None:
        self.config = config
        self.skipped = 0
        self._signals = signals
        self._breaks_schema = breaks_schema
        self._checking_max = checking_max
        self._checking: set[asyncio.Task[None]] = set()

    def collector(
        self, request_id: str, body: Mapping[str, Any], *, generates: bool, offers_tools: bool
    ) -> Collector | None:
        """What is to read along with an answer: its text where it is sampled, its tool calls where tools were offered.

        None for most answers, of which nothing is kept; `body` is the request's.
        """
        if generates and is_sampled(request_id, self.config.sample):
            return Collector(self.config.answer_characters_max, expected_of(body), offered_in(body))
        return Collector(0, offered=offered_in(body)) if offers_tools else None

    def score(self, row: Mapping[str, Any], collector: Collector) -> None:
        """Score an answer that came to its own end soon, when it has gone to its client, if its text was collected."""
        if collector.reads_text:
            asyncio.get_running_loop().call_soon(self._score, row, collector)

    async def close(self) -> None:
        """End what waits for a check; it is not scored."""
        for task in self._checking:
            task.cancel()
        await asyncio.gather(*self._checking, return_exceptions=True)

    def _score(self, row: Mapping[str, Any], collector: Collector) -> None:
        expected, answers = collector.expected, collector.answers()
        if expected.schema is None or self._breaks_schema is None:
            self._note(row, assess(answers, expected, self.config.passes_at_permille))
        elif len(self._checking) >= self._checking_max:
            self.skipped += 1
        else:
            checking = asyncio.create_task(self._check(row, answers, expected, expected.schema, self._breaks_schema))
            self._checking.add(checking)
            checking.add_done_callback(self._checking.discard)

    async def _check(
        self,
        row: Mapping[str, Any],
        answers: list[Answer],
        expected: Expected,
        schema: Mapping[str, Any],
        breaks_schema: BreaksSchema,
    ) -> None:
        checked = []
        for answer in answers:
            is_broken = False
            if answer.text and not answer.is_cut and not answer.calls_tools:
                try:
                    is_broken = await breaks_schema(schema, answer.text)
                except CheckError:
                    # Of a schema that nothing can be held to nobody can say that it is broken.
                    is_broken = False
            checked.append(answer._replace(breaks_schema=is_broken))
        self._note(row, assess(checked, expected, self.config.passes_at_permille))

    def _note(self, row: Mapping[str, Any], assessment: Assessment) -> None:
        signal_sources.judged(self._signals, row, assessment)
