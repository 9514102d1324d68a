"""Requests: from the bytes of a body to an intent, or to the field that is wrong."""

import sys
from typing import Any, NamedTuple

import orjson

from domain.intent import NO_RUN, Intent, Principal, Run
from gateway import bounds, fields
from gateway.bounds import Measure
from gateway.errors import INVALID_REQUEST, Refusal, malformed

TOOLS_MAX = 512
# What offers tools, and what asks for one of them: the latter two are older, and mean the same.
TOOL_FIELDS = {"tools": "tool_choice", "functions": "function_call"}
_FUNCTION = "function"
# The kinds of tools that whoever asks makes up and names; what any other does, its type says.
_MADE_UP = (_FUNCTION, "custom")
NAME_CHARS_MAX = 256
# What is read must be written again for the runtime, and orjson writes no more levels than this.
LEVELS_MAX = 254
# As far back as a policy itself can place a request.
PRIORITY_MAX = 2**53 - 1


class Endpoint(NamedTuple):
    """An OpenAI endpoint that costs: its short name, its path and the field that carries its input."""

    name: str
    path: str
    input_field: str
    generates: bool


CHAT = Endpoint("chat", "/v1/chat/completions", "messages", generates=True)
COMPLETIONS = Endpoint("completions", "/v1/completions", "prompt", generates=True)
EMBEDDINGS = Endpoint("embeddings", "/v1/embeddings", "input", generates=False)
ENDPOINTS = {endpoint.path: endpoint for endpoint in (CHAT, COMPLETIONS, EMBEDDINGS)}


class Tool(NamedTuple):
    """A tool that a request offers: its type, the name that policies know it by, and the schema of what it takes.

    The name is that of the function or of the custom tool; a tool of another type is known by that.
    """

    kind: str
    name: str
    parameters: Any


def read_body(data: bytes) -> dict[str, Any] | Refusal:
    """The JSON object of a body."""
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        return malformed(f"The body is not valid JSON: {error}")
    if not isinstance(body, dict):
        return malformed("The body must be a JSON object.")
    if data.count(b"[") + data.count(b"{") > LEVELS_MAX and not _can_be_written(body):
        return malformed(f"The body's JSON is nested more than {LEVELS_MAX} levels deep.")
    model = body.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= NAME_CHARS_MAX:
        return malformed(f"model must be a string of 1 to {NAME_CHARS_MAX} characters.", "model")
    return body


def _can_be_written(body: dict[str, Any]) -> bool:
    try:
        orjson.dumps(body)
    except orjson.JSONEncodeError:
        return False
    return True


def read_intent(
    endpoint: Endpoint,
    body: dict[str, Any],
    principal: Principal,
    request_id: str,
    measure: Measure,
    run: Run = NO_RUN,
    priority: int = 0,
) -> Intent | Refusal:
    """What the body and the headers ask for, bounded; a Refusal names the first of them that is wrong."""
    if not 0 <= priority <= PRIORITY_MAX:
        return malformed(f"x-bursar-priority must be a whole number from 0 to {PRIORITY_MAX}.", "x-bursar-priority")
    for name in fields.REFUSED.keys() & body.keys():
        if body[name] not in (None, False):
            return malformed(f"{name} is not accepted: {fields.REFUSED[name]}.", name)
    stream = body.get("stream")
    if stream is not None and type(stream) is not bool:
        return malformed("stream must be true or false.", "stream")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        return malformed("stream_options must be an object.", "stream_options")
    salt = body.get("cache_salt")
    if salt is not None and not isinstance(salt, str):
        return malformed("cache_salt must be a string.", "cache_salt")
    try:
        choices = fields.choices(body) if endpoint.generates else 1
        cap = _output_cap(endpoint, body)
        tools = _tool_names(body) if "tools" in body or "functions" in body else ()
        input_bound, prompts = _input(endpoint, body, measure)
    except _FieldError as wrong:
        return Refusal(INVALID_REQUEST, f"{wrong.field} {wrong}.", wrong.field)
    except ValueError as error:
        return malformed(f"{error}.", str(error).split(" ", 1)[0])
    return Intent(
        request_id,
        principal,
        endpoint.name,
        sys.intern(body["model"]),
        bool(stream) and endpoint.generates,
        input_bound,
        cap,
        choices * prompts,
        tools,
        run,
        salt or "",
        priority,
    )


class _FieldError(ValueError):
    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def _output_cap(endpoint: Endpoint, body: dict[str, Any]) -> int | None:
    if not endpoint.generates:
        return 0
    for name in ("max_completion_tokens", "max_tokens"):
        value = body.get(name)
        if value is not None:
            if type(value) is not int or not 1 <= value <= fields.TOKENS_MAX:
                raise _FieldError(name, f"must be a whole number from 1 to {fields.TOKENS_MAX}")
            return value
    return None


def _input(endpoint: Endpoint, body: dict[str, Any], measure: Measure) -> tuple[int, int]:
    if endpoint is CHAT:
        _check_messages(body.get("messages"))
        return bounds.chat_bound(body, measure), 1
    name = endpoint.input_field
    if name not in body:
        raise _FieldError(name, "is required")
    prompts = body[name]
    if isinstance(prompts, list) and len(prompts) > fields.PROMPTS_MAX and not isinstance(prompts[0], int):
        raise _FieldError(name, f"has more than {fields.PROMPTS_MAX} prompts")
    try:
        return bounds.prompts_bound(prompts, measure)
    except ValueError as error:
        raise _FieldError(name, str(error)) from error


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise _FieldError("messages", "must be a list of at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _FieldError(f"messages[{index}]", "must be an object")
        if not isinstance(message.get("role"), str):
            raise _FieldError(f"messages[{index}].role", "must be a string")
        if not isinstance(message.get("content"), str | list | None):
            raise _FieldError(f"messages[{index}].content", "must be a string or a list of parts")


def _tool_names(body: dict[str, Any]) -> tuple[str, ...]:
    return tuple(sorted({tool.name for field in TOOL_FIELDS for tool in tools_in(body, field)}))


def tools_in(body: dict[str, Any], field: str) -> list[Tool]:
    """The tools that one of `TOOL_FIELDS` offers, in its order; raises ValueError where one cannot be told."""
    tools = body.get(field)
    if not tools:
        return []
    if not isinstance(tools, list) or len(tools) > TOOLS_MAX:
        raise _FieldError(field, f"must be a list of at most {TOOLS_MAX} tools")
    is_bare = field == "functions"
    return [_tool({_FUNCTION: tool} if is_bare else tool, field, place) for place, tool in enumerate(tools)]


def _tool(tool: Any, field: str, place: int) -> Tool:
    if not isinstance(tool, dict):
        raise _FieldError(f"{field}[{place}]", "must be an object")
    kind = tool.get("type")
    if kind is None:
        kind = _FUNCTION
    body: Any = {"name": kind}
    if kind in _MADE_UP:
        body = tool.get(kind)
    name = body.get("name") if isinstance(body, dict) else None
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARS_MAX:
        why = f"must have a type, and a function a name, of 1 to {NAME_CHARS_MAX} characters"
        raise _FieldError(f"{field}[{place}]", why)
    for other in _MADE_UP:
        # A runtime may go by the body, whatever the type says.
        if other != kind and tool.get(other) is not None:
            raise _FieldError(f"{field}[{place}]", f"must have no `{other}`, for that is not its type")
    return Tool(kind, name, body.get("parameters"))
