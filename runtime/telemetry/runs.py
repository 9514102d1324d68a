"""Runs: which engines of a folder belong to a run of the runtime that is over, though they never said that they end.

A runtime that was killed and comes back with fewer engines leaves the segments of the others behind. An engine that has
nothing to do writes nothing either, so it takes what the runtime shows of itself to tell the two apart.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Heard(NamedTuple):
    """When an engine that has not said that it ends was started, and of when its last word is; Unix microseconds."""

    began_us: int
    told_us: int


def left_behind(engines: Mapping[str, Heard], shown: int | None) -> set[str]:
    """The engines that are gone, by their source, of a runtime whose `/metrics` shows so many; None where it is silent.

    These are none of the so many that were started last, and have said nothing since another one was started.
    """
    if shown is None or shown >= len(engines):
        return set()
    by_start = sorted(engines, key=lambda source: (engines[source].began_us, source))
    newest_us = max(heard.began_us for heard in engines.values())
    return {source for source in by_start[: len(engines) - shown] if engines[source].told_us < newest_us}
