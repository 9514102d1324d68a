"""Adjustments: rows of `usage` that correct others, each a signed difference, in the journal before it counts.

Nothing that was written is ever changed, and no counter is set: what must be mended is mended by rows like these.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from domain.amounts import RESOURCE_INDEX, Amounts
from domain.charges import Charge
from domain.ids import uuid7
from gateway.controls import Controls
from ledger.book import Book, Crossing
from ledger.journal import Journal, JournalFull
from ledger.tables import ADJUSTED

US = 1_000_000
POSTED_MAX = 100_000
_WHOSE = (
    *("request_id", "org", "team", "app", "user", "key_id", "run_id", "parent_run_id", "endpoint", "model"),
    *("served_model", "runtime", "price_version"),
)
_COLUMNS = (
    *("input_tokens", "output_tokens", "list_cost_nusd", "gpu_cost_nusd", "gpu_us", "kv_block_us", "energy_uj"),
)


def of_request(
    original: Mapping[str, Any],
    difference: Amounts,
    now_us: int,
    event_id: str = "",
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The row that adds a signed difference to what a request used and to every budget that it was charged to.

    `original` is its `usage` row. A caller that may come twice gives the same `event_id` both times. `more` are columns
    that no budget counts.
    """
    charges = [Charge(*charge) for charge in original.get("charges", ())]
    return {
        **{name: original[name] for name in _WHOSE if original.get(name)},
        **{name: amount for name in _COLUMNS if (amount := getattr(difference, name))},
        **_adjusted(now_us, event_id),
        **(more or {}),
        "adjusts": original["event_id"],
        "charges": [
            charge._replace(amount=amount)
            for charge in charges
            if (amount := difference[RESOURCE_INDEX[charge.resource]])
        ],
    }


def of_ledger(charges: Iterable[Charge], now_us: int) -> dict[str, Any]:
    """The row that adds charges to the ledger's sums which the counters have already."""
    return {"org": "", **_adjusted(now_us), "charges": list(charges), "counters": []}


def of_counters(charges: Iterable[Charge], now_us: int) -> dict[str, Any]:
    """The row that adds charges to the counters which the ledger's sums have already."""
    return {"org": "", **_adjusted(now_us), "charges": [], "counters": list(charges)}


class Adjustments:
    """Posts correction rows to the journal and the book of one worker."""

    def __init__(
        self,
        book: Book,
        journal: Journal,
        record: Callable[[dict[str, Any]], None],
        controls: Controls,
        announce: Callable[[list[Crossing]], None] = lambda _: None,
    ) -> None:
        """`record` writes a `usage` row to this journal, `announce` tells of the thresholds that corrections cross."""
        self._book = book
        self._journal = journal
        self._record = record
        self._controls = controls
        self._announce = announce
        self._posted: OrderedDict[str, None] = OrderedDict()

    def post(self, rows: Sequence[dict[str, Any]], *, reason: str, actor: str) -> int:
        """Write these rows, and one `control` row that says who wanted them and why; returns how many were new.

        An `event_id` among the last hundred thousand is not posted again; whoever may come again after a restart must
        look in the ledger first. JournalFull where the room that is left belongs to the requests in flight.
        """
        written = [row["event_id"] for row in rows if self.write(row)]
        if written:
            self.explain(written[0], written[-1], len(written), reason=reason, actor=actor)
        return len(written)

    def write(self, row: dict[str, Any]) -> bool:
        """Write one row, or nothing and False where it was written before; whoever wrote some must `explain` them."""
        if self.has_written(row["event_id"]):
            return False
        if not self._journal.room_for(len(self._book.holds)):
            raise JournalFull(f"{self._journal.directory}: no room for corrections; free disk space or raise bytes_max")
        self._record(row)
        self._announce(self._book.adjust(map(_charge, row.get("counters", row["charges"])), row["ts_us"] // US))
        self._posted[row["event_id"]] = None
        if len(self._posted) > POSTED_MAX:
            self._posted.popitem(last=False)
        return True

    def has_written(self, event_id: str) -> bool:
        """Whether that row is among the last hundred thousand."""
        return event_id in self._posted

    def explain(self, first: str, last: str, rows: int, *, reason: str, actor: str) -> None:
        """Write the `control` row that says who wanted the rows from the first to the last event, and why."""
        detail = {"reason": reason, "rows": rows, "last_event_id": last}
        self._controls.record("adjusted", actor, first, detail=detail)


def _adjusted(now_us: int, event_id: str = "") -> dict[str, Any]:
    return {
        "ts_us": now_us,
        "event_id": event_id or uuid7(now_us // 1000),
        "status": ADJUSTED,
        "http_status": 0,
        "certainty": "exact",
    }


def _charge(row: Charge) -> Charge:
    return Charge(*row)
