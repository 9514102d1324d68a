"""The fields of a request that can multiply its work: each is bounded, clamped or refused.

Every other field that Bursar does not know reaches the runtime untouched.
"""

from typing import Any

CHOICES_MAX = 128
PROMPTS_MAX = 2048
TOKENS_MAX = 1 << 31

# field -> why it is refused: work or state that the hold could not bound.
REFUSED: dict[str, str] = {
    "use_beam_search": "beam search multiplies the work of a request without showing it in usage",
    "kv_transfer_params": "it steers where the runtime moves its KV cache",
    "previous_response_id": "the stored conversation it names cannot be bounded here",
    "background": "work that outlives its request cannot be held",
    "web_search_options": "searches are billed apart from tokens",
    "prompt_embeds": "embeddings of unknown length cannot be bounded",
}

# With any of these the length of the prompt does not follow from its text: it is bounded by the whole context.
CONTEXT_BOUND = frozenset(
    {"chat_template", "chat_template_kwargs", "documents", "mm_processor_kwargs", "media_io_kwargs"}
)

# Bursar's to set, whatever the client said.
OWNED = frozenset({"priority", "cache_salt", "request_id"})


def choices(body: dict[str, Any]) -> int:
    """How many outputs are generated per prompt: `n`, or `best_of` where that is more.

    Raises ValueError naming the field when either is not a whole number in range.
    """
    return max(_count(body, "n"), _count(body, "best_of"))


def _count(body: dict[str, Any], name: str) -> int:
    value = body.get(name)
    if value is None:
        return 1
    if type(value) is not int or not 1 <= value <= CHOICES_MAX:
        raise ValueError(f"{name} must be a whole number from 1 to {CHOICES_MAX}")
    return value
