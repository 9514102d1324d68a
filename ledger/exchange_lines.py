"""The lines of an exchange: what a counter is called in the store of a shared book, and what is said of it there."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from ledger.book import Route
from ledger.counters import Cell, Counter
from ledger.holds import Demand

UNSEEN = -1


def name_of(counter: Counter) -> str:
    """The name of a counter in the store; another resource or window is another account."""
    budget = counter.budget
    return f"{budget.id}|{budget.resource}|{budget.window.text}|{counter.name}"


def tag_of(counter_name: str) -> str:
    """The hash tag of a counter: its organisation, or `-` when its scope names none."""
    first = counter_name.split(",", 1)[0]
    return quote(first.removeprefix("org=")) if first.startswith("org=") else "-"


def of_tag(counters: Iterable[Counter], tag: str) -> Iterator[Counter]:
    """The counters of one tag, found without making the tag of each."""
    org = f"org={unquote(tag)}"
    more = f"{org},"
    for counter in counters:
        name = counter.name
        if name == org or name.startswith(more) or (tag == "-" and not name.startswith("org=")):
            yield counter


@dataclass(slots=True, eq=False)
class Want:
    """What one request asks of the shared book; `recalls` is the last recall of each counter before it asked of it."""

    route: Route
    demand: Demand
    asked_at_s: float = 0.0
    recalls: dict[str, int] = field(default_factory=dict)


class Need(NamedTuple):
    """How much is needed of one counter, and the last recall before the newest of those who need it asked.

    That is UNSEEN where it is not known yet.
    """

    amount: int
    recall: int


def needs(wants: Iterable[Want]) -> Mapping[str, Need]:
    """What those who wait need together of each counter, at their largest output caps."""
    found: dict[str, Need] = {}
    for want in wants:
        amounts = want.demand.at(want.demand.cap_max)
        for counter, index, hard in want.route.counters:
            if hard:
                name = name_of(counter)
                recall, other = want.recalls.get(name, UNSEEN), found.get(name)
                if other is not None:
                    recall = UNSEEN if UNSEEN in {recall, other.recall} else max(recall, other.recall)
                found[name] = Need(amounts[index] + (other.amount if other is not None else 0), recall)
    return found


def cells_of(counter: Counter, *, is_whole: bool) -> tuple[list[tuple[Cell, int]], list[list[int]]]:
    """The cells that the store must hear of, the current one last: [start, reported, spent, used, lease] of each."""
    spent, lines = [], []
    for cell in (*(each for each in counter.cells if each is not counter.cell), counter.cell):
        used = cell.spent + cell.held
        if cell is not counter.cell:
            if not is_whole and cell.lease == used and cell.reported == cell.spent:
                continue
            cell.lease = used
        spent.append((cell, cell.spent))
        lines.append([cell.start_s, cell.reported, cell.spent, used, cell.lease])
    return spent, lines


def given_up(name: str) -> dict[str, Any]:
    """A line that gives back all that the store still has for this replica on a counter that it does not keep."""
    line: dict[str, Any] = {"name": name, "limit": 0, "hard": False, "from_s": 0, "old_s": 0, "span_s": 0, "ttl_s": 0}
    return line | {"whole": True, "cells": [], "need": 0, "want": 0, "tight": True, "gen": UNSEEN}
