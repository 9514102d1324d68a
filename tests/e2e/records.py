"""Records: what the ledger says of requests that are over, and what is wrong with that."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from ledger.client import LedgerClient
from tests.e2e.deployment import beside
from tests.load.accounts import CHARGES_SQL, agreement, window_start_s

_USAGE_SQL = """
SELECT event_id, request_id, hold_id, status, http_status, error_code, certainty, charges FROM usage
WHERE status != 'adjusted'
"""
_CORRECTIONS_SQL = """
SELECT event_id, count() AS rows FROM usage WHERE status = 'adjusted' GROUP BY event_id HAVING rows > 1
"""
_OPENED_SQL = "SELECT hold_id, request_id, charges FROM hold WHERE action = 'opened'"
_VOIDED_SQL = "SELECT hold_id FROM hold WHERE action = 'voided'"
_SEQS_SQL = """
SELECT writer, count() AS records, uniqExact(seq) AS seqs, min(seq) AS first, max(seq) AS last
FROM events GROUP BY writer
"""


def usage(ledger: LedgerClient) -> list[dict[str, Any]]:
    """Every settlement: the `usage` row of each request, without its corrections by attribution."""
    return ledger.rows(_USAGE_SQL)


def opened(ledger: LedgerClient) -> dict[str, dict[str, Any]]:
    """The `opened` record of every hold that was not voided, by its id; AssertionError when a hold opened twice."""
    rows = ledger.rows(_OPENED_SQL)
    holds = {row["hold_id"]: row for row in rows}
    assert len(holds) == len(rows), "a hold was opened twice"
    for row in ledger.rows(_VOIDED_SQL):
        del holds[row["hold_id"]]
    return holds


def ledger_faults(ledger: LedgerClient) -> list[str]:
    """What was lost or doubled: ids of `usage` rows that come twice, and writers whose records do not run from 1 on."""
    rows = usage(ledger)
    faults = []
    for name in ("event_id", "request_id", "hold_id"):
        counts = Counter(row[name] for row in rows if row[name])
        faults += [f"{name} {value} has {count} usage rows" for value, count in counts.items() if count > 1]
    faults += [f"correction {row['event_id']} is there {row['rows']} times" for row in ledger.rows(_CORRECTIONS_SQL)]
    for row in ledger.rows(_SEQS_SQL):
        seqs = [int(row[name]) for name in ("first", "last", "seqs")]
        if seqs != [1, int(row["records"]), int(row["records"])]:
            faults.append(f"seqs with gaps or repetitions: {row}")
    return faults


def amounts(row: dict[str, Any]) -> dict[tuple[str, ...], int]:
    """What a row's charges take or hold, by budget, counter, window and resource."""
    named = ("budget", "counter", "window_start", "resource")
    return {tuple(charge[name] for name in named): int(charge["amount"]) for charge in row["charges"]}


def expired_amounts(opened_row: dict[str, Any]) -> dict[tuple[str, ...], int]:
    """What a hold is charged that expires: all that it held, except the slots that it no longer takes."""
    return {key: 0 if key[-1] == "concurrency" else amount for key, amount in amounts(opened_row).items()}


def counter_faults(ledger: LedgerClient, ask: Callable[[], list[dict[str, Any]]], now_s: int) -> list[str]:
    """Where the counters of a book without open requests and the ledger's sums of charges differ, either way."""
    counters, charges = beside(ask, lambda: _charges(ledger))
    faults = [f"{check}" for check in agreement(counters, charges, now_s) if not check.agrees]
    faults += [f"{counter['budget']} holds {counter['held']}" for counter in counters if counter["held"]]
    windows = {counter["budget"]: counter["window"] for counter in counters}
    live = {(counter["budget"], counter["counter"]) for counter in counters}
    for row in charges:
        window = windows.get(row["budget"], "total")
        counts = int(row["amount"]) and int(row["window_start_s"]) >= window_start_s(window, now_s)
        if counts and (row["budget"], row["counter"]) not in live:
            faults.append(f"charged, but not counted: {row}")
    return faults


def _charges(ledger: LedgerClient) -> list[dict[str, Any]]:
    ledger.flush()
    return ledger.rows(CHARGES_SQL)
