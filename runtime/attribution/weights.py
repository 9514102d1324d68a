"""Weights: how much more work one token is than another, for sharing out what a step took."""

from typing import NamedTuple

from runtime.step_time import StepTime


class NoWeights(ValueError):
    """Every coefficient is 0, so no work weighs anything and nothing could be shared by it."""


class Weights(NamedTuple):
    """The prices of a step-time model without its base, doubled, so that half a chunk's context is a whole number."""

    prefill_request: int
    prefill_token: int
    prefill_context: int
    decode_request: int
    decode_context: int

    @classmethod
    def of(cls, step_time: StepTime) -> "Weights":
        """The weights of a step-time model; raises NoWeights."""
        prices = step_time.variable_ps()
        if not any(prices):
            raise NoWeights("every coefficient of the step time is 0: give at least one, or leave them out")
        return cls(*[2 * price for price in prices])

    def prefill(self, tokens: int, context: int) -> int:
        """The work of a chunk of so many tokens after a context; none where nothing was computed."""
        if not tokens:
            return 0
        pairs = self.prefill_context * tokens * (2 * context + tokens) // 2
        return self.prefill_request + self.prefill_token * tokens + pairs

    def decode(self, requests: int, contexts: int) -> int:
        """The work of one token for each of some requests, whose contexts before it add up to so many tokens."""
        return self.decode_request * requests + self.decode_context * contexts
