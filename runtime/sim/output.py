"""The text that the simulator answers: a pure function of prompt tokens and seed."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b, shake_256
from itertools import accumulate
from typing import Final

from runtime.sim.request import FinishReason
from runtime.sim.tokenizer import END_OF_TURN, piece_id

NATURAL_TOKENS_MIN: Final = 16
NATURAL_TOKENS_MAX: Final = 256

_WORD_ROWS = (
    "time year people way day man thing woman life child world school state family student group",
    "country problem hand part place case week company system program question work night point home water",
    "room mother area money story fact month lot right study book eye job word side kind",
    "head house service friend father power hour game line end member law car city name team",
)
_WORDS = [word for row in _WORD_ROWS for word in row.split()]
_TEXTS = [f" {word}" for word in _WORDS]
_IDS = [piece_id(text) for text in _TEXTS]
_FIRST_IDS = [piece_id(word) for word in _WORDS]


@dataclass(frozen=True, slots=True)
class Output:
    """One whole answer: as many texts as tokens, and why it ends. The end-of-turn token has an empty text."""

    tokens: list[int]
    texts: list[str]
    finish_reason: FinishReason
    stop_reason: str | None = None


def write_output(
    prompt_tokens: Sequence[int], *, seed: int, tokens_max: int, ignore_eos: bool, stop: Sequence[str]
) -> Output:
    """The answer to a prompt: of its natural length (by hash), or cut at `tokens_max` or a stop string.

    With `ignore_eos` it is always `tokens_max` long, unless a stop string ends it.
    """
    key = blake2b(array("I", prompt_tokens).tobytes() + seed.to_bytes(16, "big", signed=True), digest_size=32).digest()
    natural = NATURAL_TOKENS_MIN + int.from_bytes(key[:8]) % (NATURAL_TOKENS_MAX - NATURAL_TOKENS_MIN + 1)
    ends = not ignore_eos and natural <= tokens_max
    words = [byte & 63 for byte in shake_256(key).digest(natural - 1 if ends else tokens_max)]
    tokens, texts = [_IDS[word] for word in words], [_TEXTS[word] for word in words]
    if words:
        tokens[0], texts[0] = _FIRST_IDS[words[0]], _WORDS[words[0]]
    if ends:
        tokens.append(END_OF_TURN)
        texts.append("")
    output = Output(tokens, texts, FinishReason.STOP if ends else FinishReason.LENGTH)
    return _cut_at_stop(output, stop) if stop else output


def _cut_at_stop(output: Output, stop: Sequence[str]) -> Output:
    """The output up to the first stop string; the token that completes it still counts, its text does not show."""
    text = "".join(output.texts)
    matches = [(at + len(string), at, string) for string in stop if (at := text.find(string)) >= 0]
    if not matches:
        return output
    end, start, string = min(matches)
    lengths = list(accumulate(map(len, output.texts)))
    count = next(index for index, length in enumerate(lengths) if length >= end) + 1
    texts = [
        piece[: max(0, start - length + len(piece))]
        for piece, length in zip(output.texts[:count], lengths[:count], strict=True)
    ]
    return Output(output.tokens[:count], texts, FinishReason.STOP, string)
