"""Loadings: each bundle that is seen to come into force at one worker is a `policy_loaded` row of the ledger, once."""

from contextlib import suppress

from gateway.controls import Controls
from gateway.governance import Governance
from gateway.signal_sources import Revisions
from ledger.journal import JournalError

POLL = "poll"


class Loadings:
    """What decides at a worker now, as far as it is recorded; what decided when it started is no loading."""

    def __init__(self, of: Governance, controls: Controls) -> None:
        self._of = of
        self._controls = controls
        self._revisions = Revisions(of.decider.revision)
        self._recorded = of.decider.revision

    def record(self, actor: str) -> None:
        """Record the bundle that decides now with the one before it, unless that is known; raises JournalError.

        A server that has not answered yet names none, and there is nothing to record until it does.
        """
        revision = self._of.decider.revision
        if not revision or revision == self._recorded:
            return
        self._controls.record("policy_loaded", actor, revision, digest=revision, detail=self._recorded)
        self._recorded = revision
        self._revisions.loaded(self._of.noticing.signals, revision)

    def polled(self) -> None:
        """Record the bundle that a server has begun to decide by, or leave it to the next call where no room is."""
        if self._of.has_room():
            with suppress(JournalError):
                self.record(POLL)
