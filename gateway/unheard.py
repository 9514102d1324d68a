"""Unheard: requests that were charged for accelerator time and that their engine never computed.

A client may leave while its request still waits in the engine's queue. Nothing was seen of it, so it was charged its
bound; the engine's telemetry, which names every request that it computes, shows that it took nothing.
"""

from collections import OrderedDict
from collections.abc import Container, Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from gateway.engine_accounts import EngineAccounts

UNHEARD_MAX = 20_000
AT_ONCE = 500


class _Settled(NamedTuple):
    """When a request was settled that may not have been computed, and what was missing by then."""

    settled_us: int
    losses: int


class Unheard:
    """The requests of one worker of which their engine has said nothing yet: by runtime, in order of settlement."""

    def __init__(self) -> None:
        self._settled: dict[str, OrderedDict[str, _Settled]] = {}

    def take(self, row: Mapping[str, Any], engines: Mapping[str, EngineAccounts]) -> None:
        """Take up a settlement of which it is not known whether anything was computed."""
        at = engines.get(row.get("runtime", ""))
        if at is None or row["certainty"] != "at_most" or not row.get("gpu_us"):
            return
        settled = self._settled.setdefault(at.runtime.id, OrderedDict())
        settled[row["request_id"]] = _Settled(row["ts_us"], at.losses)
        if len(settled) > UNHEARD_MAX:
            settled.popitem(last=False)

    def never_computed(self, engines: Mapping[str, EngineAccounts], named: Container[str]) -> list[tuple[str, str]]:
        """The (runtime, request id) of those that took nothing, each once, and so many at once.

        That is known once every engine of the runtime has computed a step that began after the settlement, none of its
        telemetry is missing since, and none of them has the request. Where something is missing the charge stays.
        `named` are the runtimes that have told of requests by Bursar's ids: the silence of others says nothing yet.
        """
        for runtime in self._settled.keys() - engines.keys():
            del self._settled[runtime]
        return [
            (runtime, request_id)
            for runtime, settled in self._settled.items()
            if runtime in named
            for request_id in islice(_not_computed(settled, engines[runtime]), AT_ONCE)
        ]


def _not_computed(settled: OrderedDict[str, _Settled], at: EngineAccounts) -> Iterator[str]:
    """Take out, oldest first, those that the engines must have come to, and tell which of them they did not compute."""
    losses, told_until_us = at.losses, at.told_until_us
    while settled:
        request_id, each = next(iter(settled.items()))
        is_lost = each.losses != losses
        if not is_lost and each.settled_us >= told_until_us:
            return
        del settled[request_id]
        # What an engine has in its batch it will tell of itself.
        if not is_lost and not at.knows(request_id):
            yield request_id
