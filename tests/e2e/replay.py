"""Replays an engine's telemetry line by line, by nothing but the words of its format, and adds up what it says."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.telemetry.writer import segments


@dataclass(slots=True)
class Stay:
    """One request's time in the batch, from its join to its leave."""

    request_id: str
    prompt_tokens: int
    cached_tokens: int
    context_tokens: int
    prefilled_tokens: int = 0
    decoded_tokens: int = 0
    reason: str = ""
    output_tokens: int = 0

    @property
    def computed_tokens(self) -> int:
        """What steps computed for it."""
        return self.prefilled_tokens + self.decoded_tokens


@dataclass(slots=True)
class Replay:
    """What a whole stream says; every handle must be known, and every step begin where the last ended or later."""

    facts: dict[str, Any] = field(default_factory=dict)
    stays: list[Stay] = field(default_factory=list)
    batch: dict[int, Stay] = field(default_factory=dict)
    busy_us: int = 0
    idle_us: int = 0
    began_us: int = 0
    end_us: int = 0
    steps: int = 0
    closed: bool = False

    def computed_tokens(self) -> Counter[str]:
        """What was computed for each request, all its choices and stays together."""
        found: Counter[str] = Counter()
        for stay in self.stays:
            found[stay.request_id] += stay.computed_tokens
        return found

    def of(self, request_id: str) -> list[Stay]:
        """The stays of one request, in the order of their joins."""
        return [stay for stay in self.stays if stay.request_id == request_id]

    def take(self, line: list[Any]) -> None:
        """Take in one line."""
        match line:
            case ["open", 1, _, _, _, _, facts]:
                self.facts = facts
            case ["state", batch]:
                stated = {handle: (name, context) for handle, name, context in batch}
                assert stated == {h: (stay.request_id, stay.context_tokens) for h, stay in self.batch.items()}
            case ["join", handle, name, prompt, context, queued_us]:
                assert handle not in self.batch
                assert queued_us >= 0
                self.batch[handle] = Stay(name, prompt, context, context)
                self.stays.append(self.batch[handle])
            case ["step", begin_us, end_us, used, running, waiting, takes]:
                assert 0 <= used <= self.facts["num_blocks"]
                assert min(running, waiting) >= 0
                self._step(begin_us, end_us, dict(takes))
            case ["leave", handle, reason, output]:
                stay = self.batch.pop(handle)
                stay.reason, stay.output_tokens = reason, output
            case ["close", _]:
                self.closed = True
            case _:
                raise AssertionError(f"a line that the format does not know: {line}")

    def _step(self, begin_us: int, end_us: int, takes: dict[int, int]) -> None:
        assert takes.keys() <= self.batch.keys()
        assert self.end_us <= begin_us <= end_us, "steps do not overlap"
        if self.steps:
            self.idle_us += begin_us - self.end_us
        else:
            self.began_us = begin_us
        self.busy_us += end_us - begin_us
        self.end_us = end_us
        self.steps += 1
        for handle, stay in self.batch.items():
            tokens = takes.get(handle, 1)
            stay.context_tokens += tokens
            if handle in takes:
                stay.prefilled_tokens += tokens
            else:
                stay.decoded_tokens += tokens


def replayed(folder: Path, source: str = "engine-0") -> Replay:
    """The replay of all segments of a source; a last line that is still being written is left for later."""
    replay = Replay()
    for number in segments(folder, source):
        text = (folder / f"{source}.{number}.jsonl").read_text(encoding="utf-8")
        for line in text[: text.rfind("\n") + 1].splitlines():
            replay.take(json.loads(line))
    return replay


def finished_lines(folder: Path, source: str = "requests-0") -> list[list[Any]]:
    """The lines in which a front end says what vLLM itself counted of requests that finished."""
    texts = [(folder / f"{source}.{number}.jsonl").read_text(encoding="utf-8") for number in segments(folder, source)]
    lines = [json.loads(line) for text in texts for line in text.splitlines()]
    return [line for line in lines if line[0] == "finished"]
