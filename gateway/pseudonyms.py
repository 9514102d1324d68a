"""Pseudonyms: end users as keyed hashes, so that destroying the key erases who they were and keeps the chain."""

import hmac
from typing import Any

from domain.intent import Principal

USER_CHARS_MAX = 256
_REMEMBERED_MAX = 10_000


class Pseudonyms:
    """Replaces the user of a principal by `u-` and 128 bits of an HMAC-SHA-256 under one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._remembered: dict[tuple[Principal, str], Principal] = {}

    def of(self, user: str) -> str:
        """The pseudonym of a user's name; no name has none."""
        if not user:
            return ""
        return "u-" + hmac.digest(self._key, user.encode(errors="replace"), "sha256").hex()[:32]

    def applied(self, principal: Principal, named: Any) -> Principal:
        """The principal with a pseudonym as its user: the key's user, or else the one that the request names."""
        user = principal.user or (named[:USER_CHARS_MAX] if isinstance(named, str) else "")
        if not user:
            return principal
        remembered = self._remembered.get((principal, user))
        if remembered is None:
            if len(self._remembered) >= _REMEMBERED_MAX:
                self._remembered.clear()
            remembered = self._remembered[principal, user] = principal._replace(user=self.of(user))
        return remembered
