"""Answers: what is kept of an answer while it passes, for the rows and signals that are made of it afterwards.

It lives as long as its request: the text of the few answers that are judged, and the names of the tools called.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from policy.quality import Answer, Expected
from runtime.openai.answers import Assembly, Choice

CALLS_CHARACTERS_MAX = 64 << 10
NOTHING_EXPECTED = Expected()
_CALLS = (b'"tool_calls"', b'"function_call"')
_EVENT_END = b"\n\n"
_DATA = b"data:"


class Collector:
    """Reads one answer, from its events as they are passed on or from the whole of it.

    `expected` is the form that was asked for, `offered` the names of the tools that were. It keeps at most
    `characters_max` and what one event more has; with 0 it looks for tool calls alone, and reads only the events that
    have some. What is no JSON is not its to complain of.
    """

    def __init__(
        self, characters_max: int, expected: Expected = NOTHING_EXPECTED, offered: frozenset[str] = frozenset()
    ) -> None:
        self.reads_text = characters_max > 0
        self.expected = expected
        self._characters_max = characters_max or CALLS_CHARACTERS_MAX
        self._assembly = Assembly()
        self._offered = offered
        self._is_cut = False

    def feed(self, events: bytes) -> None:
        """Take whole events, as `Meter.feed` returns them."""
        if self._is_cut or not (self.reads_text or any(name in events for name in _CALLS)):
            return
        for event in events.split(_EVENT_END):
            data = event[len(_DATA) :] if event.startswith(_DATA) and b"\n" not in event else _joined(event)
            if data.lstrip().startswith(b"{") and not self._is_cut:
                self._take(data)

    def whole(self, body: Mapping[str, Any]) -> None:
        """Take an answer that came in one piece."""
        self._assembly.feed(body)
        self._is_cut = self._assembly.size_chars > self._characters_max

    def called(self) -> list[str]:
        """The names of the tools that are called, once for each call; "" for one that was not offered.

        Such a name is the model's own text, which no row may have.
        """
        calls = (call for choice in self._assembly.choices() for call in choice.tool_calls if call.name)
        return [call.name if call.name in self._offered else "" for call in calls]

    def answers(self) -> list[Answer]:
        """Every choice, as it is to be judged."""
        return [_answer(choice, is_cut=self._is_cut) for choice in self._assembly.choices()]

    def _take(self, data: bytes) -> None:
        try:
            self._assembly.feed(orjson.loads(data))
        except orjson.JSONDecodeError:
            return
        self._is_cut = self._assembly.size_chars > self._characters_max


def offered_in(body: Mapping[str, Any]) -> frozenset[str]:
    """The names of the tools that a request offers its model, of functions and of custom ones."""
    tools, older = (body.get(name) for name in ("tools", "functions"))
    described = list(older) if isinstance(older, list) else []
    for tool in tools if isinstance(tools, list) else ():
        described += [tool.get("function"), tool.get("custom")] if isinstance(tool, dict) else []
    names = (each.get("name") for each in described if isinstance(each, dict))
    return frozenset(name for name in names if isinstance(name, str))


def _answer(choice: Choice, *, is_cut: bool) -> Answer:
    return Answer(
        choice.content or "", choice.finish_reason, bool(choice.tool_calls), bool(choice.refusal), is_cut=is_cut
    )


def _joined(event: bytes) -> bytes:
    lines = event.split(b"\n")
    return b" ".join(line[len(_DATA) :] for line in lines if line.startswith(_DATA))
