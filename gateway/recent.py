"""Recent usage: the last settled rows, so that a caller can ask for the cost of a request it has just made."""

from collections import OrderedDict
from typing import Any

from gateway import corrections

RECENT_MAX = 2_000


class Recent:
    """The newest usage rows by request id, bounded; others are asked of the ledger.

    Of those that are not here any more none was made after the `forgotten` one: identifiers are in order of time.
    """

    def __init__(self, rows_max: int = RECENT_MAX) -> None:
        self.rows_max = rows_max
        self.forgotten = ""
        self._rows: OrderedDict[str, tuple[dict[str, Any], dict[str, Any]]] = OrderedDict()
        self._corrections: dict[str, dict[str, Any]] = {}

    def add(self, request_id: str, row: dict[str, Any], more: dict[str, Any]) -> None:
        """Remember the two halves of a row, forgetting the oldest when there are too many."""
        self._rows[request_id] = (row, more)
        if len(self._rows) > self.rows_max:
            # A long request is forgotten after shorter ones that were made later.
            forgotten = self._rows.popitem(last=False)[0]
            self._corrections.pop(forgotten, None)
            self.forgotten = max(self.forgotten, forgotten)

    def get(self, request_id: str) -> dict[str, Any] | None:
        """The row of a request, or None when it is not among the newest."""
        halves = self._rows.get(request_id)
        return None if halves is None else {**halves[0], **halves[1]}

    def correct(self, row: dict[str, Any]) -> None:
        """Remember what a row of status `adjusted` adds to one that is here."""
        request_id = row["request_id"]
        if request_id in self._rows:
            self._corrections[request_id] = corrections.added(self._corrections.get(request_id), row)

    def corrected(self, request_id: str) -> dict[str, Any] | None:
        """The sum of the corrections that a row had since it is here, or None when it had none."""
        return self._corrections.get(request_id)

    def since(self, request_id: str) -> list[str]:
        """The ids that were added after that one, newest first; all where it is not known any more."""
        found = []
        for each in reversed(self._rows):
            if each == request_id:
                break
            found.append(each)
        return found
