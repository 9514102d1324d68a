"""Reconciliation: what a runtime's own counters must show, given the rows of the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from gateway.metering import STEPS_IN_FLIGHT

Row = Mapping[str, Any]

STEPS_UNNOTICED = 8  # steps vLLM may take, on the cores it shares with the tests, before it sees that a client left


class Bounds(NamedTuple):
    """The least and the most that a counter can have grown."""

    least: int
    most: int

    def __add__(self, other: object) -> Bounds:
        if not isinstance(other, Bounds):
            return NotImplemented
        return Bounds(self.least + other.least, self.most + other.most)

    def __contains__(self, count: object) -> bool:
        return isinstance(count, int) and self.least <= count <= self.most

    def __str__(self) -> str:
        return str(self.least) if self.is_exact else f"{self.least} to {self.most}"

    @property
    def is_exact(self) -> bool:
        """Whether there is no doubt."""
        return self.least == self.most


NOTHING = Bounds(0, 0)


class Expected(NamedTuple):
    """What one request, or many, made a runtime count."""

    prompt: Bounds
    generation: Bounds


def expected(row: Row, choices: int = 1) -> Expected:
    """What the request of one row made vLLM count, which takes each prompt once for each of `n` choices.

    A row is exact where the answer was complete. Where the client left after a usage report, the row has the report and
    the steps in flight, of which each choice may or may not have taken its, and vLLM may have gone on for a few more:
    `at_least` says so. Where it left before the first report, the row has the bound of its prompt, and vLLM counts the
    prompt only once it samples a token.
    """
    prompt, output = row["input_tokens"], row["output_tokens"]
    in_flight, unnoticed = STEPS_IN_FLIGHT * choices, STEPS_UNNOTICED * choices
    if row["certainty"] == "exact":
        return Expected(Bounds(prompt * choices, prompt * choices), Bounds(output, output))
    if row["certainty"] == "at_least":
        return Expected(Bounds(prompt, prompt * choices), Bounds(output - in_flight, output + unnoticed))
    most = output + unnoticed if row["stream"] else output  # without a stream, the whole output bound is charged
    return Expected(Bounds(0, prompt * choices), Bounds(0, most))


def expected_of_all(rows: Iterable[Row], choices: Mapping[str, int]) -> Expected:
    """The sum over rows; `choices` has those that asked for more than one, by the client's request id."""
    prompt, generation = NOTHING, NOTHING
    for row in rows:
        of_row = expected(row, choices.get(row["client_request_id"], 1))
        prompt += of_row.prompt
        generation += of_row.generation
    return Expected(prompt, generation)
