"""The one workload that every server under measurement is given: what is asked and what must come back."""

from typing import Final

import orjson

MODEL: Final = "bench-model"
CHUNKS: Final = 64
CHUNK_INTERVAL_S: Final = 0.005
PROMPT_TOKENS: Final = 96
CACHED_TOKENS: Final = 64

WORDS: Final = tuple(f" word{index:02d}" for index in range(CHUNKS))
TEXT: Final = "".join(WORDS)

_PROMPT: Final = "Summarise what a budget gateway does with each request it is given. " * 8


def request_body(*, stream: bool) -> bytes:
    """The JSON body of one chat completion; a streamed one asks for the final usage chunk, as billing clients do."""
    body: dict[str, object] = {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "You are a terse assistant."},
            {"role": "user", "content": _PROMPT},
        ],
        "max_tokens": CHUNKS,
        "temperature": 0.0,
    }
    if stream:
        body["stream"] = True
        body["stream_options"] = {"include_usage": True}
    return orjson.dumps(body)
