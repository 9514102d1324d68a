"""The blocks of a workload as those of an engine, which may be smaller or larger."""

from collections.abc import Sequence

from runtime.workload.port import Arrival, WorkloadError


class BlockMap:
    """Makes the engine's block hashes of a request from the workload's prefix-chained ids; WorkloadError if it cannot.

    One of the two sizes must divide the other. A workload's block of 512 tokens is 32 of the engine's of 16.
    """

    def __init__(self, block_tokens: int, block_size: int) -> None:
        if block_tokens < 1 or (block_tokens % block_size and block_size % block_tokens):
            raise WorkloadError(
                f"the workload's blocks of {block_tokens} tokens and the engine's of {block_size} do not fit together: "
                "set a block_size that divides the workload's, or a multiple of it"
            )
        self._block_tokens = block_tokens
        self._block_size = block_size

    def hashes(self, arrival: Arrival) -> Sequence[int]:
        """One for each whole block of the engine whose content is known."""
        blocks = arrival.blocks
        if not blocks:
            return ()
        count = known_tokens(arrival, self._block_tokens) // self._block_size
        if self._block_size == self._block_tokens:
            return blocks[:count]
        if self._block_size > self._block_tokens:
            wide = self._block_size // self._block_tokens
            return blocks[wide - 1 : count * wide : wide]
        parts = self._block_tokens // self._block_size
        hashes = [block * parts + part for block in blocks for part in range(parts)]
        del hashes[count:]
        return hashes


def known_tokens(arrival: Arrival, block_tokens: int) -> int:
    """How many tokens of a request, from its begin, its ids stand for."""
    end = len(arrival.blocks) * block_tokens
    # The id that the prompt ends in stands for what the prompt has of that block, unless ids go on into the output.
    goes_on = len(arrival.blocks) > -(-arrival.prompt_tokens // block_tokens)
    return min(end, arrival.prompt_tokens + (arrival.output_tokens if goes_on else 0))
