"""Affinity: the beginning of a request's prompt, in hashes that are equal only where KV cache can be shared."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from domain.intent import Intent, Principal
from gateway.prompt_blocks import PromptBlocks

_DOMAINS_MAX = 10_000
_DOMAIN_DEFAULT = "app"


class _App(NamedTuple):
    """Whose requests policy puts into one cache domain."""

    org: str
    team: str
    app: str


class Affinity:
    """What the requests of one model begin with.

    A runtime is chosen before policy is asked, for the budgets that policy hears of may be that runtime's own. So the
    cache domain is the one that policy said last for a request of the same app; before the first, the app alone.
    """

    def __init__(self, blocks: PromptBlocks, model: str) -> None:
        self._blocks = blocks
        self._model = model
        self._domains: dict[_App, str] = {}

    def prefix(self, intent: Intent, body: dict[str, Any]) -> Sequence[int]:
        """The hashes of the prompt's first blocks, the shortest beginning first; none of what is not one text."""
        domain = self._domains.get(_app(intent.principal), _DOMAIN_DEFAULT)
        prefix: Sequence[int] = self._blocks.columns(intent, domain, self._model, body).get("prompt_blocks", ())
        return prefix

    def learn(self, principal: Principal, domain: str) -> None:
        """Note the cache domain that policy has put a request of this caller into."""
        app = _app(principal)
        if app not in self._domains and len(self._domains) >= _DOMAINS_MAX:
            self._domains.clear()
        self._domains[app] = domain


def _app(principal: Principal) -> _App:
    return _App(principal.org, principal.team, principal.app)
