"""Each message between shipper and store lost or fatal in turn, over a change of month: every row arrives once."""

from __future__ import annotations

import random
from collections import Counter as Tally
from pathlib import Path

import pytest

from ledger.disk import Disk
from ledger.journal import Journal
from ledger.shipper import Shipper
from tests.simulation.clock import Clock
from tests.simulation.disk import Machine
from tests.simulation.faults import Killed
from tests.simulation.store import Connection, Tables, by_day, lost

JOURNALS = Path("journal")
NEW_MONTH_US = 1_772_323_200_000_000  # 2026-03-01
RECORDS = 24
ROUNDS_MAX = 12
LONGER_THAN_A_RETRY_US = 60_000_000


class Bad:
    """Weather that strikes at one message, once: the client hears nothing of it, or is killed."""

    def __init__(self, message: int, *, is_fatal: bool) -> None:
        self._left = message
        self._is_fatal = is_fatal
        self.has_struck = False

    def __call__(self, what: str) -> None:
        self._left -= 1
        if self._left == 0:
            self.has_struck = True
            raise Killed("ledger") if self._is_fatal else lost(what)


def journal_on(disk: Disk) -> Journal:
    """Records on both sides of midnight, in no order, as a clock that is set makes them."""
    dice = random.Random(1)
    options = {"segment_bytes": 1 << 16, "snapshot": dict, "commits_itself": False}
    journal = Journal.open(JOURNALS / "w", disk=disk, now_us=lambda: NEW_MONTH_US, **options)
    for number in range(RECORDS):
        ids = {"ts_us": NEW_MONTH_US + dice.choice((-1, 1)), "event_id": f"e{number}", "request_id": f"r{number}"}
        if number % 3:
            journal.append("usage", {**ids, "org": "acme", "status": "ok", "list_cost_nusd": number})
        else:
            journal.append("hold", {**ids, "org": "acme", "hold_id": f"h{number}", "action": "opened"})
    journal.commit()
    return journal


def ship(machine: Machine, tables: Tables, weather: Bad) -> None:
    """Rounds of ledger processes, the next one when one is killed, until all is there."""
    clock = Clock()
    shipper: Shipper | None = None
    for _ in range(ROUNDS_MAX):
        clock.us += LONGER_THAN_A_RETRY_US
        if shipper is None:
            shipper = Shipper(
                JOURNALS,
                Connection(tables, weather),
                monotonic=clock.monotonic_s,
                chance=lambda: 0.5,
                disk=machine.process("ledger"),
            )
        try:
            shipper.round()
        except Killed:
            shipper = None
    assert shipper is not None
    assert shipper.stalled() == {}


@pytest.mark.parametrize("is_fatal", [False, True], ids=["lost", "killed"])
def test_whichever_message_is_struck_each_row_arrives_once(*, is_fatal: bool) -> None:
    message = 0
    has_struck = True
    while has_struck:
        message += 1
        machine = Machine(random.Random(message), lambda: 1.0, lambda process, operation: None)
        journal = journal_on(machine.process("gateway"))
        tables, weather = Tables(), Bad(message, is_fatal=is_fatal)
        ship(machine, tables, weather)
        has_struck = weather.has_struck
        events = Tally(event["seq"] for event in tables.rows["events"])
        assert events == Tally(range(1, journal.tail_seq + 1)), f"message {message}"
        counted = {name: Tally(row["seq"] for row in tables.rows[name]) for name in ("usage", "hold")}
        assert {name: len(seqs) for name, seqs in counted.items()} == {"usage": RECORDS * 2 // 3, "hold": RECORDS // 3}
        assert {count for seqs in counted.values() for count in seqs.values()} == {1}, f"message {message}"
        assert tables.rollup == by_day(tables.rows["usage"]), f"message {message}"
    assert message > 40
