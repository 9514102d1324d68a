"""What a client asks for: OpenAI request bodies as checked values with tokenized prompts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from runtime.sim.errors import BadRequest
from runtime.sim.fields import flag_field, int_field, parse_object, text_field, texts_field
from runtime.sim.tokenizer import VOCAB_SIZE, encode, encode_chat

SEQUENCES_MAX: Final = 1_024
"""Prompts times `n` in one request."""
_N_MAX: Final = 128
_STOP_MAX: Final = 16
_MESSAGES_MAX: Final = 8_192
_EMBEDDING_DIMENSIONS: Final = 256
_EMBEDDING_DIMENSIONS_MAX: Final = 4_096

Endpoint = Literal["chat", "completions"]


@dataclass(frozen=True, slots=True)
class GenerationAsk:
    """A chat (one prompt) or completion (one or more prompts) request; `max_tokens` is per sequence."""

    endpoint: Endpoint
    model: str
    prompts: list[list[int]]
    n: int
    max_tokens: int | None
    stop: tuple[str, ...]
    seed: int
    ignore_eos: bool
    cache_salt: str
    priority: int
    stream: bool
    include_usage: bool
    continuous_usage: bool


@dataclass(frozen=True, slots=True)
class EmbeddingAsk:
    """A request for one vector per prompt."""

    model: str
    prompts: list[list[int]]
    dimensions: int
    base64: bool


def parse_chat(raw: bytes) -> GenerationAsk:
    """A `/v1/chat/completions` body; raises BadRequest."""
    body = parse_object(raw)
    model = text_field(body, "model")
    messages = list(_messages(body))
    if body.get("tools"):
        messages.insert(0, ("system", orjson.dumps(body["tools"]).decode()))
    limit_name = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    return _generation("chat", model, body, [encode_chat(messages)], limit_name)


def parse_completion(raw: bytes) -> GenerationAsk:
    """A `/v1/completions` body; raises BadRequest."""
    body = parse_object(raw)
    model = text_field(body, "model")
    for name in ("echo", "logprobs", "suffix"):
        if body.get(name):
            raise BadRequest(f"The simulator does not support '{name}'", name, "unsupported_parameter")
    return _generation("completions", model, body, _prompts(body, "prompt"), "max_tokens")


def parse_embedding(raw: bytes) -> EmbeddingAsk:
    """A `/v1/embeddings` body; raises BadRequest."""
    body = parse_object(raw)
    model = text_field(body, "model")
    encoding = text_field(body, "encoding_format", "float")
    if encoding not in {"float", "base64"}:
        raise BadRequest("'encoding_format' must be 'float' or 'base64'", "encoding_format")
    dimensions = int_field(body, "dimensions", 1, _EMBEDDING_DIMENSIONS_MAX)
    prompts = _prompts(body, "input")
    return EmbeddingAsk(model, prompts, dimensions or _EMBEDDING_DIMENSIONS, encoding == "base64")


def _generation(
    endpoint: Endpoint, model: str, body: dict[str, Any], prompts: list[list[int]], limit_name: str
) -> GenerationAsk:
    if endpoint == "chat" and flag_field(body, "logprobs"):
        raise BadRequest("The simulator does not support 'logprobs'", "logprobs", "unsupported_parameter")
    n = int_field(body, "n", 1, _N_MAX) or 1
    if (int_field(body, "best_of", 1) or n) != n:
        raise BadRequest("'best_of' must equal 'n'", "best_of", "unsupported_parameter")
    if n * len(prompts) > SEQUENCES_MAX:
        raise BadRequest(f"Prompts times 'n' is {n * len(prompts)}, at most {SEQUENCES_MAX} are allowed", "n")
    stream = flag_field(body, "stream")
    include_usage, continuous_usage = _usage_options(body, stream=stream)
    return GenerationAsk(
        endpoint=endpoint,
        model=model,
        prompts=prompts,
        n=n,
        max_tokens=int_field(body, limit_name, 1),
        stop=texts_field(body, "stop", _STOP_MAX),
        seed=int_field(body, "seed") or 0,
        ignore_eos=flag_field(body, "ignore_eos"),
        cache_salt=text_field(body, "cache_salt", ""),
        priority=int_field(body, "priority") or 0,
        stream=stream,
        include_usage=include_usage,
        continuous_usage=continuous_usage,
    )


def _usage_options(body: dict[str, Any], *, stream: bool) -> tuple[bool, bool]:
    options = body.get("stream_options")
    if options is None:
        return False, False
    if not isinstance(options, dict):
        raise BadRequest("'stream_options' must be an object", "stream_options")
    if not stream:
        raise BadRequest("'stream_options' is only allowed when 'stream' is true", "stream_options")
    include = flag_field(options, "include_usage")
    # As in vLLM, continuous statistics come only with include_usage.
    return include, flag_field(options, "continuous_usage_stats") and include


def _messages(body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("'messages' must be a non-empty list", "messages")
    if len(messages) > _MESSAGES_MAX:
        raise BadRequest(f"'messages' has more than {_MESSAGES_MAX} items", "messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest(f"'messages[{index}]' must be an object with a 'role'", "messages")
        text = _content_text(message.get("content"), index) + text_field(message, "name", "")
        if message.get("tool_calls"):
            text += orjson.dumps(message["tool_calls"]).decode()
        yield message["role"], text


def _content_text(content: object, index: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content
        ]
        strings = [text for text in texts if isinstance(text, str)]
        if len(strings) == len(texts):
            return "".join(strings)
    raise BadRequest(f"'messages[{index}].content' must be a string or a list of text parts", "messages")


def _prompts(body: dict[str, Any], name: str) -> list[list[int]]:
    """A string, a list of strings, a list of token ids or a list of lists of them, as token lists."""
    value = body.get(name)
    if isinstance(value, str) or _is_tokens(value):
        value = [value]
    if not isinstance(value, list) or not value:
        raise BadRequest(f"'{name}' must be a string, a list of strings, or lists of token ids", name)
    if len(value) > SEQUENCES_MAX:
        raise BadRequest(f"'{name}' has {len(value)} items, at most {SEQUENCES_MAX} are allowed", name)
    return [_prompt_tokens(prompt, name) for prompt in value]


def _is_tokens(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _prompt_tokens(prompt: object, name: str) -> list[int]:
    if isinstance(prompt, str) and prompt:
        return encode(prompt)
    if not isinstance(prompt, list) or not _is_tokens(prompt):
        raise BadRequest(f"'{name}' has an item that is neither a non-empty string nor a list of token ids", name)
    if min(prompt) < 0 or max(prompt) >= VOCAB_SIZE:
        raise BadRequest(f"'{name}' has a token id outside 0 to {VOCAB_SIZE - 1}", name)
    return prompt
