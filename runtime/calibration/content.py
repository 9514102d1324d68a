"""Prompts as token ids, such that exactly the prefixes are equal that a workload says are equal."""

from collections.abc import Sequence
from hashlib import shake_128
from typing import Final

from runtime.workload.port import Arrival

# Every byte-level vocabulary has these ids and holds ordinary text there, no marker of a template.
_FIRST_ID: Final = 32
_IDS: Final = 224


class Content:
    """The tokens that the blocks of a workload stand for; a salt of its own keeps runs from finding each other's cache.

    A block's tokens follow from its id, except where an output filled it: then they are what the engine produced, for a
    conversation's next turn holds the answer to the turn before.
    """

    def __init__(self, salt: str, block_tokens: int, arrivals: Sequence[Arrival]) -> None:
        self._salt = salt
        self._block_tokens = block_tokens
        self._produced: dict[int, tuple[int, ...]] = {}
        cut = _cut_blocks(arrivals, block_tokens)
        whole = {block for index, each in enumerate(arrivals) for block in _whole_blocks(each, block_tokens)}
        self._shared_outputs = cut & whole

    def is_fixed(self, arrival: Arrival) -> bool:
        """Whether its prompt is known before anything was produced."""
        return self._shared_outputs.isdisjoint(arrival.blocks)

    def wants_output(self, arrival: Arrival) -> bool:
        """Whether a later prompt may hold what this request produces."""
        return not self._shared_outputs.isdisjoint(_cut_of(arrival, self._block_tokens))

    def prompt(self, index: int, arrival: Arrival) -> list[int]:
        """The prompt of one request: its blocks, and after them tokens that no other prompt has."""
        tokens: list[int] = []
        for block in arrival.blocks:
            if len(tokens) >= arrival.prompt_tokens:
                break
            tokens += self._produced.get(block) or _tokens(f"{self._salt}/b{block}", self._block_tokens)
        missing = arrival.prompt_tokens - len(tokens)
        if missing > 0:
            tokens += _tokens(f"{self._salt}/r{index}", missing)
        return tokens[: arrival.prompt_tokens]

    def produced(self, arrival: Arrival, prompt: Sequence[int], output: Sequence[int]) -> None:
        """Note what a request produced, for the prompts that hold it."""
        size, text = self._block_tokens, [*prompt, *output]
        for at in range(arrival.prompt_tokens // size, min(len(arrival.blocks), -(-len(text) // size))):
            block, tokens = arrival.blocks[at], text[at * size : (at + 1) * size]
            tokens += _tokens(f"{self._salt}/b{block}", size)[len(tokens) :]
            self._produced[block] = tuple(tokens)


def _tokens(key: str, count: int) -> list[int]:
    return [_FIRST_ID + byte % _IDS for byte in shake_128(key.encode()).digest(count)]


def _cut_of(arrival: Arrival, size: int) -> tuple[int, ...]:
    """Those blocks of a request that its prompt does not fill."""
    return arrival.blocks[arrival.prompt_tokens // size :]


def _whole_blocks(arrival: Arrival, size: int) -> tuple[int, ...]:
    return arrival.blocks[: arrival.prompt_tokens // size]


def _cut_blocks(arrivals: Sequence[Arrival], size: int) -> set[int]:
    return {block for each in arrivals for block in _cut_of(each, size)}
