"""Unheard: requests that were charged for accelerator time and that their engine never computed.

A client may leave while its request still waits in the engine's queue. Nothing was seen of it, so it was charged its
bound; the engine's telemetry, which names every request that it computes, shows that it took nothing.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.engine_accounts import EngineAccounts

UNHEARD_MAX = 20_000


@dataclass(slots=True)
class _Settled:
    """A request that may not have been computed: where, when it was settled, and what was missing by then."""

    runtime: str
    settled_us: int
    losses: int


class Unheard:
    """The requests of one worker of which their engine has said nothing yet."""

    def __init__(self) -> None:
        self._settled: OrderedDict[str, _Settled] = OrderedDict()

    def take(self, row: Mapping[str, Any], engines: Mapping[str, EngineAccounts]) -> None:
        """Take up a settlement of which it is not known whether anything was computed."""
        at = engines.get(row.get("runtime", ""))
        if at is None or row["certainty"] != "at_most" or not row.get("gpu_us"):
            return
        self._settled[row["request_id"]] = _Settled(at.runtime.id, row["ts_us"], at.losses)
        if len(self._settled) > UNHEARD_MAX:
            self._settled.popitem(last=False)

    def never_computed(self, engines: Mapping[str, EngineAccounts]) -> list[tuple[str, str]]:
        """The (runtime, request id) of those that took nothing, each once.

        That is known once every engine of the runtime has computed a step that began after the settlement, none of its
        telemetry is missing since, and none of them has the request. Where something is missing the charge stays.
        """
        found = []
        for request_id, settled in list(self._settled.items()):
            at = engines.get(settled.runtime)
            if at is None or at.losses != settled.losses:
                del self._settled[request_id]
            elif at.told_until_us > settled.settled_us and not at.knows(request_id):
                del self._settled[request_id]
                found.append((settled.runtime, request_id))
        return found
