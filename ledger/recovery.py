"""Recovery: a book rebuilt from the snapshot that opens the last segment of its journal and the records behind it.

A snapshot may already contain the record that follows it, because a segment can turn between a change of the book and
its record. So every record is applied by the identity of what it moves: a hold that is known is not opened again, and a
settlement or a void of a hold that is not open changes nothing.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from domain.amounts import MILLION
from domain.charges import Charge
from ledger.book import Book
from ledger.counters import Counter, Grant
from ledger.holds import Hold, State
from ledger.records import SNAPSHOT, Record
from ledger.sequences import Sequences
from ledger.tables import ADJUSTED

_ENVELOPE = frozenset({"seq", "kind", "ts_us", "event_id", "action", "cap", "expires_at_us", "charges"})
# What one cell takes in a snapshot beside its names, and an open hold with its row and its charges.
_CELL_BYTES = 64
_HOLD_BYTES = 2_048
_SAMPLE = 1_000


def snapshot(book: Book) -> dict[str, Any]:
    """The body from which the book can be rebuilt: its time, what is spent, what is held, and the grants."""
    return {
        "now_s": book.now_s,
        "spent": book.spent_charges(),
        "holds": [
            {
                "row": hold.row,
                "cap": hold.cap,
                "opened_at_us": hold.opened_at_us,
                "expires_at_us": hold.expires_at_us,
                "charges": hold.charges(),
            }
            for hold in book.holds.values()
        ],
        "grants": [grant_record(grant) for grant in book.grants.values()],
    }


def snapshot_bytes(counters: Sequence[Counter], holds: int) -> int:
    """About how large a snapshot of these is, from a part of the counters."""
    some = counters[:: 1 + len(counters) // _SAMPLE]
    cells = sum(len(each.cells) * (_CELL_BYTES + len(each.name) + len(each.budget.id)) for each in some)
    return cells * len(counters) // max(1, len(some)) + holds * _HOLD_BYTES


def grant_record(grant: Grant) -> dict[str, Any]:
    """A grant as snapshots and `control` records carry it."""
    return {
        "grant_id": grant.grant_id,
        "budget": grant.budget,
        "counter": grant.counter,
        "amount": grant.amount,
        "expires_at_s": grant.expires_at_s,
        "actor": grant.actor,
        "reason": grant.reason,
    }


def rebuild(
    book: Book,
    records: Iterable[Record],
    now_s: int,
    sequences: Sequences | None = None,
    replays: Sequence[Callable[[str, dict[str, Any]], None]] = (),
) -> int:
    """Apply a snapshot and its tail to an empty book, and to the sequences of the same writer where there are some.

    Each of `replays` is given the kind and the body of every record too. Returns how many holds are left without an
    owner: they expire when their last renewal runs out.
    """
    for record in records:
        body = json.loads(record.payload)
        now_s = max(now_s, _told_s(record.kind, body))
        if sequences is not None:
            sequences.replay(record.kind, body)
        for replay in replays:
            replay(record.kind, body)
        if record.kind == SNAPSHOT:
            _apply_snapshot(book, body, now_s)
        elif record.kind == "hold":
            _apply_hold(book, body, now_s)
        elif record.kind == "usage":
            _apply_usage(book, body, now_s)
        elif record.kind == "control" and body["action"] == "grant":
            book.grant(Grant(**body["grant"]), now_s)
    return len(book.holds)


def _told_s(kind: str, body: dict[str, Any]) -> int:
    """The time that the book had when a record was made, or 0.

    A clock that was set back before the restart must not open windows again that the old book had left, nor leave one
    that it had not: to void and to renew a hold does not tell the book the time.
    """
    if kind == SNAPSHOT:
        return int(body.get("now_s", 0))
    is_told = kind == "usage" or (kind == "hold" and body["action"] == "opened")
    return int(body["ts_us"]) // MILLION if is_told else 0


def restore_spent(book: Book, charges: Iterable[Charge], now_s: int) -> None:
    """Put back sums of charges, as a snapshot or the ledger has them."""
    for charge in charges:
        book.restore_spent(charge, now_s)


def _apply_snapshot(book: Book, body: dict[str, Any], now_s: int) -> None:
    for grant in body.get("grants", ()):
        book.grant(Grant(**grant), now_s)
    restore_spent(book, (Charge(*charge) for charge in body.get("spent", ())), now_s)
    for held in body.get("holds", ()):
        _open(book, held["row"], held["cap"], held["opened_at_us"], held["expires_at_us"], held["charges"], now_s)


def _apply_hold(book: Book, body: dict[str, Any], now_s: int) -> None:
    hold_id = body["hold_id"]
    if body["action"] == "opened":
        if hold_id not in book.holds:
            row = {name: value for name, value in body.items() if name not in _ENVELOPE}
            _open(book, row, body["cap"], body["ts_us"], body["expires_at_us"], body["charges"], now_s)
    elif hold_id in book.holds:
        if body["action"] == "renewed":
            book.holds[hold_id].expires_at_us = body["expires_at_us"]
        else:
            book.void(hold_id)


def _apply_usage(book: Book, body: dict[str, Any], now_s: int) -> None:
    hold_id = body.get("hold_id")
    if body["status"] == ADJUSTED:
        # What a correction changes of the counters, where that is not what it changes of the ledger's sums.
        book.adjust((Charge(*charge) for charge in body.get("counters", body["charges"])), now_s)
    elif hold_id in book.holds:
        state = State.EXPIRED if body["status"] == "expired" else State.SETTLED
        book.restore_end(hold_id, state, (Charge(*charge) for charge in body["charges"]), now_s)


def _open(
    book: Book,
    row: dict[str, Any],
    cap: int,
    opened_at_us: int,
    expires_at_us: int,
    charges: Iterable[tuple[str, str, int, str, int]],
    now_s: int,
) -> None:
    hold = Hold(row["hold_id"], (), cap, opened_at_us, expires_at_us, row)
    book.restore_hold(hold, (Charge(*charge) for charge in charges), now_s)
