"""The second person of one worker: its approvals, what is in force, and whether a reload may be applied."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from domain.decision import Decision
from domain.intent import Principal
from gateway.approvals import Approvals, Person
from gateway.config_file import LoadedConfig
from gateway.controls import Controls
from gateway.home import Home
from gateway.keys import Key, KeyStore
from gateway.pseudonyms import Pseudonyms
from gateway.reviews import (
    SIGHUP,
    Applied,
    Asked,
    Reviews,
    at_machine,
    local_key,
    loosened_since_last,
    person_of,
    policies_of,
    record_start,
    remember,
)
from policy.port import ADMISSION, Engine

US = 1_000_000


class Before(NamedTuple):
    """What was in force until the last reload, and until when (Unix microseconds) it may come back unasked."""

    digest: str
    policy_revision: str
    until_us: int


class SecondPerson:
    """Has a say in the reloads of one worker; call `started` once before the first of them."""

    def __init__(
        self,
        home: Home,
        replica: str,
        keys: KeyStore,
        controls: Controls,
        pseudonyms: Pseudonyms,
        now_us: Callable[[], int],
    ) -> None:
        self.approvals = Approvals(controls, now_us)
        self._home = home
        self._replica = replica
        self._keys = keys
        self._controls = controls
        self._pseudonyms = pseudonyms
        self._now_us = now_us
        self._reviews = Reviews(self.approvals, controls, now_us)
        self._in_force: Applied | None = None
        self._before: Before | None = None

    def person(self, key: Key) -> Person:
        """Who holds a key."""
        return person_of(key.key_id, self._pseudonyms.of(key.user), self._keys, self._local_key())

    def requester(self, principal: Principal) -> Person:
        """Who has sent a request; its user is a pseudonym already."""
        return person_of(principal.key_id, principal.user, self._keys, self._local_key())

    def signalled(self) -> Asked:
        """A reload that was asked for by a signal."""
        return Asked(at_machine(self._local_key(), SIGHUP))

    async def started(self, loaded: LoadedConfig, revision: str) -> None:
        """Take a start as it is, and record in what it is looser than what this gateway applied last."""
        applied = Applied(loaded, await asyncio.to_thread(policies_of, loaded, revision))
        now_s = self._now_us() / US
        found = await asyncio.to_thread(loosened_since_last, self._home, self._replica, applied, now_s)
        record_start(self._controls, loaded, found)
        await self._keep(applied)

    async def held(
        self, loaded: LoadedConfig, engine: Engine, asked: Asked, decisions: Iterable[Decision]
    ) -> dict[str, Any] | None:
        """What is said instead of applying a configuration and its engine; None where they may be applied.

        `decisions` are those of the bundle in force. Raises ApprovalError where `asked` may not approve.
        """
        assert self._in_force is not None
        new = Applied(loaded, await asyncio.to_thread(policies_of, loaded, engine.revision))
        if not asked.approval_id and self._is_undone(new):
            self._reviews.record_undone(self._in_force, new, asked)
            return None

        async def admission(input_json: bytes) -> object:
            return (await engine.evaluate(ADMISSION, input_json)).value

        return (await self._reviews.verdict(self._in_force, new, asked, decisions, admission)).held

    async def applied(self, loaded: LoadedConfig, revision: str) -> None:
        """Take what is applied as what the next reload, and the next start, is compared with."""
        was, new = self._in_force, Applied(loaded, await asyncio.to_thread(policies_of, loaded, revision))
        # What was undone was taken back by somebody, and is not to come back unasked.
        is_undone = self._is_undone(new)
        await self._keep(new)
        if is_undone:
            self._before = None
        elif was is not None and _names(was) != _names(new):
            until_us = self._now_us() + was.loaded.config.approvals.undo_s * US
            self._before = Before(*_names(was), until_us)

    def _is_undone(self, new: Applied) -> bool:
        """Whether this is what was in force a moment ago: to go back there is to undo, whatever that loosens."""
        before = self._before
        return before is not None and before[:2] == _names(new) and self._now_us() < before.until_us

    async def _keep(self, applied: Applied) -> None:
        await asyncio.to_thread(remember, self._home, self._replica, applied)
        self._in_force = applied

    def _local_key(self) -> str:
        return local_key(self._home, self._keys)


def _names(applied: Applied) -> tuple[str, str]:
    """What names a configuration with its bundle; a server's bundle is named by where it comes from."""
    return applied.loaded.digest, applied.policies.revision
