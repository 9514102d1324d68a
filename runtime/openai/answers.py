"""Answers: the choices of an OpenAI answer, whole or put together from a stream, and every text that is in them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

# What the runtime writes about a choice and a call rather than the model in them.
_OF_CHOICE = frozenset({"index", "finish_reason", "stop_reason", "prompt_logprobs", "token_ids"})
_OF_CALL = frozenset({"index", "id", "type"})
_ARGUMENTS = frozenset({"arguments", "input"})
# The place among tool calls of `function_call`, which is older than their list.
LEGACY_CALL = -1


class ToolCall(NamedTuple):
    """One tool that an answer calls: by which name, and its arguments as they are written, for `kind` function JSON."""

    place: int
    kind: str
    name: str
    arguments: str


class Choice(NamedTuple):
    """One choice of an answer, by its index; `content` is None where it has none, as beside tool calls or a refusal."""

    number: int
    content: str | None
    refusal: str
    finish_reason: str
    tool_calls: tuple[ToolCall, ...]


class Leaf(NamedTuple):
    """One text of a choice, and the names and places that lead to it."""

    path: tuple[str | int, ...]
    text: str


def choices_of(answer: Any) -> tuple[Choice, ...]:
    """The choices of a whole answer, of chat or of completions; what is not shaped as one is left out."""
    assembly = Assembly()
    assembly.feed(answer)
    return assembly.choices()


def tool_calls_of(answer: Any) -> tuple[ToolCall, ...]:
    """Every tool that a whole answer calls, over all its choices."""
    return tuple(call for choice in choices_of(answer) for call in choice.tool_calls)


def leaves(choice: Any) -> Iterator[Leaf]:
    """Every text of a choice or of a streamed part of one, whatever the field is called, but for what names and ids.

    Arguments are one text, their JSON. Raises JSONEncodeError where they are nested too deep to be written.
    """
    if isinstance(choice, dict):
        for name, value in choice.items():
            if name in ("delta", "message") and isinstance(value, dict):  # the same thing, at two times
                yield from _walk({each: value[each] for each in value if each != "role"}, ())
            elif name == "logprobs" and isinstance(value, dict):
                # The text by token: also what a runtime leaves out of the text, or writes there only later.
                text = "".join(_tokens(value))
                if text:
                    yield Leaf((name,), text)
            elif name not in _OF_CHOICE:
                yield from _walk(value, (name,))


def is_call(path: tuple[str | int, ...]) -> bool:
    """Whether a text is a part of a tool call."""
    return "tool_calls" in path or "function_call" in path


def _walk(value: Any, path: tuple[str | int, ...]) -> Iterator[Leaf]:
    if isinstance(value, str):
        if value:
            yield Leaf(path, value)
    elif isinstance(value, dict):
        is_one = len(path) == 2 and path[0] == "tool_calls"
        for name, each in value.items():
            if name in _ARGUMENTS and is_call(path) and isinstance(each, dict | list):
                yield Leaf((*path, name), orjson.dumps(each).decode())
            elif not (is_one and name in _OF_CALL):
                yield from _walk(each, (*path, name))
    elif isinstance(value, list):
        for place, each in enumerate(value):
            own = each.get("index") if isinstance(each, dict) else None
            yield from _walk(each, (*path, own if type(own) is int else place))


def _tokens(logprobs: dict[str, Any]) -> Iterator[str]:
    """The tokens that were produced, of chat or of completions; their alternatives are no part of the answer."""
    for listed in logprobs.values():
        for each in listed if isinstance(listed, list) else ():
            token = each.get("token") if isinstance(each, dict) else each
            if isinstance(token, str):
                yield token


def _written(arguments: Any) -> str | None:
    """Arguments as text: some runtimes send the object itself; None where they are neither."""
    if arguments is None or isinstance(arguments, str):
        return arguments
    try:
        return orjson.dumps(arguments).decode()
    except orjson.JSONEncodeError:
        return "nested too deep to be written"  # which is no JSON, so that no schema allows it


class Assembly:
    """Puts choices together from the chunks of a stream; `size_chars` is how much text it holds."""

    def __init__(self) -> None:
        self.size_chars = 0
        self._choices: dict[int, _Parts] = {}

    def feed(self, chunk: Any) -> None:
        """Take in the JSON of one event, or of a whole answer."""
        choices = chunk.get("choices") if isinstance(chunk, dict) else None
        for place, raw in enumerate(choices if isinstance(choices, list) else ()):
            if isinstance(raw, dict):
                index = raw.get("index")
                self._take(raw, index if type(index) is int else place)

    def choices(self) -> tuple[Choice, ...]:
        """What has come so far, by index."""
        return tuple(parts.choice(index) for index, parts in sorted(self._choices.items()))

    def _take(self, raw: dict[str, Any], index: int) -> None:
        parts = self._choices.setdefault(index, _Parts())
        for fields in (raw.get("delta"), raw.get("message"), {"content": raw.get("text")}):
            if isinstance(fields, dict):
                self._take_fields(parts, fields)
        reason = raw.get("finish_reason")
        if isinstance(reason, str):
            parts.finish_reason = reason

    def _take_fields(self, parts: "_Parts", fields: dict[str, Any]) -> None:
        for text in _contents(fields.get("content")):
            parts.content.append(text)
            self.size_chars += len(text)
        refusal = fields.get("refusal")
        if isinstance(refusal, str):
            parts.refusal.append(refusal)
            self.size_chars += len(refusal)
        calls = fields.get("tool_calls")
        for place, call in enumerate(calls if isinstance(calls, list) else ()):
            own = call.get("index") if isinstance(call, dict) else None
            self._take_call(parts, call, own if type(own) is int else place)
        if isinstance(fields.get("function_call"), dict):
            self._take_call(parts, {"function": fields["function_call"]}, LEGACY_CALL)

    def _take_call(self, parts: "_Parts", call: Any, place: int) -> None:
        if not isinstance(call, dict):
            return
        kind, name, arguments = parts.calls.setdefault(place, ([], [], []))
        if isinstance(call.get("type"), str) and not kind:
            kind.append(call["type"])
        for body in (call.get("function"), call.get("custom")):
            if isinstance(body, dict):
                given = _written(body.get("arguments", body.get("input")))
                for into, text in ((name, body.get("name")), (arguments, given)):
                    if isinstance(text, str):
                        into.append(text)
                        self.size_chars += len(text)


class _Parts:
    """One choice as it comes."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.refusal: list[str] = []
        self.finish_reason = ""
        self.calls: dict[int, tuple[list[str], list[str], list[str]]] = {}

    def choice(self, number: int) -> Choice:
        calls = tuple(
            ToolCall(place, "".join(kind) or "function", "".join(name), "".join(arguments))
            for place, (kind, name, arguments) in sorted(self.calls.items())
        )
        content = "".join(self.content) if self.content else None
        return Choice(number, content, "".join(self.refusal), self.finish_reason, calls)


def _contents(content: Any) -> Iterator[str]:
    """The texts of a content, which is one or a list of parts."""
    if isinstance(content, str):
        yield content
    elif isinstance(content, list):
        for part in content:
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                yield part["text"]
