"""Amounts: the vector of everything a request can use up, one integer per resource."""

from typing import Literal, NamedTuple

Resource = Literal[
    "tokens",
    "input_tokens",
    "output_tokens",
    "list_cost_nusd",
    "gpu_cost_nusd",
    "gpu_us",
    "kv_block_us",
    "energy_uj",
    "requests",
    "concurrency",
]


class Amounts(NamedTuple):
    """One integer per resource, in the resource's own unit (tokens, nano-USD, microseconds, microjoules, counts)."""

    tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    list_cost_nusd: int = 0
    gpu_cost_nusd: int = 0
    gpu_us: int = 0
    kv_block_us: int = 0
    energy_uj: int = 0
    requests: int = 0
    concurrency: int = 0


RESOURCES: tuple[str, ...] = Amounts._fields
RESOURCE_INDEX: dict[str, int] = {name: index for index, name in enumerate(RESOURCES)}

MILLION = 1_000_000


def ceil_div(numerator: int, denominator: int) -> int:
    """The quotient of two integers rounded up."""
    return -(-numerator // denominator)


def per_million(rate: int, count: int) -> int:
    """What `count` units cost at `rate` per million of them, rounded up, as a hold rounds."""
    return ceil_div(rate * count, MILLION)
