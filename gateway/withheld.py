"""Withheld streams: events wait until all their text has been verified, and are released in order.

Text is checked line by line, each together with the one before it, or whole where a check wants that; tool calls
always are whole, for nothing can be done with half of one. A line that does not end is checked in windows that overlap.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import orjson

from policy.checks.port import Text
from runtime.openai.answers import Assembly, Choice, Leaf, choices_of, is_call, leaves
from runtime.port import Garbage

WINDOW_CHARS = 8192
OVERLAP_CHARS = 1024
CHANNELS_MAX = 16_384
_DONE = b"[DONE]"
_OF_ANSWER = -1
# What a runtime writes about an answer; whatever else stands beside the choices is taken for text of the model.
_ABOUT = frozenset(
    {
        *("id", "object", "created", "model", "system_fingerprint", "service_tier", "usage"),
        *("choices", "prompt_logprobs", "prompt_token_ids", "kv_transfer_params"),
    }
)
_VECTORS = "data"
# The names of an API, which say where a text stands. Any other is shown as `*`: the model may have written it.
_SHOWN = frozenset(
    {
        *("content", "text", "refusal", "reasoning", "reasoning_content", "logprobs", "audio", "transcript"),
        *("tool_calls", "function_call", "function", "custom", "name", "arguments", "input", "error", "message"),
    }
)
_CALLS = ("tool_calls", "function_call")
_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt]))')
_ESCAPED = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_Key = tuple[int, tuple[str | int, ...]]


class Granularity(NamedTuple):
    """What the checks of a request need to see: texts, all of them whole, the choices put together."""

    reads_texts: bool
    is_whole: bool
    assembles: bool
    # Of text that is checked line by line, how much of what was seen waits at least, in characters.
    span_chars: int = 0


class Withheld:
    """The events of one stream that the client is not to see yet; holds up to `bytes_max`, then raises Garbage.

    What `due` returned has passed when `passed` is called, what `rest` returned when `all_passed` is.
    """

    def __init__(self, granularity: Granularity, bytes_max: int) -> None:
        self._granularity = granularity
        self._bytes_max = bytes_max
        self._queue: deque[tuple[bytes, tuple[tuple[_Channel, int], ...]]] = deque()
        self._channels: dict[_Key, _Channel] = {}
        self._asked: list[_Channel] = []
        self._assembly = Assembly()
        self._held_bytes = 0
        self._is_over = False

    @property
    def held(self) -> bytes:
        """The events that have not been released."""
        return b"".join(event for event, _ in self._queue)

    @property
    def choices(self) -> tuple[Choice, ...]:
        """What has come so far; empty unless the checks want it."""
        return self._assembly.choices()

    def feed(self, events: bytes) -> None:
        """Take in whole events, as the meter passes them on."""
        for raw in events.split(b"\n\n"):
            if raw:
                self._take(raw)
        if self._held_bytes + self._assembly.size_chars > self._bytes_max:
            raise Garbage(f"more than {self._bytes_max} bytes of the answer wait to be verified")

    def due(self) -> list[Text]:
        """The text that can be checked now."""
        self._asked = [channel for channel in self._channels.values() if channel.is_by_line and channel.cut()]
        return [channel.window() for channel in self._asked]

    def passed(self) -> bytes:
        """The events that may be released now that this text has been verified."""
        for channel in self._asked:
            channel.pass_on()
        self._asked = []
        return self._released()

    def rest(self) -> list[Text]:
        """All the text that has not been verified, once the stream has come to its end."""
        if not self._granularity.reads_texts:
            return _gathered(_object(event[6:]) for event, _ in self._queue if event[6:].strip() != _DONE)
        found: list[Text] = []
        for channel in self._channels.values():
            found += channel.rest()
        return found

    def all_passed(self) -> bytes:
        """The rest of the events."""
        self._is_over = True
        for channel in self._channels.values():
            channel.finish()
        return self._released()

    def _take(self, raw: bytes) -> None:
        # An event without data says nothing that an API's client reads, and could say what no check looks at.
        data = b" ".join(line[5:].removeprefix(b" ") for line in raw.split(b"\n") if line.startswith(b"data:"))
        if not data:
            return
        event = b"data: %b\n\n" % data
        marks: dict[_Channel, int] = {}
        if data.strip() != _DONE:
            chunk = _object(data)
            if self._granularity.assembles:
                self._assembly.feed(chunk)
            for key, leaf in _texts(chunk):
                channel = self._channel(key)
                channel.add(leaf.text)
                marks[channel] = channel.total
        self._queue.append((event, tuple(marks.items())))
        self._held_bytes += len(event)

    def _channel(self, key: _Key) -> "_Channel":
        channel = self._channels.get(key)
        if channel is None:
            if len(self._channels) >= CHANNELS_MAX:
                raise Garbage(f"the answer has more than {CHANNELS_MAX} texts")
            channel = _Channel(_where(*key), self._granularity, is_call=is_call(key[1]))
            self._channels[key] = channel
        return channel

    def _released(self) -> bytes:
        out: list[bytes] = []
        if self._granularity.is_whole and not self._is_over:
            return b""
        while self._queue and all(channel.verified >= end for channel, end in self._queue[0][1]):
            event, _ = self._queue.popleft()
            self._held_bytes -= len(event)
            out.append(event)
        return b"".join(out)


def texts_of(answer: dict[str, Any], *, generates: bool = True) -> list[Text]:
    """Every text of a whole answer, and what is spelt out in the arguments of its tool calls; vectors are no text."""
    return _gathered([answer if generates else {name: answer[name] for name in answer if name != _VECTORS}])


def spelt_out(where: str, text: str) -> list[Text]:
    """Arguments with their escapes undone, where there are any: they hide from a check what a client will read."""
    spelt = _ESCAPE.sub(_unescaped, text)
    # The halves of a surrogate pair stand for one character, and half of one for none.
    whole = spelt.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return [] if spelt == text else [Text(f"{where} decoded", 1, whole)]


def choices_in(answer: dict[str, Any]) -> tuple[Choice, ...]:
    """The choices of a whole answer; raises Garbage where it is not shaped as one."""
    _check_shape(answer.get("choices"))
    return choices_of(answer)


def _gathered(chunks: Iterable[dict[str, Any]]) -> list[Text]:
    parts: dict[_Key, list[str]] = {}
    for chunk in chunks:
        for key, leaf in _texts(chunk):
            parts.setdefault(key, []).append(leaf.text)
    found: list[Text] = []
    for key, texts in parts.items():
        where, text = _where(*key), "".join(texts)
        found.append(Text(where, 1, text))
        if is_call(key[1]):
            found += spelt_out(where, text)
    return found


def _unescaped(match: re.Match[str]) -> str:
    return chr(int(match[1], 16)) if match[1] else _ESCAPED.get(match[2], match[2])


class _Channel:
    """One text of one choice as it grows: offsets count from its beginning, `base` is where the text at hand begins.

    `verified` is up to where it may be released.
    """

    def __init__(self, where: str, of: Granularity, *, is_call: bool) -> None:
        is_whole = of.is_whole or is_call
        self.is_by_line = of.reads_texts and not is_whole
        self.total = 0
        self.verified = 0
        self._where = where
        self._is_read = of.reads_texts
        self._is_call = is_call
        self._is_free = not of.reads_texts and not is_whole
        self._span_chars = of.span_chars
        self._parts: list[str] = []
        self._base = 0
        self._line = 1
        self._checked = 0
        self._cut = 0
        self._line_end = 0

    def add(self, text: str) -> None:
        if self._is_free:
            self.total = self.verified = self.total + len(text)
            return
        place = text.rfind("\n") if self.is_by_line else -1
        if place >= 0:
            self._line_end = self.total + place + 1
        self.total += len(text)
        if self._is_read:
            self._parts.append(text)

    def cut(self) -> int:
        """Up to where it can be checked now; 0 where nothing new can be."""
        if self._line_end > self._checked:
            self._cut = self._line_end
        elif self.total - self._checked > WINDOW_CHARS:
            self._cut = self.total
        else:
            self._cut = 0
        return self._cut

    def window(self) -> Text:
        return Text(self._where, self._line, self._text()[: self._cut - self._base])

    def pass_on(self) -> None:
        """Let go of what was checked, but for the last line and span, which are looked at again with what follows."""
        text = self._text()
        seen = text[: self._cut - self._base]
        end = max(len(seen.rstrip()) - self._span_chars, 0)
        held = max(seen.rfind("\n", 0, end) + 1, len(seen) - OVERLAP_CHARS)
        self._checked = self._cut
        self.verified = max(self.verified, self._base + held)
        start = max(seen.rfind("\n", 0, held) + 1, held - OVERLAP_CHARS)
        self._line += seen.count("\n", 0, start)
        self._base += start
        self._parts = [text[start:]]

    def rest(self) -> list[Text]:
        if self.verified >= self.total or not self._is_read:
            return []
        text = self._text()
        found = [Text(self._where, self._line, text)]
        return found + spelt_out(self._where, text) if self._is_call else found

    def finish(self) -> None:
        self.verified = self.total
        self._parts = []

    def _text(self) -> str:
        text = "".join(self._parts)
        self._parts = [text]
        return text


def _texts(chunk: dict[str, Any]) -> Iterator[tuple[_Key, Leaf]]:
    try:
        yield from _keyed(chunk)
    except (RecursionError, orjson.JSONEncodeError) as error:
        raise Garbage("the answer is nested too deep to be verified") from error


def _keyed(chunk: dict[str, Any]) -> Iterator[tuple[_Key, Leaf]]:
    choices = chunk.get("choices")
    if choices is not None:
        _check_shape(choices)
        for place, choice in enumerate(choices):
            own = choice.get("index")
            for leaf in leaves(choice):
                yield (own if type(own) is int else place, leaf.path), leaf
    for leaf in leaves({name: chunk[name] for name in chunk if name not in _ABOUT}):
        yield (_OF_ANSWER, leaf.path), leaf


def _check_shape(choices: Any) -> None:
    if not isinstance(choices, list) or not all(isinstance(each, dict) for each in choices):
        raise Garbage("the choices of the answer cannot be read, so they cannot be verified")
    for choice in choices:
        _check_calls({name: choice[name] for name in choice if name in _CALLS and choice[name]}, is_here=False)
        for message in (choice.get("delta"), choice.get("message")):
            if isinstance(message, dict):
                _check_calls(message, is_here=True)


def _check_calls(holder: dict[str, Any], *, is_here: bool) -> None:
    """Raises Garbage where there are tool calls that the checks of tool calls would not see."""
    calls, older = (holder.get(name) for name in _CALLS)
    is_list = not calls or (isinstance(calls, list) and all(isinstance(each, dict) for each in calls))
    if not (is_list and (not older or isinstance(older, dict)) and (is_here or not holder)):
        raise Garbage("the tool calls of the answer cannot be read, so they cannot be verified")


def _where(index: int, path: tuple[str | int, ...]) -> str:
    named = ".".join(str(step) if isinstance(step, int) or step in _SHOWN else "*" for step in path)
    return named if index == _OF_ANSWER else f"choice {index} {named}"


def _object(data: bytes) -> dict[str, Any]:
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Garbage("an event is not JSON") from error
    if not isinstance(chunk, dict):
        raise Garbage("an event is not a JSON object")
    return chunk
