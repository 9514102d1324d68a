"""Budgets that get looser: what one revision of a budget lets through and the one before did not.

A revision is no looser where everything that fits it, from the change on too, also would have fitted the one before. So
a window may only become longer: however low the limit of a shorter one, what was spent in the old one counts in it no
more.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ledger.windows import Window, parse_window

_ORDER = ("minute", "hour", "day", "month", "total")
_ON_UNAVAILABLE = ("deny", "lease", "allow")

Section = Mapping[str, Any]


class Loosening(NamedTuple):
    """One thing that gets looser: where, what it was and what it becomes, and a sentence that says why it is looser."""

    path: str
    before: Any
    after: Any
    why: str


def budget_loosenings(path: str, before: Section, after: Section, *, is_shared: bool) -> Iterator[Loosening]:
    """What a new revision of a budget lets through that the old one did not; `is_shared`: Redis keeps the counters."""

    def looser(field: str, why: str) -> Loosening:
        return Loosening(f"{path}.{field}", before[field], after[field], why)

    if before["resource"] != after["resource"]:
        yield looser("resource", "what the budget counted is limited by it no more")
    if not _covers(before["scope"], after["scope"]):
        yield looser("scope", "some requests that fell under the budget no longer do, or its counters begin anew")
    yield from _limits(path, before, after, is_shared=is_shared)
    if (before["mode"], after["mode"]) == ("hard", "soft"):
        yield looser("mode", "a soft budget counts and warns, and refuses nothing")
    if any(new > old for old, new in zip(before["thresholds"], after["thresholds"], strict=True)):
        yield looser("thresholds", "policy hears later that the budget runs out")
    if _ON_UNAVAILABLE.index(after["on_unavailable"]) > _ON_UNAVAILABLE.index(before["on_unavailable"]):
        yield looser("on_unavailable", "more is let through while the shared book cannot be asked")


def outlasts(old: Window, new: Window) -> bool:
    """Whether a window counts all that the old one does, for at least as long: now, and after a change to it."""
    if old == new or new.kind == "total":
        return True
    if old.kind == "total" or (old.kind == "rolling" and new.kind != "rolling"):
        return False
    if new.kind == "rolling":
        # A charge may count until the last instant of its cell is a whole window old.
        return old.duration_s + (old.cell_s if old.kind == "rolling" else 0) <= new.duration_s
    return _ORDER.index(new.kind) > _ORDER.index(old.kind)


def _limits(path: str, before: Section, after: Section, *, is_shared: bool) -> Iterator[Loosening]:
    if before["window"] == after["window"]:
        if after["limit"] > before["limit"]:
            yield Loosening(f"{path}.limit", before["limit"], after["limit"], "more fits the same window")
        return
    was, becomes = (f"{each['limit']} per {each['window']}" for each in (before, after))
    if not outlasts(parse_window(before["window"]), parse_window(after["window"])):
        yield Loosening(f"{path}.window", was, becomes, "what was spent is forgotten earlier, or counted anew")
    elif after["limit"] > before["limit"]:
        yield Loosening(f"{path}.window", was, becomes, "more can fit what was one window")
    elif is_shared:
        yield Loosening(f"{path}.window", was, becomes, "a shared book counts another window from nothing")


def _covers(before: Section, after: Section) -> bool:
    """Whether every request still falls on a counter that goes on: the same dimensions, each as it was or any value."""
    old, new = ({name: value for name, value in each.items() if value is not None} for each in (before, after))
    return old.keys() == new.keys() and all(new[name] in (value, "*") for name, value in old.items())
