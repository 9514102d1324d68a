"""Trace export: a deployment's own traffic as a workload, with lengths and prefixes as in the ledger and no hash of it.

The ledger knows which prompts begin alike by blocks of bytes; a workload has blocks of tokens. Where a block of bytes
ends in tokens is worked out from the first request that has it, whose tokens are taken to lie evenly over its bytes,
and stays so for all that share it.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

from gateway.prompt_blocks import BLOCK_ENDS_BYTES
from ledger.traffic import Request
from runtime.workload.port import Arrival
from runtime.workload.rows import blocks_of

# Two prompts that are alike in a block and not in the next differ somewhere in that, in its middle on average: so far
# does a hash reach.
REACHES_BYTES = (*((end + after) // 2 for end, after in pairwise(BLOCK_ENDS_BYTES)), BLOCK_ENDS_BYTES[-1])
# As vLLM's blocks are on a GPU unless it is told otherwise.
BLOCK_TOKENS = 16
# Twice as many are remembered at most; what was not seen again within so many new ones is taken for new.
REMEMBERED_MAX = 500_000


class TrafficWorkload:
    """Requests as a workload; `read` begins to read them anew.

    `unrecorded` is how many requests of the last pass say nothing of how their prompts begin.
    """

    block_tokens = BLOCK_TOKENS

    def __init__(self, name: str, read: Callable[[], Iterator[Request]], remembered_max: int = REMEMBERED_MAX) -> None:
        self.name = name
        self._read = read
        self._remembered_max = remembered_max
        self.unrecorded = 0

    def __iter__(self) -> Iterator[Arrival]:
        """The requests in order, timed from the first."""
        prefixes = Prefixes(self.block_tokens, self._remembered_max)
        first_us, self.unrecorded = -1, 0
        for request in self._read():
            first_us = request.arrived_us if first_us < 0 else first_us
            blocks = prefixes.blocks(request) if request.prompt_bytes else ()
            self.unrecorded += not blocks
            yield Arrival(request.arrived_us - first_us, request.input_tokens, request.output_tokens, blocks)


class _Block(NamedTuple):
    """What a hash stands for: the token it reaches to, and the ids of the blocks of tokens since the hash before."""

    end_tokens: int
    first_id: int
    ids: int


class Prefixes:
    """Gives ids to the blocks of prompts, dense and in the order in which they are first seen."""

    def __init__(self, block_tokens: int, remembered_max: int) -> None:
        self._block_tokens = block_tokens
        self._remembered_max = remembered_max
        self._recent: dict[int, _Block] = {}
        self._before: dict[int, _Block] = {}
        self._next_id = 0

    def blocks(self, request: Request) -> tuple[int, ...]:
        """An id for every token of a prompt: those of what it shares, and then its own."""
        tokens, begin_bytes, is_new, ids = 0, 0, False, list[int]()
        for reach_bytes, hashed in zip(REACHES_BYTES, request.prompt_blocks, strict=False):
            block = None if is_new else self._found(hashed)
            end_bytes = min(reach_bytes, request.prompt_bytes)
            if block is None:
                # What is behind something new is new too, whatever is still remembered of it.
                is_new = True
                left_bytes = request.prompt_bytes - begin_bytes
                tokens += (request.input_tokens - tokens) * (end_bytes - begin_bytes) // left_bytes
                block = self._fresh(tokens, tokens // self._block_tokens - len(ids))
            self._remember(hashed, block)
            # It may be more tokens where it was first seen than this whole prompt has.
            fitting = min(block.ids, request.input_tokens // self._block_tokens - len(ids))
            ids.extend(range(block.first_id, block.first_id + fitting))
            if block.end_tokens > request.input_tokens:
                break
            tokens, begin_bytes = block.end_tokens, end_bytes
        rest = self._fresh(request.input_tokens, blocks_of(request.input_tokens, self._block_tokens) - len(ids))
        return (*ids, *range(rest.first_id, rest.first_id + rest.ids))

    def _fresh(self, end_tokens: int, ids: int) -> _Block:
        self._next_id += ids
        return _Block(end_tokens, self._next_id - ids, ids)

    def _found(self, hashed: int) -> _Block | None:
        return self._recent.get(hashed) or self._before.get(hashed)

    def _remember(self, hashed: int, block: _Block) -> None:
        self._recent[hashed] = block
        if len(self._recent) >= self._remembered_max:
            self._before, self._recent = self._recent, {}
