"""Shared accounts: the ledger of several replicas beside Redis' counters, their own, and what their clients saw."""

from collections import Counter
from typing import Any

from ledger.client import LedgerClient
from tests.e2e import records, shared_counters
from tests.e2e.crowd import Fate
from tests.e2e.replicas import NAMES, Replicas
from tests.e2e.shared_counters import Cell

# What a caller is told while the book cannot be asked and its leases are used up.
REFUSED = {429, 503}
_CHARGES_SQL = """
SELECT writer, charge.1 AS budget, charge.2 AS counter, toUnixTimestamp(charge.3) AS start_s, sum(charge.5) AS amount
FROM usage ARRAY JOIN charges AS charge GROUP BY writer, budget, counter, start_s HAVING amount != 0
"""
_WRITERS_SQL = "SELECT request_id, writer FROM usage"

Fates = dict[str, list[Fate]]


def unrest(replicas: Replicas, redis_url: str) -> list[str]:
    """What is held, stranded or leased still."""
    found = [f"{name} has {held} holds open" for name, each in replicas.of.items() if (held := each.open_holds())]
    for name, replica in replicas.of.items():
        for counter in replica.counters():
            left = {what: counter[what] for what in ("held", "held_elsewhere", "stranded") if counter[what]}
            found += [f"{name}: {counter['budget']} {counter['counter']}: {left}"] if left else []
    return found + [f"redis: {each}" for each in shared_counters.unreturned(shared_counters.debits(redis_url))]


def charged(ledger: LedgerClient) -> dict[str, dict[Cell, int]]:
    """What the ledger charges to each counter and window, by the replica whose journal says so."""
    sums: dict[str, dict[Cell, int]] = {name: {} for name in NAMES}
    for row in ledger.rows(_CHARGES_SQL):
        cell = (row["budget"], row["counter"], int(row["start_s"]))
        cells = sums[row["writer"].split("-", 1)[0]]
        cells[cell] = cells.get(cell, 0) + int(row["amount"])
    return sums


def total(charges: dict[str, dict[Cell, int]]) -> dict[Cell, int]:
    """The sums over all replicas."""
    sums: Counter[Cell] = Counter()
    for cells in charges.values():
        sums.update(cells)
    return dict(sums)


def account_faults(replicas: Replicas, redis_url: str, ledger: LedgerClient) -> list[str]:
    """Where the ledger's sums, Redis' counters and each replica's own counters differ, in either direction."""
    charges, found = charged(ledger), shared_counters.debits(redis_url)
    accounts: dict[str, tuple[dict[Any, int], dict[Any, int]]] = {
        "redis, of all": (total(charges), shared_counters.spent_by_cell(found))
    }
    for name, replica in replicas.of.items():
        in_redis = shared_counters.spent_by_cell(debit for debit in found if debit.replica.startswith(f"{name}-"))
        accounts[f"redis, of {name}"] = (charges[name], in_redis)
        by_counter: Counter[tuple[str, str]] = Counter()
        for (budget, counter, _), amount in charges[name].items():
            by_counter[budget, counter] += amount
        own = {(each["budget"], each["counter"]): int(each["spent"]) for each in replica.counters() if each["spent"]}
        accounts[f"counters of {name}"] = (dict(by_counter), own)
    return [
        f"{account}: {key} is {said.get(key, 0)} in the ledger and {counted.get(key, 0)} there"
        for account, (said, counted) in accounts.items()
        for key in sorted({*said, *counted}, key=str)
        if said.get(key, 0) != counted.get(key, 0)
    ]


def row_faults(ledger: LedgerClient, waves: list[Fates], killed: str) -> list[str]:
    """Requests without exactly one row that says what became of them, and holds that no row ends."""
    rows = {row["request_id"]: row for row in records.usage(ledger)}
    writers = {row["request_id"]: row["writer"].split("-", 1)[0] for row in ledger.rows(_WRITERS_SQL)}
    faults, told = [], set()
    for name, fate in ((name, fate) for fates in waves for name, those in fates.items() for fate in those):
        row = rows.get(fate.request_id)
        if not fate.status:
            # Its client was never answered, and does not know the id of its request.
            faults += [] if name == killed else [f"{name} did not answer: {fate}"]
        elif row is None or writers[fate.request_id] != name:
            faults.append(f"{name} has no row of {fate}")
        elif row["status"] not in _statuses(fate, is_killed=name == killed):
            faults.append(f"{name} has a row {row['status']} of {fate}")
        told.add(fate.request_id)
    unasked = {one: name for one, name in writers.items() if one not in told and name != killed}
    faults += [f"{name} has a row that nobody asked for: {one}" for one, name in unasked.items()]
    holds = records.opened(ledger)
    ended = {row["hold_id"] for row in rows.values() if row["hold_id"]}
    return faults + [f"hold {one} was opened or ended alone" for one in holds.keys() ^ ended]


def _statuses(fate: Fate, *, is_killed: bool) -> set[str]:
    if fate.status in REFUSED:
        return {"refused"}
    if fate.ended:
        return {"ok"}
    # The last words to a client may have been lost with the replica, after they were written down.
    return {"expired", "ok"} if is_killed and fate.status == 200 else set()
