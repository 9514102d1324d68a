"""The request id that a client sent as `X-Request-Id`, found again in the ids that vLLM makes of it."""

from __future__ import annotations

import re

# The n choices of one request are told apart by a number before, its prompts by one behind.
CHAT = re.compile(r"(?:\d+_)?chatcmpl-(.+)", re.DOTALL)
ITEM = re.compile(r"(?:\d+_)?(?:cmpl|embd|pooling|classify|score)-(.+?)-\d+", re.DOTALL)
RANDOM = re.compile(r"-[0-9a-f]{8}")
RANDOM_CHARS = 9


def sent_id(request_id: str, *, internal: bool) -> str:
    """What the client called the request, or vLLM's own id where the client gave none that can be told apart.

    With `internal` the id is the engine's, to which vLLM 0.32 adds a dash and eight random characters.
    """
    if internal and RANDOM.fullmatch(request_id[-RANDOM_CHARS:]):
        request_id = request_id[:-RANDOM_CHARS]
    found = CHAT.fullmatch(request_id) or ITEM.fullmatch(request_id)
    return found[1] if found else request_id
