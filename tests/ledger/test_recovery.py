"""Recovery: from whatever record a journal ends with, the book that died comes back, to the unit."""

import random
import shutil
from collections import Counter as Tally
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest

from domain.amounts import MILLION, Amounts
from domain.charges import Charge
from ledger import recovery
from ledger.book import Book, Settlement
from ledger.budgets import Budget, Subject
from ledger.counters import Grant
from ledger.holds import Demand, Hold, IllegalMove
from ledger.journal import Journal
from ledger.records import HEADER, SNAPSHOT, Record
from ledger.segments import read, replay_from_snapshot, segment_paths
from ledger.windows import parse_window

START_S = 1_772_323_140  # 2026-02-28T23:59:00Z
SEGMENT_BYTES = 1 << 15
BUDGETS = (
    Budget("all", "finance", (("org", "acme"),), "list_cost_nusd", 10**9, parse_window("total")),
    Budget("team", "finance", (("team", "*"),), "tokens", 60_000, parse_window("month")),
    Budget("rate", "finance", (("team", "*"), ("app", "*")), "tokens", 9_000, parse_window("rolling:60s")),
    Budget("calls", "finance", (("key", "*"),), "requests", 40, parse_window("minute")),
    Budget("slots", "finance", (("app", "*"),), "concurrency", 12, parse_window("total")),
)
Facts = tuple[dict[tuple[str, str], tuple[int, int, int]], dict[str, tuple[int, int, list[Charge], dict[str, Any]]]]


class Moment(NamedTuple):
    """The live book as it was when the journal ended with some record."""

    now_s: int
    facts: Facts


def facts_of(book: Book, now_s: int) -> Facts:
    """Every counter that counts anything, and every open hold."""
    counters = {
        (counter.budget.id, counter.name): (counter.spent, counter.held, counter.limit)
        for counter in book.counters(now_s)
        if counter.spent or counter.held
    }
    holds = {hold.hold_id: (hold.cap, hold.expires_at_us, hold.charges(), hold.row) for hold in book.holds.values()}
    return counters, holds


def rebuilt(directory: Path, now_s: int, budgets: tuple[Budget, ...] = BUDGETS) -> Book:
    book = Book(budgets, now_s)
    recovery.rebuild(book, replay_from_snapshot(directory), now_s)
    return book


