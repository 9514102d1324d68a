"""The book against a plain dictionary: whatever is asked of it, in whatever order, both say the same."""

import json
from collections import Counter as Tally
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from domain.amounts import RESOURCE_INDEX, Amounts
from domain.charges import Charge
from ledger import recovery
from ledger.book import Book, Settlement
from ledger.budgets import Budget, Subject
from ledger.counters import Grant
from ledger.holds import Demand, Hold, IllegalMove, Shortfall
from ledger.records import SNAPSHOT, Record
from ledger.windows import parse_window
from tests.ledger.book_draws import SCOPES, budgets, demands, subjects
from tests.ledger.dict_book import LEVELS, DictBook, Line, is_named, needed, span_s

START_S = 1_772_323_140  # 2026-02-28T23:59:00Z: a minute before a month ends
US = 1_000_000
TTL_S = 60

# Where the journal turned to a new segment, whose snapshot then stands there, as an operation was done and written.
turns = st.sampled_from(("no", "no", "no", "before", "between", "behind"))
pick = st.integers(0, 1_000_000)


class BookAndModel(RuleBasedStateMachine):
    """Does everything to a book and to its model, and rebuilds the book from what was journalled at any point."""

    def __init__(self) -> None:
        super().__init__()
        self.clock_us = START_S * US
        self.pool: dict[str, Budget] = {}
        self.records: list[Record] = []
        self.expiry: dict[str, int] = {}
        self.demands: dict[str, tuple[Demand, int]] = {}
        self.count = 0

    @initialize(drawn=st.tuples(*(budgets(f"b{index}") for index in range(6))))
    def begin(self, drawn: tuple[Budget, ...]) -> None:
        self.pool = {budget.id: budget for budget in drawn}
        self.model = DictBook(dict(self.pool), START_S)
        self.book = self.make_book(drawn, START_S)
        self.take_snapshot()

    def make_book(self, budgets: Iterable[Budget], now_s: int) -> Any:
        return Book(budgets, now_s)

    @rule(subject=subjects, demand=demands(), turn=turns)
    def hold(self, subject: Subject, demand: Demand, turn: str) -> None:
        self.count += 1
        hold_id = f"h{self.count}"
        now_us = self.tell_time()
        before = self.facts()
        if turn == "before":
            self.take_snapshot()
        route = self.book.route(subject, now_us // US)
        granted = self.book.hold(route, demand, hold_id, {"hold_id": hold_id}, now_us, TTL_S)
        cap = self.model.cap_that_fits(subject, demand)
        if isinstance(granted, Shortfall):
            assert cap is None, f"a cap of {cap} fits, but the book says {granted}"
            assert self.facts() == before, "a refused hold left something behind"
            self.check_shortfall(granted, subject, demand)
            return
        assert granted.cap == cap
        assert granted.expires_at_us == self.clock_us + TTL_S * US
        self.model.hold(hold_id, subject, demand, granted.cap)
        self.expiry[hold_id] = granted.expires_at_us
        self.demands[hold_id] = (demand, granted.cap)
        if turn == "between":
            self.take_snapshot()
        self.write("hold", self.moved(granted, "opened"))
        if turn == "behind":
            self.take_snapshot()

    @precondition(lambda self: self.model.holds)
    @rule(
        which=pick,
        parts=st.lists(st.sampled_from((0, 1, 50, 99, 100, 100)), min_size=10, max_size=10),
        turn=turns,
    )
    def settle_within(self, which: int, parts: list[int], turn: str) -> None:
        self.settle(self.open_hold(which), parts, turn)

    @precondition(lambda self: self.model.holds)
    @rule(which=pick, parts=st.lists(st.sampled_from((0, 100, 130)), min_size=10, max_size=10), turn=turns)
    def settle_beyond(self, which: int, parts: list[int], turn: str) -> None:
        self.settle(self.open_hold(which), parts, turn)

    def settle(self, hold_id: str, parts: list[int], turn: str) -> None:
        """End a hold with these percentages of what it held; above 100 something also where it held nothing."""
        demand, cap = self.demands[hold_id]
        actual = Amounts(*(needed(demand, i, cap) * part // 100 + (part > 100) for i, part in enumerate(parts)))
        lines = [replace(line, amount=actual[RESOURCE_INDEX[line.resource]]) for line in self.model.holds[hold_id]]
        over = [
            (line.budget, line.counter, line.resource, line.amount - held.amount)
            for line, held in zip(lines, self.model.holds[hold_id], strict=True)
            if line.amount > held.amount
        ]
        settlement = self.ended(
            hold_id, "settled", lines, turn, lambda: self.book.settle(hold_id, actual, self.tell_time())
        )
        assert [tuple(overage) for overage in settlement.overages] == over

    @precondition(lambda self: self.model.holds)
    @rule(which=pick, turn=turns)
    def expire(self, which: int, turn: str) -> None:
        hold_id = self.open_hold(which)
        lines = [
            replace(line, amount=0) if line.resource == "concurrency" else line for line in self.model.holds[hold_id]
        ]
        settlement = self.ended(hold_id, "expired", lines, turn, lambda: self.book.expire(hold_id, self.tell_time()))
        assert settlement.overages == ()

    @precondition(lambda self: self.model.holds)
    @rule(which=pick, turn=turns)
    def void(self, which: int, turn: str) -> None:
        hold_id = self.open_hold(which)
        self.journalled(turn, lambda: self.book.void(hold_id), lambda hold: ("hold", self.moved(hold, "voided")))
        self.model.end(hold_id, "voided", [])

    @precondition(lambda self: self.model.holds)
    @rule(which=pick, turn=turns)
    def renew(self, which: int, turn: str) -> None:
        hold_id = self.open_hold(which)
        self.expiry[hold_id] = self.clock_us + TTL_S * US
        self.journalled(
            turn,
            lambda: self.book.renew(hold_id, self.clock_us, TTL_S),
            lambda hold: ("hold", self.moved(hold, "renewed")),
        )

    @precondition(lambda self: self.model.ended)
    @rule(which=pick, move=st.sampled_from(("settle", "void", "renew", "expire")))
    def move_what_has_ended(self, which: int, move: str) -> None:
        hold_id, state = list(self.model.ended.items())[which % len(self.model.ended)]
        before = self.facts()
        moves: dict[str, Callable[[], object]] = {
            "settle": lambda: self.book.settle(hold_id, Amounts(*[7] * 10), self.clock_us),
            "void": lambda: self.book.void(hold_id),
            "renew": lambda: self.book.renew(hold_id, self.clock_us, TTL_S),
            "expire": lambda: self.book.expire(hold_id, self.clock_us),
        }
        if (state, move) in (("settled", "settle"), ("voided", "void")) and hold_id not in self.forgotten():
            assert moves[move]() is None
        else:
            with pytest.raises(IllegalMove):
                moves[move]()
        assert self.facts() == before

    @rule(
        budget=st.sampled_from(("b0", "b1", "b2", "b9")),
        counter=st.sampled_from(("*", "team=ads", "org=acme")),
        amount=st.integers(1, 300),
        ttl_s=st.sampled_from((1, 30, 4_000)),
        is_repeat=st.booleans(),
        turn=turns,
    )
    def grant(self, budget: str, counter: str, amount: int, ttl_s: int, is_repeat: bool, turn: str) -> None:
        now_s = self.tell_time() // US
        known = [grant_id for grant_id, grant in self.model.grants.items() if grant.expires_at_s > self.model.now_s]
        self.count += 1
        grant_id = known[-1] if known and is_repeat else f"g{self.count}"
        grant = Grant(grant_id, budget, counter, amount, self.model.now_s + ttl_s, "ann", "launch")
        first = self.model.grants.setdefault(grant_id, grant)
        record = {"action": "grant", "grant": recovery.grant_record(first)}
        self.journalled(turn, lambda: self.book.grant(grant, now_s), lambda _: ("control", record))

    @precondition(lambda self: self.model.spent)
    @rule(which=pick, share=st.sampled_from((-100, -50, 1, 30, 250)), is_now=st.booleans(), turn=turns)
    def adjust(self, which: int, share: int, is_now: bool, turn: str) -> None:
        """Correct a charge once made by so many percent of it: in the window it was made in, or in that of now."""
        now_us = self.tell_time()
        old = self.model.spent[which % len(self.model.spent)]
        budget = self.pool[old.budget]
        start_s, gone_s = span_s(budget.window.text, self.model.now_s) if is_now else (old.start_s, old.gone_s)
        line = replace(old, start_s=start_s, gone_s=gone_s, amount=old.amount * share // 100)
        record = {"event_id": "a", "request_id": "r", "status": "adjusted", "charges": [charge_of(line)]}
        if turn == "before":
            self.take_snapshot()
        # The record stands first, so a segment that turns as it is written begins with what was before it.
        if turn == "between":
            self.take_snapshot()
        self.write("usage", record)
        counted = self.model.budgets.get(budget.id)
        watched = counted if counted is not None and is_named(counted, line.counter) else None
        before = self.model.level(watched, line.counter) if watched else 0
        crossings = self.book.adjust([Charge(*charge_of(line))], now_us // US)
        if self.model.is_live(line) or line.gone_s > self.model.now_s:
            self.model.spent.append(line)
        after = self.model.level(watched, line.counter) if watched else 0
        crossed = [(budget.id, LEVELS[after])] if after > before else []
        assert [(crossing.budget, crossing.band) for crossing in crossings] == crossed
        if turn == "behind":
            self.take_snapshot()

    @rule(
        seconds=st.sampled_from((-4, -1, 1, 1, 7, 29, 60, 61, 600, 3_601, 86_400, 86_400 * 31)), us=st.integers(0, US)
    )
    def pass_time(self, seconds: int, us: int) -> None:
        self.clock_us += seconds * US + us

    @rule(
        which=pick,
        limit=st.none() | st.integers(0, 1_000),
        mode=st.sampled_from(("hard", "soft")),
        scope=st.none() | st.sampled_from(SCOPES),
        removed=st.just(set()) | st.sets(st.sampled_from(("b0", "b1", "b2", "b3", "b4", "b5")), max_size=6),
    )
    def reconfigure(self, which: int, limit: int | None, mode: Any, scope: Any, removed: set[str]) -> None:
        old = list(self.pool.values())[which % len(self.pool)]
        limit = old.limit if limit is None else limit
        self.pool[old.id] = replace(old, limit=limit, mode=mode, scope=old.scope if scope is None else scope)
        configured = {name: budget for name, budget in self.pool.items() if name not in removed}
        self.book.configure(configured.values(), self.tell_time() // US)
        self.model.budgets = configured

    @rule()
    def die_and_rebuild(self) -> None:
        self.book = self.make_book(self.model.budgets.values(), self.model.now_s)
        recovery.rebuild(self.book, self.records, self.model.now_s)

    @rule()
    def look(self) -> None:
        seen = {(counter.budget.id, counter.name): counter for counter in self.book.counters(self.tell_time() // US)}
        for (budget_id, name), counter in seen.items():
            budget = self.model.budgets[budget_id]
            assert (counter.spent, counter.held, counter.limit) == self.model.sums(budget, name)
            assert counter.level == self.model.level(budget, name)
        spent: Tally[tuple[str, str]] = Tally()
        for line in self.model.spent:
            spent[line.budget, line.counter] += line.amount * self.model.is_live(line)
        held = [line for lines in self.model.holds.values() for line in lines if line.amount]
        used = {key for key, amount in spent.items() if amount}
        assert used | {(line.budget, line.counter) for line in held if self.model.is_live(line)} <= seen.keys()

    @rule(subject=subjects)
    def grade(self, subject: Subject) -> None:
        headroom = self.book.route(subject, self.model.now_s).headroom(self.model.now_s)
        levels: dict[str, int] = {}
        for budget, name in self.model.matching(subject):
            levels[budget.resource] = max(levels.get(budget.resource, 0), self.model.level(budget, name))
        assert dict(headroom.per_resource) == {resource: LEVELS[level] for resource, level in levels.items()}
        assert headroom.band == LEVELS[max(levels.values(), default=0)]
        assert not levels or levels[headroom.worst] == max(levels.values())

    @invariant()
    def both_agree(self) -> None:
        if not self.pool:
            return
        spent: Tally[tuple[str, str, str, int]] = Tally()
        for line in self.model.spent:
            if line.gone_s > self.model.now_s:
                spent[line.budget, line.resource, line.counter, line.start_s] += line.amount
        holds = {
            hold_id: (self.expiry[hold_id], self.demands[hold_id][1], sorted(charge_of(line) for line in lines))
            for hold_id, lines in self.model.holds.items()
        }
        assert self.facts() == (+spent, holds)

    def facts(self) -> tuple[Tally[tuple[str, str, str, int]], dict[str, tuple[int, int, list[tuple[Any, ...]]]]]:
        """What the book would put into a snapshot, without the windows that no longer count."""
        spent: Tally[tuple[str, str, str, int]] = Tally()
        for charge in self.book.spent_charges():
            if span_s(self.pool[charge.budget].window.text, charge.window_start_s)[1] > self.model.now_s:
                spent[charge.budget, charge.resource, charge.counter, charge.window_start_s] += charge.amount
        holds = {
            hold_id: (hold.expires_at_us, hold.cap, sorted(tuple(charge) for charge in hold.charges()))
            for hold_id, hold in self.book.holds.items()
        }
        return +spent, holds

    def check_shortfall(self, short: Shortfall, subject: Subject, demand: Demand) -> None:
        budget, name = next(
            (budget, name) for budget, name in self.model.matching(subject) if budget.id == short.budget
        )
        left = self.model.available(budget, name)
        assert budget.mode == "hard"
        assert (short.counter, short.resource, short.limit) == (name, budget.resource, self.model.sums(budget, name)[2])
        assert short.asked == needed(demand, RESOURCE_INDEX[budget.resource], demand.cap_min)
        assert short.asked > left
        assert short.remaining == max(0, left)

    def ended(
        self, hold_id: str, state: str, lines: list[Line], turn: str, effect: Callable[[], Settlement | None]
    ) -> Settlement:
        """End a hold in both, and compare what the book says it did."""
        self.tell_time()
        watched = [line for line in lines if line.amount and self.model.is_live(line)]
        before = {line: self.model.level(self.model.budgets[line.budget], line.counter) for line in watched}
        result: list[Settlement] = []

        def end() -> None:
            settlement = effect()
            assert settlement is not None
            result.append(settlement)

        def record(_: object) -> tuple[str, dict[str, Any]]:
            status = "expired" if state == "expired" else "ok"
            return "usage", {**result[0].hold.row, "status": status, "charges": result[0].charges}

        self.journalled(turn, end, record)
        self.model.end(hold_id, state, lines)
        settlement = result[0]
        assert sorted(tuple(charge) for charge in settlement.charges) == sorted(charge_of(line) for line in lines)
        after = {line: self.model.level(self.model.budgets[line.budget], line.counter) for line in watched}
        crossed = [(line.budget, LEVELS[after[line]]) for line in watched if after[line] > before[line]]
        assert [(crossing.budget, crossing.band) for crossing in settlement.crossings] == crossed
        return settlement

    def tell_time(self) -> int:
        """The time that the book is told, which moves the model's on unless it has gone back."""
        self.model.now_s = max(self.model.now_s, self.clock_us // US)
        return self.clock_us

    def open_hold(self, which: int) -> str:
        return list(self.model.holds)[which % len(self.model.holds)]

    def forgotten(self) -> set[str]:
        """Holds whose end stands before the last snapshot, so that a rebuilt book does not know them."""
        return set(self.model.ended) - set(self.book._ended)

    def moved(self, hold: Hold, action: str) -> dict[str, Any]:
        more = {"cap": hold.cap, "charges": hold.charges()} if action == "opened" else {}
        return {
            **hold.row,
            "ts_us": self.clock_us,
            "event_id": hold.hold_id,
            "action": action,
            "expires_at_us": hold.expires_at_us,
            **more,
        }

    def journalled(
        self, turn: str, effect: Callable[[], Any], record: Callable[[Any], tuple[str, dict[str, Any]]]
    ) -> None:
        """Do something and write it down, with the journal turning to a new segment at some moment or at none."""
        if turn == "before":
            self.take_snapshot()
        result = effect()
        if turn == "between":
            self.take_snapshot()
        self.write(*record(result))
        if turn == "behind":
            self.take_snapshot()

    def take_snapshot(self) -> None:
        self.records = []
        self.write(SNAPSHOT, recovery.snapshot(self.book))

    def write(self, kind: str, body: dict[str, Any]) -> None:
        body = {"ts_us": self.clock_us, **body}
        self.records.append(Record(len(self.records) + 1, kind, json.dumps(body).encode(), b"", "", 0))


def charge_of(line: Line) -> tuple[str, str, int, str, int]:
    return (line.budget, line.counter, line.start_s, line.resource, line.amount)


def test_the_model_knows_its_own_names() -> None:
    search = Subject("acme", "search", "web", "", "k1", "", "small", "sim")
    names = ["*", "org=acme", "team=search", "org=acme,team=search", "org=acme,team=search,app=web"]
    for scope, name in zip(SCOPES, names, strict=False):
        budget = Budget("b", "o", scope, "tokens", 1, parse_window("total"))
        assert is_named(budget, name)
        assert budget.counter_of(search) == name


@pytest.mark.parametrize("move", ["void", "renew"])
def test_a_rebuilt_book_is_at_the_time_that_the_old_one_was_told(move: str) -> None:
    """To void or renew a hold tells no time, though its record has one."""
    asked = Demand(Amounts(tokens=5), Amounts(), 0, 0), "no"
    subject = Subject("acme", "search", "web", "", "k1", "", "small", "sim")
    it = BookAndModel()
    it.begin((Budget("b0", "o", (), "tokens", 1_000, parse_window("rolling:60s")),))
    it.hold(subject, *asked)
    it.pass_time(600, 0)
    getattr(it, move)(0, "no")
    it.pass_time(-4, 0)
    it.hold(subject, *asked)
    it.die_and_rebuild()
    it.hold(subject, *asked)
    it.both_agree()


TestBookAndModel = BookAndModel.TestCase
TestBookAndModel.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
