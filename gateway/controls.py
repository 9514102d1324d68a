"""Controls: what people change while the gateway runs or rests, each a `control` row of the ledger.

The admin plane uses them on the live book and journal; the command line uses the same ones on the files when no gateway
runs.
"""

from collections.abc import Callable, Sequence
from typing import Any

from domain.ids import uuid7
from gateway import views
from gateway.home import Home, write_private
from gateway.keys import Key, KeyStore, Kind
from ledger.book import Book
from ledger.counters import Grant
from ledger.journal import Journal
from ledger.recovery import grant_record

US = 1_000_000


class UnknownBudget(LookupError):
    """A grant names a budget that is not configured."""


class Controls:
    """Grants and keys over one book, journal and key store."""

    def __init__(
        self,
        book: Book,
        journal: Journal,
        keys: KeyStore,
        now_us: Callable[[], int],
        on_key: Callable[[], None] = lambda: None,
    ) -> None:
        self._book = book
        self._journal = journal
        self._keys = keys
        self._now_us = now_us
        self._on_key = on_key

    def grant(self, *, budget: str, amount: int, ttl_s: int, counter: str, reason: str, actor: str) -> dict[str, Any]:
        """Raise a budget's limit by an amount until it expires; raises UnknownBudget."""
        if budget not in self._book.budgets:
            raise UnknownBudget(f"There is no budget {budget!r}")
        now_us = self._now_us()
        grant = Grant(uuid7(now_us // 1000), budget, counter, amount, now_us // US + ttl_s, actor, reason)
        record = grant_record(grant)
        self.record("grant", actor, budget, detail=record, grant=record)
        self._book.grant(grant, now_us // US)
        return record

    def create_key(self, *, actor: str, **asked: Any) -> dict[str, Any]:
        """Make a key of the fields of `make_key` and record it; its secret is in the answer and nowhere else."""
        return self.made_key(*self.make_key(**asked, made_by=actor), actor)

    def make_key(
        self,
        *,
        org: str,
        team: str,
        app: str,
        user: str,
        roles: list[str],
        clearance: str,
        kind: Kind,
        ttl_s: int | None,
        orgs: Sequence[str] = (),
        made_by: str,
    ) -> tuple[Key, str]:
        """Write a new key to the key file and nothing else; it waits for the disk, and any thread may do it."""
        expires_at = None if ttl_s is None else self._now_us() // US + ttl_s
        return self._keys.create(org, team, app, user, tuple(roles), clearance, expires_at, kind, tuple(orgs), made_by)

    def made_key(self, key: Key, secret: str, actor: str) -> dict[str, Any]:
        """Record a key that was made; the answer shows its secret."""
        self._on_key()
        self.record("key_created", actor, key.key_id, detail=views.key_view(key))
        return {**views.key_view(key), "secret": secret}

    def revoke_key(self, key_id: str, actor: str) -> dict[str, Any] | None:
        """Revoke a key from now on; None when there is none of that id."""
        key = self._keys.revoke(key_id)
        return None if key is None else self.revoked_key(key, actor)

    def revoked_key(self, key: Key, actor: str) -> dict[str, Any]:
        """Record a key that was revoked."""
        self.record("key_revoked", actor, key.key_id, detail=views.key_view(key))
        return views.key_view(key)

    def forgot_replica(self, replica: str, counters: int, freed: dict[str, int], actor: str) -> None:
        """Record that what a replica had leased was freed: how much of each resource, on how many counters."""
        self.record("replica_forgotten", actor, replica, detail={"counters": counters, "freed": freed})

    def record(
        self, action: str, actor: str, subject: str, *, digest: str = "", detail: Any = None, **more: Any
    ) -> None:
        """Write a `control` row."""
        now_us = self._now_us()
        row = {
            "ts_us": now_us,
            "event_id": uuid7(now_us // 1000),
            "action": action,
            "actor": actor,
            "subject": subject,
            "digest": digest,
            "detail": detail,
            **more,
        }
        self._journal.append("control", row)


def ensure_admin(home: Home, keys: KeyStore, controls: Controls) -> None:
    """Make the home's own admin key unless it has one that is valid; the command line uses it."""
    path = home.admin_secret_path
    if path.exists() and isinstance(keys.lookup(home.admin_secret().encode(), "admin"), Key):
        return
    made = controls.create_key(
        org="-", team="-", app="admin", user="", roles=[], clearance="internal", kind="admin", ttl_s=None, actor="start"
    )
    write_private(path, made["secret"].encode())
