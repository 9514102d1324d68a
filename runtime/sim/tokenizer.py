"""A deterministic toy tokenizer and chat template. A text never has more tokens than UTF-8 bytes."""

import re
from collections.abc import Iterable
from typing import Final
from zlib import crc32

VOCAB_SIZE: Final = 1 << 17
TEMPLATE_TOKENS_PER_MESSAGE: Final = 4
"""What the chat template adds to each message: turn, role, newline, end of turn."""
TEMPLATE_TOKENS_PER_PROMPT: Final = 4
"""What the chat template adds once: beginning of text, and the turn, role and newline that the reply follows."""

END_OF_TURN: Final = 2
_BEGIN, _TURN, _NEWLINE = 0, 1, 3
_ROLES = {"system": 4, "user": 5, "assistant": 6, "tool": 7, "developer": 8}
_FIRST_TEXT_ID = 16

# Every character matches one branch, so a text is covered without gaps and each token holds at least one byte of it.
_PIECE = re.compile(r" ?\w{1,8}| ?[^\w\s]{1,4}|\s{1,8}")


def piece_id(piece: str) -> int:
    """The id of one piece of text: a hash that is the same in every process."""
    return crc32(piece.encode()) % (VOCAB_SIZE - _FIRST_TEXT_ID) + _FIRST_TEXT_ID


def encode(text: str) -> list[int]:
    """The token ids of a text, without any template token; raises UnicodeEncodeError on lone surrogates."""
    return [piece_id(piece) for piece in _PIECE.findall(text)]


def encode_chat(messages: Iterable[tuple[str, str]]) -> list[int]:
    """The token ids of a prompt made of (role, text) messages, up to where the assistant's reply begins."""
    tokens = [_BEGIN]
    for role, text in messages:
        tokens += (_TURN, _ROLES.get(role) or piece_id(role), _NEWLINE)
        tokens += encode(text)
        tokens.append(END_OF_TURN)
    tokens += (_TURN, _ROLES["assistant"], _NEWLINE)
    return tokens
