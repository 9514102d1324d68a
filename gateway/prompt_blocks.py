"""Prompt blocks: which prompts begin alike, as keyed hashes in the ledger, so that a workload can be told without text.

A prompt's text is the JSON of what a template renders, in that order, and is cut into blocks that end at the same
places in every prompt. Each block's hash is that of all the text up to its end, so equal hashes mean equal beginnings.
"""

from hashlib import blake2b
from itertools import pairwise
from typing import Any

import orjson

from domain.intent import Intent

# Blocks end at 256 bytes, at each 512 up to 4 KiB, then at each eighth of the way to the next power of two, to 512 KiB.
_FIRST_BYTES, _STEP_BYTES, _EVEN_BYTES, _HASHED_BYTES = 256, 512, 4 << 10, 512 << 10


def _ends_bytes() -> tuple[int, ...]:
    ends = [_FIRST_BYTES, *range(_STEP_BYTES, _EVEN_BYTES + 1, _STEP_BYTES)]
    while ends[-1] < _HASHED_BYTES:
        power = ends[-1]
        ends.extend(power + power * eighth // 8 for eighth in range(1, 9))
    return tuple(ends)


BLOCK_ENDS_BYTES = _ends_bytes()
_BLOCKS = tuple(pairwise((0, *BLOCK_ENDS_BYTES)))
_HASH_BYTES = 8
_PERSON = b"bursar-prompt"
_ROOTS_MAX = 10_000
# What a chat template puts before the messages, or that makes it another one.
_BEFORE_MESSAGES = ("chat_template", "chat_template_kwargs", "documents", "tools", "functions")


class PromptBlocks:
    """Hashes the prompts of one deployment; within one cache domain and model equal texts have equal hashes."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._roots: dict[tuple[str, str, str, str, str, str], blake2b] = {}

    def columns(self, intent: Intent, domain: str, model: str, body: dict[str, Any]) -> dict[str, Any]:
        """The columns of a usage row: the text's length in bytes, and the hashes of the blocks that it fills.

        None of what is not one text: several prompts, pictures or sound, an endpoint that generates nothing.
        """
        text = text_of(intent.endpoint, body)
        size = len(text)
        if not size:
            return {}
        if size < _FIRST_BYTES:
            return {"prompt_bytes": size}
        hashing = self._root(intent, domain, model).copy()
        blocks = []
        for begin, end in _BLOCKS:
            if end > size:
                break
            hashing.update(text[begin:end])
            blocks.append(int.from_bytes(hashing.digest(), "little"))
        return {"prompt_bytes": size, "prompt_blocks": blocks}

    def _root(self, intent: Intent, domain: str, model: str) -> blake2b:
        """What the hashes of one domain begin with: as a cache is shared, so they can be compared."""
        org, team, app, _, _, _, _ = intent.principal
        key = (domain, org, team, app, intent.cache_salt, model)
        root = self._roots.get(key)
        if root is None:
            if len(self._roots) >= _ROOTS_MAX:
                self._roots.clear()
            members = {"app": (org, team, app), "team": (org, team), "org": (org,), "shared": ()}[domain]
            # JSON keeps the parts apart, from each other and from the text behind it.
            message = orjson.dumps([domain, members, intent.cache_salt, model])
            root = self._roots[key] = blake2b(message, digest_size=_HASH_BYTES, key=self._key, person=_PERSON)
        return root


def text_of(endpoint: str, body: dict[str, Any]) -> bytes:
    """The text of a request's only prompt, as JSON; empty where it has no such prompt."""
    if endpoint == "chat":
        messages = body["messages"]
        if not all(_is_text(message.get("content")) for message in messages):
            return b""
        before = [orjson.dumps(body[name]) for name in _BEFORE_MESSAGES if body.get(name)]
        return b"".join((*before, orjson.dumps(messages)))
    if endpoint == "completions":
        prompt = body["prompt"]
        if isinstance(prompt, str) or (isinstance(prompt, list) and isinstance(prompt[0], int)):
            return orjson.dumps(prompt)
    return b""


def _is_text(content: Any) -> bool:
    if not isinstance(content, list):
        return True
    return all(isinstance(part, dict) and part.get("type") == "text" for part in content)