class Worker:
    """A book and its journal, used in the order in which the gateway uses them."""

    def __init__(self, book: Book, open_journal: Callable[..., Journal], now_s: int = START_S) -> None:
        self.book = book
        self.now_us = now_s * MILLION
        self.count = 0
        self.journal = open_journal(segment_bytes=SEGMENT_BYTES, snapshot=lambda: recovery.snapshot(self.book))
        self.moments: dict[int, Moment] = {self.journal.tail_seq: self.moment()}

    def moment(self) -> Moment:
        return Moment(self.now_us // MILLION, facts_of(self.book, self.now_us // MILLION))

    def act(self, rng: random.Random) -> None:
        """Do one thing that a gateway does, and remember the book by the record it left."""
        self.now_us += rng.choice((0, 0, 1_000, 400_000, 3_000_000, 20_000_000))
        open_holds = list(self.book.holds)
        act = rng.choice((self.open, self.open, self.open, self.settle, self.settle, self.other))
        if act == self.open or not open_holds:
            self.open(rng, "")
        else:
            act(rng, rng.choice(open_holds))
        self.moments[self.journal.tail_seq] = self.moment()

    def open(self, rng: random.Random, _: str) -> None:
        self.count += 1
        subject = Subject("acme", rng.choice("st"), rng.choice("wb"), "", rng.choice("kl"), "", "small", "sim")
        demand = Demand(
            Amounts(100, 100, 0, 5_000, requests=1, concurrency=1),
            Amounts(MILLION, 0, MILLION, 300_007),
            10,
            rng.choice((10, 900)),
        )
        hold_id = f"h{self.now_us}-{self.count}"
        row = {"hold_id": hold_id, "request_id": f"r{self.count}", "org": "acme", "held_tokens": 100}
        route = self.book.route(subject, self.now_us // MILLION)
        hold = self.book.hold(route, demand, hold_id, row, self.now_us, 60)
        if isinstance(hold, Hold):
            opened = {"action": "opened", "cap": hold.cap, "charges": hold.charges()}
            self.write("hold", hold, **opened, expires_at_us=hold.expires_at_us)

    def settle(self, rng: random.Random, hold_id: str) -> None:
        output = rng.choice((0, 5, 10, 2_000))
        actual = Amounts(100 + output, 100, output, 4_000 + output, requests=1)
        self.record_end(self.book.settle(hold_id, actual, self.now_us), "ok")

    def other(self, rng: random.Random, hold_id: str) -> None:
        move = rng.choice(("void", "renew", "expire", "grant", "refuse"))
        if move == "void":
            hold = self.book.void(hold_id)
            assert hold is not None
            self.write("hold", hold, action="voided", expires_at_us=hold.expires_at_us)
        elif move == "renew":
            hold = self.book.renew(hold_id, self.now_us, 60)
            self.write("hold", hold, action="renewed", expires_at_us=hold.expires_at_us)
        elif move == "expire":
            self.record_end(self.book.expire(hold_id, self.now_us), "expired")
        elif move == "refuse":
            self.journal.append("usage", {"ts_us": self.now_us, "request_id": "r", "status": "refused"})
        else:
            now_s = self.now_us // MILLION
            grant = Grant(f"g{now_s}-{rng.random()}", "team", "*", 500, now_s + rng.choice((5, 500)), "ann", "launch")
            record = {"ts_us": self.now_us, "action": "grant", "grant": recovery.grant_record(grant)}
            self.journal.append("control", record)
            self.book.grant(grant, now_s)

    def record_end(self, settlement: Settlement | None, status: str) -> None:
        assert settlement is not None
        self.write("usage", settlement.hold, status=status, charges=settlement.charges)

    def write(self, kind: str, hold: Hold, **more: Any) -> None:
        self.journal.append(kind, {**hold.row, "ts_us": self.now_us, **more})


@pytest.fixture
def worker(make_journal: Callable[..., Journal]) -> Worker:
    return Worker(Book(BUDGETS, START_S), make_journal)


def live_for(worker: Worker, acts: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(acts):
        worker.act(rng)


@pytest.mark.parametrize("seed", range(3))
def test_a_book_killed_behind_any_record_comes_back_as_it_was(worker: Worker, seed: int) -> None:
    live_for(worker, 400, seed)
    directory = worker.journal.directory
    worker.journal.close()
    records = list(read(directory))
    turned_on = {after.kind for before, after in pairwise(records) if before.kind == SNAPSHOT}
    assert {"hold", "usage"} <= turned_on, "segments turned both as holds opened and as they settled"
    moments = worker.moments
    for record in records[::-1]:
        if record.seq in moments:
            now_s, expected = moments[record.seq]
            assert facts_of(rebuilt(directory, now_s), now_s) == expected, f"killed behind record {record.seq}"
        elif record.kind == SNAPSHOT:
            # Stopped as a segment turned: what was being written has not happened, although the snapshot knows of it.
            now_s = moments[record.seq + 1].now_s
            facts = facts_of(rebuilt(directory, now_s), now_s)
            assert facts == facts_of(rebuilt_before(directory, record, now_s), now_s)
        cut(directory, record)


def rebuilt_before(directory: Path, record: Record, now_s: int) -> Book:
    """The book from a copy of the journal without its last record."""
    copy = directory.with_name("copy")
    shutil.copytree(directory, copy)
    cut(copy, record)
    book = rebuilt(copy, now_s) if segment_paths(copy) else Book(BUDGETS, now_s)
    shutil.rmtree(copy)
    return book


def cut(directory: Path, record: Record) -> None:
    """Take the last record away, as if it had never been written."""
    path = directory / record.segment
    if record.offset == 0:
        path.unlink()
    else:
        with path.open("r+b") as file:
            file.truncate(record.offset)


def test_a_book_that_is_killed_again_and_again_equals_the_sums_of_its_usage_rows(
    make_journal: Callable[..., Journal],
) -> None:
    rng = random.Random(7)
    worker = Worker(Book(BUDGETS, START_S), make_journal)
    directory = worker.journal.directory
    for _ in range(12):
        live_for(worker, 60, rng.randrange(1 << 30))
        worker.journal.close()
        path = directory / list(read(directory))[-1].segment
        whole = path.read_bytes().rstrip(b"\0")
        path.write_bytes(whole + HEADER.pack(500, rng.randbytes(32)) + b'{"seq":')  # a record that the kill cut off
        now_s = worker.now_us // MILLION
        before = facts_of(worker.book, now_s)
        reborn = Book(BUDGETS, now_s)
        worker = Worker(reborn, make_journal, now_s)
        recovery.rebuild(reborn, replay_from_snapshot(directory), now_s)
        assert facts_of(reborn, now_s) == before
    sums: Tally[tuple[str, str]] = Tally()
    for record in read(directory):
        body = orjson.loads(record.payload)
        for budget, counter, _, _, amount in body.get("charges", ()) if record.kind == "usage" else ():
            sums[budget, counter] += amount
    counters, _ = facts_of(worker.book, worker.now_us // MILLION)
    assert {name: spent for name, (spent, _, _) in counters.items() if name[0] == "all"} == {
        name: amount for name, amount in sums.items() if name[0] == "all"
    }
    worker.journal.close()


def test_usage_that_follows_a_snapshot_that_holds_it_already_is_not_counted_twice(worker: Worker) -> None:
    rng = random.Random(1)
    while True:
        worker.act(rng)
        segments = segment_paths(worker.journal.directory)
        first, second = islice((*replay_from_snapshot(worker.journal.directory), None, None), 2)
        if len(segments) > 1 and first is not None and second is not None and second.kind == "usage":
            break
    body = orjson.loads(second.payload)
    if "hold_id" in body:
        assert body["hold_id"] not in {held["row"]["hold_id"] for held in orjson.loads(first.payload)["holds"]}
    now_s, expected = worker.moment()
    assert facts_of(rebuilt(worker.journal.directory, now_s), now_s) == expected


def test_what_was_left_open_says_how_much_it_is_and_can_be_expired(worker: Worker) -> None:
    live_for(worker, 80, 5)
    now_s = worker.now_us // MILLION
    book = Book(BUDGETS, now_s)
    ownerless = recovery.rebuild(book, replay_from_snapshot(worker.journal.directory), now_s)
    assert ownerless == len(worker.book.holds) > 0
    for hold_id in list(book.holds):
        held = book.holds[hold_id].charges()
        settlement = book.expire(hold_id, worker.now_us)
        assert settlement.charges == tuple(
            charge._replace(amount=0) if charge.resource == "concurrency" else charge for charge in held
        )
    assert all(counter.held == 0 for counter in book.counters(now_s))


def test_a_rebuilt_book_still_knows_how_the_holds_of_its_tail_ended(worker: Worker) -> None:
    rng = random.Random(2)
    hold_ids = []
    for _ in range(3):
        worker.open(rng, "")
        hold_ids.append(list(worker.book.holds)[-1])
    worker.settle(rng, hold_ids[0])
    worker.record_end(worker.book.expire(hold_ids[1], worker.now_us), "expired")
    book = rebuilt(worker.journal.directory, START_S)
    assert book.settle(hold_ids[0], Amounts(tokens=1), worker.now_us) is None
    with pytest.raises(IllegalMove, match="expired cannot settle"):
        book.settle(hold_ids[1], Amounts(tokens=1), worker.now_us)
    assert list(book.holds) == hold_ids[2:]


def test_a_budget_that_is_away_at_a_restart_comes_back_with_all_it_had(worker: Worker) -> None:
    live_for(worker, 150, 3)
    now_s, expected = worker.moment()
    book = rebuilt(worker.journal.directory, now_s, budgets=())
    assert book.counters(now_s) == []
    again = Book((), now_s)
    first = Record(1, SNAPSHOT, orjson.dumps(recovery.snapshot(book), default=list), b"", "", 0)
    recovery.rebuild(again, [first], now_s)
    again.configure(BUDGETS, now_s)
    assert facts_of(again, now_s) == expected


def test_a_clock_that_went_back_over_a_restart_gives_nothing_back(worker: Worker) -> None:
    live_for(worker, 150, 4)
    now_s, expected = worker.moment()
    book = rebuilt(worker.journal.directory, now_s - 90)
    early, _ = facts_of(book, now_s - 90)
    assert all(early[name][0] >= spent and early[name][1] >= held for name, (spent, held, _) in expected[0].items())
    assert facts_of(book, now_s) == expected


def test_without_a_journal_the_sums_of_the_ledger_make_the_same_counters(worker: Worker) -> None:
    live_for(worker, 200, 6)
    for hold_id in list(worker.book.holds):
        worker.record_end(worker.book.expire(hold_id, worker.now_us), "expired")
    sums: Tally[tuple[str, str, int, str]] = Tally()
    for record in read(worker.journal.directory):
        body = orjson.loads(record.payload)
        for budget, counter, start_s, resource, amount in body.get("charges", ()) if record.kind == "usage" else ():
            sums[budget, counter, start_s, resource] += amount
    now_s = worker.now_us // MILLION
    book = Book(BUDGETS, now_s)
    recovery.restore_spent(book, (Charge(*key, amount) for key, amount in sums.items() if amount), now_s)
    spent = {name: spent for name, (spent, _, _) in facts_of(book, now_s)[0].items()}
    assert spent == {name: spent for name, (spent, _, _) in facts_of(worker.book, now_s)[0].items() if spent}
