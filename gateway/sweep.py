"""The sweep: twice a second, stop what is overdue, renew what lives, expire what lost its owner, forget what is old."""

import asyncio

import structlog

from domain.usage import Usage
from gateway import rows
from gateway.governance import Governance
from gateway.live import Live
from ledger import recovery
from ledger.holds import Hold, State
from ledger.journal import JournalError

log = structlog.get_logger(__name__)
PERIOD_S = 0.5
US = 1_000_000


async def sweep_forever(of: Governance, live: Live) -> None:
    """Sweep until cancelled."""
    said = ""
    while True:
        try:
            sweep(of, live)
        except JournalError as error:
            # Admissions are refused for as long as the journal takes nothing; overdue calls must still be stopped.
            if said != str(error):
                said = str(error)
                log.error("holds were neither renewed nor expired", reason=said)
        if of.journal.failure is not None and said != of.journal.failure:
            said = of.journal.failure
            log.error("nothing more is admitted", reason=said)
        await asyncio.sleep(PERIOD_S)


def sweep(of: Governance, live: Live) -> None:
    """One pass over live calls, kept answers, open holds and counters."""
    live.stop_overdue()
    now_us = of.now_us()
    of.repeats.forget_old(now_us)
    renew(of, live, now_us)
    expire(of, live, now_us)
    counters = of.book.counters(now_us // US)
    of.journal.expect_snapshot(recovery.snapshot_bytes(counters, len(of.book.holds)) + of.risks.snapshot_bytes())
    for client in of.catalogue.runtimes.values():
        of.metrics.breaker(client.spec.id, is_open=client.breaker.is_open)


def renew(of: Governance, live: Live, now_us: int) -> None:
    """Renew the holds of live calls of which a third of the TTL has passed."""
    due_us = now_us + of.hold_ttl_s * US * 2 // 3
    for call in live.calls:
        hold = call.hold
        if hold is not None and hold.expires_at_us <= due_us and hold.state is State.OPEN:
            of.book.renew(hold.hold_id, now_us, of.hold_ttl_s)
            # In a full journal only the book knows of it: after a kill the hold then expires sooner, charged in full.
            if of.has_room():
                of.journal.append("hold", rows.moved(hold, "renewed", now_us))


def expire(of: Governance, live: Live, now_us: int) -> None:
    """Charge in full the holds whose time is up and whose owner is gone, as after a kill."""
    due = [hold for hold in of.book.holds.values() if hold.expires_at_us <= now_us]
    owned = {call.hold.hold_id for call in live.calls if call.hold is not None} if due else set()
    for hold in due:
        if hold.hold_id in owned:
            continue
        if not of.journal.room_for(0):
            # A charge without its row would never be in the ledger: the hold stays until it can be recorded.
            return
        settlement = of.book.expire(hold.hold_id, now_us)
        of.record_usage(rows.expired(settlement, now_us))
        of.metrics.hold_expired()
        _count(of, hold, now_us)
        of.announce(settlement)
        of.waiting.wake()


def _count(of: Governance, hold: Hold, now_us: int) -> None:
    row = hold.row
    usage = Usage(
        input_tokens=row["held_tokens"] - row["held_output_tokens"],
        output_tokens=row["held_output_tokens"],
        certainty="at_most",
    )
    of.metrics.settled(
        row["endpoint"],
        row["served_model"],
        row["team"],
        "expired",
        usage,
        row["held_list_cost_nusd"],
        row["held_gpu_us"],
        row["runtime"],
        now_us - hold.opened_at_us,
        0,
        0,
    )
