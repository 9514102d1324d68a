"""Contexts: what a model has read and written so far, as a number of tokens and the ids of the blocks they fill."""

from typing import NamedTuple


class Context(NamedTuple):
    """So many tokens, and an id for each block that they fill; the rest of them has no id yet, for it may go on."""

    tokens: int
    blocks: tuple[int, ...]


EMPTY = Context(0, ())


class Ids:
    """Gives ids to blocks, 0, 1, 2 and so on, so that a block has the id of another only where it was grown from it."""

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._next = 0

    def grown(self, context: Context, tokens: int) -> Context:
        """The context with so many tokens of its own behind it: a block that both fill is its own too."""
        total = context.tokens + tokens
        return Context(total, context.blocks + self._fresh(total // self.block_tokens - len(context.blocks)))

    def covering(self, context: Context) -> tuple[int, ...]:
        """An id for every token of the context, those of a last block that is not filled included."""
        return context.blocks + self._fresh(int(context.tokens % self.block_tokens > 0))

    def _fresh(self, count: int) -> tuple[int, ...]:
        first = self._next
        self._next += count
        return tuple(range(first, self._next))
