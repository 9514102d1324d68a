"""Sequences: the numbers 1, 2, 3 … of each org's usage rows, so that whoever sees one org's rows alone sees a gap."""

from typing import Any

from ledger.journal import Journal
from ledger.records import SNAPSHOT

ORGS_MAX = 4_096


class Sequences:
    """The last number given per org, of one writer; it has one user at a time, as the book has."""

    def __init__(self, orgs_max: int = ORGS_MAX) -> None:
        """Numbers `orgs_max` orgs; the rows of any further ones stay without a number, 0 in the ledger."""
        self._last: dict[str, int] = {}
        self._orgs_max = orgs_max

    def append(self, journal: Journal, org: str, row: dict[str, Any], members: bytes = b"") -> None:
        """Gives a usage row, which is changed, the next number of its org and writes it to the journal.

        The number is taken only when the journal has taken the row, so it raises what `Journal.append` raises.
        """
        number = self._last.get(org, 0) + 1
        if number > 1 or len(self._last) < self._orgs_max:
            row["org_seq"] = number
            journal.append("usage", row, members)
            self._last[org] = number
        else:
            journal.append("usage", row, members)

    def snapshot(self) -> dict[str, int]:
        """The last numbers, for the snapshot that opens a segment.

        A row is counted behind its own record, so the snapshot is always of what stands before it.
        """
        return dict(self._last)

    def replay(self, kind: str, body: dict[str, Any]) -> None:
        """Takes up one record of a journal that is read again."""
        if kind == SNAPSHOT:
            self._last.update(body.get("org_seqs", {}))
        elif kind == "usage" and body.get("org_seq"):
            self._last[body["org"]] = body["org_seq"]
