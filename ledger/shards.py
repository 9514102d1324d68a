"""Shards: the counters of one hash slot of the store, and the exchange about them that is under way."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ledger.counters import Cell
from ledger.shares import Share

REPLY_HEAD = 4
_REPLY_LINE = 9


class BadReply(Exception):
    """The store answered what no exchange can be answered with."""


class NameTaken(Exception):
    """Another process exchanges in the name of this replica."""


class Told(NamedTuple):
    """What an exchange tells of one share: what is spent by cell, and what it goes by while it is under way."""

    share: Share
    current: Cell
    spent: list[tuple[Cell, int]]
    limit: int
    asked: int | None


class Exchange(NamedTuple):
    """One exchange, kept as it is until it is answered; `told` has None for a counter that is given up."""

    number: int
    keys: list[str]
    payload: bytes
    serial: str
    names: list[str]
    told: list[Told | None]
    is_join: bool
    is_last: bool


@dataclass(slots=True, eq=False)
class Shard:
    """The counters of one hash slot: the epoch they are in, the last exchange, and what is still to be told.

    `is_named` once all replicas can learn of it. After `failures` of its own it rests until `resumes_at_s`.
    """

    tag: str
    is_named: bool = False
    epoch: str = ""
    serial: str = ""
    is_open: bool = False
    due: dict[str, None] = field(default_factory=dict)
    joining: list[str] | None = None
    told_at_s: float = 0.0
    resumes_at_s: float = 0.0
    failures: int = 0
    is_urgent: bool = False
    in_flight: Exchange | None = None


def channel(tag: str) -> str:
    """Where replicas tell one another that they need something back, or have given it."""
    return f"bursar:{{{tag}}}:recall"


def facts_of(reply: Sequence[bytes], count: int) -> list[list[int]]:
    """The numbers of each line of an answer; BadReply."""
    if len(reply) != REPLY_HEAD + _REPLY_LINE * count:
        raise BadReply(f"the store answered {len(reply)} values to {count} counters")
    try:
        values = [int(value) for value in reply[REPLY_HEAD:]]
    except ValueError as error:
        raise BadReply(f"the store answered no number: {error}") from None
    return [values[at : at + _REPLY_LINE] for at in range(0, len(values), _REPLY_LINE)]
