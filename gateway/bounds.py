"""Input bounds: the most tokens that a request's input can be, known before it is sent.

With the model's tokenizer the text is counted exactly; without it, a token is never shorter than one UTF-8 byte. What
the chat template adds comes from the model's configuration. Anything that is not text counts as the whole context.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import orjson

from gateway.fields import CONTEXT_BOUND

# Templates introduce tools with a paragraph of their own (Qwen3's takes about 150 tokens).
TOOLS_PREAMBLE_TOKENS = 512
_TEXT_FIELDS = ("tools", "functions", "response_format", "structured_outputs")


class Measure(NamedTuple):
    """How one model's input is bounded; `count` is the tokens of a text."""

    count: Callable[[str], int]
    context_tokens: int
    per_message_tokens: int
    fixed_tokens: int


def count_bytes(text: str) -> int:
    """The bound on a text's tokens without a tokenizer: its UTF-8 bytes."""
    return len(text.encode(errors="surrogatepass"))


def chat_bound(body: dict[str, Any], measure: Measure) -> int:
    """The most tokens a chat request's messages, tools and template can be."""
    if not CONTEXT_BOUND.isdisjoint(body):
        return measure.context_tokens
    total = measure.fixed_tokens
    for message in body["messages"]:
        total += measure.per_message_tokens
        for name, value in message.items():
            if isinstance(value, str):
                total += measure.count(value)
            elif value is not None:
                added = _parts(value, measure) if name == "content" else _rendered(value, measure)
                if added is None:
                    return measure.context_tokens
                total += added
    for name in _TEXT_FIELDS:
        if body.get(name):
            total += TOOLS_PREAMBLE_TOKENS + _rendered(body[name], measure)
    return min(total, measure.context_tokens)


def prompts_bound(prompts: Any, measure: Measure) -> tuple[int, int]:
    """The most tokens of a `prompt` or `input`, and how many prompts it is: a text, token ids, or a list of either.

    Raises ValueError when it is something else.
    """
    bound = _prompt_bound(prompts, measure)
    if bound is not None:
        return bound, 1
    bounds = [_prompt_bound(prompt, measure) for prompt in prompts] if isinstance(prompts, list) else []
    known = [each for each in bounds if each is not None]
    if not known or len(known) != len(bounds):
        raise ValueError("must be a string, a list of strings, a list of token ids or a list of such lists")
    return sum(known), len(known)


def _prompt_bound(prompt: Any, measure: Measure) -> int | None:
    """The most tokens of one prompt, a text or token ids; None when it is neither."""
    if isinstance(prompt, str):
        return min(measure.count(prompt) + measure.fixed_tokens, measure.context_tokens)
    if isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        return min(len(prompt) + measure.fixed_tokens, measure.context_tokens)
    return None


def _parts(content: Any, measure: Measure) -> int | None:
    """The tokens of a content list of text parts; None as soon as a part is not text."""
    if not isinstance(content, list):
        return None
    total = 0
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            return None
        total += measure.count(text)
    return total


def _rendered(value: Any, measure: Measure) -> int:
    """The tokens of JSON as a template may print it: indented by four and escaped, which is the longest way."""
    # Python's own encoder indents a hundred times slower, and every other request would wait for it.
    text = orjson.dumps(value, option=orjson.OPT_INDENT_2).decode().replace("  ", "    ")
    return measure.count(text if text.isascii() else json.dumps(text))
