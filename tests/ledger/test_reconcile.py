"""Counters, runtimes and journal beside the ledger: agreement is no drift, every disagreement is the right number."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from domain.amounts import MILLION, Amounts
from domain.ids import uuid7
from ledger import reconcile, recovery
from ledger.book import Book
from ledger.budgets import Budget, Subject
from ledger.client import LedgerClient, open_ledger
from ledger.holds import Demand, Hold
from ledger.journal import Journal
from ledger.reconcile import Account, Baseline, Totals
from ledger.windows import parse_window

PLENTY = 10**15
BUDGETS = (
    Budget("all", "finance", (), "list_cost_nusd", PLENTY, parse_window("total")),
    Budget("team", "finance", (("team", "*"),), "tokens", PLENTY, parse_window("month")),
    Budget("rate", "finance", (("team", "*"), ("app", "*")), "tokens", PLENTY, parse_window("rolling:1h")),
    Budget("calls", "finance", (("key", "*"),), "requests", PLENTY, parse_window("day")),
    Budget("slots", "finance", (("app", "*"),), "concurrency", PLENTY, parse_window("total")),
)


class Worker:
    """A book and its journal, charged as the gateway charges them."""

    def __init__(self, journal: Journal, book: Book) -> None:
        self.journal = journal
        self.book = book
        self.now_us = time.time_ns() // 1000

    @property
    def now_s(self) -> int:
        return self.now_us // MILLION

    def spend(self, number: int, *, team: str = "search", runtime: str = "vllm", **row: Any) -> None:
        """One request of some tokens, held and settled."""
        subject = Subject("acme", team, "web", "", f"k{number % 3}", "", "small", runtime)
        demand = Demand(Amounts(500, 500, 0, 9_000, requests=1, concurrency=1), Amounts(), 1, 1)
        held = self.book.hold(self.book.route(subject, self.now_s), demand, uuid7(), {}, self.now_us, 60)
        assert isinstance(held, Hold)
        settlement = self.book.settle(held.hold_id, Amounts(number, number, 0, 7 * number, requests=1), self.now_us)
        assert settlement is not None
        usual = {"org": "acme", "team": team, "runtime": runtime, "status": "ok", "certainty": "exact"}
        usual |= {"request_id": held.hold_id, "ts_us": self.now_us, "input_tokens": number, "output_tokens": 1}
        self.journal.append("usage", {**usual, **row, "charges": settlement.charges})

    def cut(self) -> reconcile.Cut:
        return reconcile.cut(self.book, self.journal.writer, self.journal.tail_seq, self.now_s)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LedgerClient]:
    """One ledger process; each test has a writer and budgets of its own in it."""
    home = tmp_path_factory.mktemp("home")
    with open_ledger(home, f"chdb://{home}/ledger") as client:
        client.home = home  # type: ignore[attr-defined]  # where the tests put their journals
        yield client


@contextmanager
def working(client: LedgerClient, name: str) -> Iterator[Worker]:
    """A worker whose budgets no other test charges."""
    budgets = [replace(budget, id=f"{name}-{budget.id}") for budget in BUDGETS]
    home: Path = client.home  # type: ignore[attr-defined]  # set by the fixture
    book = Book(budgets, int(time.time()))
    journal = Journal.open(home / "journal" / name, snapshot=lambda: recovery.snapshot(book))
    try:
        yield Worker(journal, book)
    finally:
        journal.close()


@contextmanager
def sharing(client: LedgerClient, name: str) -> Iterator[Worker]:
    """A worker that shares its budgets, and so their counters, with others; soft ones hold without a lease."""
    budgets = [replace(budget, id=f"shared-{budget.id}", mode="soft") for budget in BUDGETS]
    home: Path = client.home  # type: ignore[attr-defined]  # set by the fixture
    book = Book(budgets, int(time.time()), is_shared=True)
    journal = Journal.open(home / "journal" / name, snapshot=lambda: recovery.snapshot(book))
    try:
        yield Worker(journal, book)
    finally:
        journal.close()


def asked(client: LedgerClient) -> reconcile.Ask:
    def ask(sql: str, parameters: dict[str, str]) -> list[dict[str, Any]]:
        return client.rows(sql, **parameters)

    return ask


def compared(client: LedgerClient, worker: Worker) -> list[Account]:
    cut = worker.cut()
    client.flush()
    return list(reconcile.counters(asked(client), cut))


def drifting(accounts: list[Account]) -> dict[tuple[str, str], int]:
    return {(each.subject, each.quantity): each.drift for each in accounts if each.drift}


def test_counters_that_were_charged_as_the_rows_say_do_not_drift(client: LedgerClient) -> None:
    random = Random(7)
    with working(client, "agree") as worker:
        for number in range(200):
            worker.now_us += random.choice((1_000, 400_000, 3_000_000, 90_000_000))
            worker.spend(number, team=random.choice(("search", "ads", "a b")))
        accounts = compared(client, worker)
        assert drifting(accounts) == {}
        assert sum(each.found for each in accounts if each.quantity == "list_cost_nusd") == 7 * sum(range(200))
        # Among them the minutes of the last hour, for each team.
        assert len(accounts) > 40


def test_a_counter_that_was_touched_drifts_by_just_that(client: LedgerClient) -> None:
    with working(client, "touched") as worker:
        for number in range(1, 30):
            worker.spend(number)
        total = next(each for each in worker.book.counters(worker.now_s) if each.budget.id == "touched-all")
        month = next(each for each in worker.book.counters(worker.now_s) if each.budget.id == "touched-team")
        total.cell.spent += 12
        month.cell.spent -= 5
        drift = drifting(compared(client, worker))
        assert drift.pop(("touched-all (*)", "list_cost_nusd")) == 12
        ((subject, quantity), amount) = drift.popitem()
        assert (subject.split(" since ")[0], quantity, amount) == ("touched-team (team=search)", "tokens", -5)
        assert drift == {}


def test_a_counter_that_only_one_side_knows_drifts_in_full(client: LedgerClient) -> None:
    with working(client, "lost") as worker:
        worker.spend(10)
        fresh = Worker(worker.journal, Book(worker.book.budgets.values(), worker.now_s))
        accounts = compared(client, fresh)
        assert sorted(each.drift for each in accounts) == [-70, -10, -10, -1]
        empty = worker.cut()._replace(writer="nobody", seq=0, is_shared=True)
        assert sorted(each.drift for each in reconcile.counters(asked(client), empty)) == [1, 10, 10, 70]


def test_a_gateway_of_a_shared_book_is_compared_with_its_own_rows_alone(client: LedgerClient) -> None:
    with sharing(client, "mine") as mine, sharing(client, "theirs") as theirs:
        for number in range(1, 8):
            mine.spend(number)
            theirs.spend(100 * number)
        for worker in (mine, theirs):
            assert drifting(compared(client, worker)) == {}
        mine.book.counters(mine.now_s)[0].cell.spent += 3
        assert list(drifting(compared(client, mine)).values()) == [3]
        assert drifting(compared(client, theirs)) == {}
        everyone = list(reconcile.counters(asked(client), mine.cut()._replace(is_shared=False)))
        assert drifting(everyone), "with a book of its own the rows of all writers would count"


def test_what_comes_after_the_cut_is_not_compared(client: LedgerClient) -> None:
    with working(client, "later") as worker:
        for number in range(10):
            worker.spend(number)
        cut = worker.cut()
        for number in range(10):
            worker.spend(number)
        client.flush()
        assert drifting(list(reconcile.counters(asked(client), cut))) == {}
        before = cut._replace(seq=cut.seq - 1)
        assert drifting(list(reconcile.counters(asked(client), before)))[("later-all (*)", "list_cost_nusd")] == 63


def test_what_no_budget_counts_any_more_is_not_compared(client: LedgerClient) -> None:
    with working(client, "edited") as worker:
        worker.spend(10)
        worker.now_us += 3 * 3_600 * MILLION
        kept = [budget for budget in worker.book.budgets.values() if budget.id not in ("edited-all", "edited-calls")]
        narrowed = [replace(budget, scope=(("org", "*"),)) if budget.id == "edited-team" else budget for budget in kept]
        worker.book.configure(narrowed, worker.now_s)
        worker.book.counters(worker.now_s)
        assert compared(client, worker) == []


def test_pages_and_groups_of_budgets_change_nothing(client: LedgerClient, monkeypatch: pytest.MonkeyPatch) -> None:
    with working(client, "paged") as worker:
        for number in range(60):
            worker.now_us += 70 * MILLION
            worker.spend(number, team=f"t{number % 4}")
        whole = compared(client, worker)
        monkeypatch.setattr(reconcile, "PAGE_ROWS", 3)
        monkeypatch.setattr(reconcile, "BUDGETS_PER_QUERY", 1)
        assert sorted(map(str, compared(client, worker))) == sorted(map(str, whole))
        assert drifting(whole) == {}


def test_a_correction_row_brings_both_together_and_a_rebuild_says_the_same(client: LedgerClient) -> None:
    with working(client, "mended") as worker:
        for number in range(1, 5):
            worker.spend(number)
        total = next(each for each in worker.book.counters(worker.now_s) if each.budget.id == "mended-all")
        total.cell.spent += 12
        total.spent += 12
        (account,) = [each for each in compared(client, worker) if each.drift]
        assert account.charge is not None
        missing = account.charge._replace(amount=12)
        row = {"ts_us": worker.now_us, "org": "", "status": "adjusted", "charges": [missing], "counters": []}
        worker.journal.append("usage", row)
        assert drifting(compared(client, worker)) == {}
        total.cell.spent -= 20
        total.spent -= 20
        raised = account.charge._replace(amount=20)
        row = {"ts_us": worker.now_us, "org": "", "status": "adjusted", "charges": [], "counters": [raised]}
        worker.journal.append("usage", row)
        worker.book.adjust([raised], worker.now_s)
        assert drifting(compared(client, worker)) == {}


def test_the_store_has_each_record_once(client: LedgerClient) -> None:
    with working(client, "stored") as worker:
        for number in range(20):
            worker.spend(number)
        worker.journal.append("control", {"action": "start", "actor": "test"})
        client.flush()
        accounts = list(reconcile.store(asked(client), "stored", worker.journal.tail_seq))
        assert drifting(accounts) == {}
        assert {each.subject: each.found for each in accounts} == {
            "stored: records up to 22": 22,
            "stored: records there twice": 0,
            "stored: rows of usage": 20,
            "stored: rows of hold": 0,
            "stored: rows of decision_inputs": 0,
            "stored: rows of control": 1,
            "stored: rows of signal": 0,
            "stored: rows of tool_call": 0,
            "stored: rows of runtime_sample": 0,
        }


def test_a_store_with_holes_and_doubles_drifts() -> None:
    def ask(sql: str, parameters: dict[str, str]) -> list[dict[str, Any]]:
        assert parameters == {"writer": "w", "seq": "10"}
        if "FROM events" in sql:
            return [
                {"kind": "usage", "rows": 5, "seqs": 4, "first": 3, "last": 9},
                {"kind": "snapshot", "rows": 1, "seqs": 1, "first": 4, "last": 4},
            ]
        return [{"rows": 3 if "FROM usage" in sql else 0}]

    drift = drifting(list(reconcile.store(ask, "w", 10)))
    assert drift == {
        ("w: records up to 10", "records"): -3,
        ("w: records there twice", "records"): 1,
        ("w: rows of usage", "records"): -2,
    }


def test_a_runtime_is_compared_by_how_sure_its_rows_are(client: LedgerClient) -> None:
    with working(client, "tokens") as worker:
        worker.spend(1_000, runtime="before")
        base = Baseline("tokens", worker.journal.tail_seq, Totals(50, 5, 3))
        worker.spend(100, runtime="gpu-1", output_tokens=10, cached_input_tokens=16)
        worker.spend(200, runtime="gpu-1", output_tokens=20, certainty="at_least")
        worker.spend(400, runtime="gpu-1", output_tokens=40, certainty="at_most")
        worker.spend(800, runtime="gpu-1", status="adjusted")
        worker.spend(800, runtime="gpu-2")
        client.flush()
        seq = worker.journal.tail_seq

        def drift(prompt: int, generation: int, cached: int) -> tuple[int, ...]:
            now = Totals(50 + prompt, 5 + generation, 3 + cached)
            return tuple(each.drift for each in reconcile.runtime(asked(client), "gpu-1", base, seq, now))

        assert drift(300, 29, 16) == drift(700, 86, 616) == (0, 0, 0)
        assert drift(299, 28, 15) == (-1, -1, -1)
        assert drift(701, 87, 617) == (1, 1, 1)
        (exact, *_) = reconcile.runtime(asked(client), "gpu-2", base, seq, Totals(850, 5, 3))
        assert (exact.least, exact.most, exact.found) == (800, 800, 800)


@pytest.mark.parametrize(
    ("least", "most", "found", "drift"), [(5, 5, 5, 0), (5, 9, 9, 0), (5, 9, 12, 3), (5, 9, 1, -4), (0, 0, -2, -2)]
)
def test_drift_is_how_far_outside_of_what_is_allowed(least: int, most: int, found: int, drift: int) -> None:
    assert Account("counter", "x", "tokens", least, most, found).drift == drift
