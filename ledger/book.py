"""The book: every counter and every open hold, in memory, with one writer.

`hold` takes from every matching budget or from none. `settle`, `void` and `expire` each end a hold once. The book does
no I/O and reads no clock: its owner journals what it returns and passes the time in. Where that time goes back, the
counters stay where they are until it has caught up.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from domain.amounts import MILLION, Amounts
from domain.charges import Charge, ChargeRow
from domain.decision import BANDS, Band
from ledger.accounts import Accounts
from ledger.budgets import Budget, Subject
from ledger.counters import Cell, Counter, Grant, Tenure
from ledger.holds import Demand, Hold, IllegalMove, Line, Move, Shortfall, State, moved
from ledger.windows import FOREVER_S

ROUTES_MAX = 20_000
ENDED_MAX = 20_000
US = 1_000_000


class Crossing(NamedTuple):
    """A budget's counter fell to a worse band."""

    budget: str
    counter: str
    resource: str
    band: Band
    spent: int
    limit: int
    window_start_s: int


class Overage(NamedTuple):
    """A settlement charged a budget more than its hold had set aside."""

    budget: str
    counter: str
    resource: str
    amount: int


@dataclass(frozen=True, slots=True)
class Settlement:
    """What ending a hold did to the counters."""

    hold: Hold
    charges: tuple[ChargeRow, ...]
    crossings: tuple[Crossing, ...]
    overages: tuple[Overage, ...]


class Headroom(NamedTuple):
    """The bands of a route, for policy: the worst, the resource it is worst on, and each resource's own."""

    band: Band
    worst: str
    per_resource: tuple[tuple[str, Band], ...]


class Route:
    """The counters that one subject's requests are held on; `hard` ones can refuse."""

    __slots__ = ("_headrooms", "counters")

    def __init__(self, counters: tuple[tuple[Counter, int, bool], ...]) -> None:
        self.counters = counters
        self._headrooms: dict[tuple[int, ...], Headroom] = {}

    def headroom(self, now_s: int) -> Headroom:
        """The bands as they stand at `now_s`."""
        levels = []
        for counter, _, _ in self.counters:
            if now_s >= counter.turns_s:
                counter.turn(now_s)
            levels.append(counter.level)
        key = tuple(levels)
        found = self._headrooms.get(key)
        if found is None:
            found = self._headrooms[key] = self._grade(key)
        return found

    def _grade(self, levels: tuple[int, ...]) -> Headroom:
        worst: dict[str, int] = {}
        for (counter, _, _), level in zip(self.counters, levels, strict=True):
            resource = counter.budget.resource
            worst[resource] = max(worst.get(resource, 0), level)
        top = max(worst, key=worst.__getitem__, default="")
        bands = tuple((resource, BANDS[level]) for resource, level in sorted(worst.items()))
        return Headroom(BANDS[worst.get(top, 0)], top, bands)


class Book:
    """The budget book of one gateway worker.

    A shared one holds within what the store behind it has leased to this worker (`ledger.leases`), and lists in
    `touched` the counters that changed since the store was told.
    """

    def __init__(self, budgets: Iterable[Budget], now_s: int, *, is_shared: bool = False) -> None:
        self.holds: dict[str, Hold] = {}
        self.is_shared = is_shared
        self.touched: list[Counter] = []
        self._accounts = Accounts(is_shared=is_shared)
        self._routes: dict[Subject, Route] = {}
        self._ended: OrderedDict[str, State] = OrderedDict()
        self._now_s = now_s
        self.configure(budgets, now_s)

    @property
    def budgets(self) -> dict[str, Budget]:
        """The configured budgets by id."""
        return self._accounts.budgets

    @property
    def now_s(self) -> int:
        """The latest time that it was told."""
        return self._now_s

    @property
    def grants(self) -> dict[str, Grant]:
        """The grants by id; those that have just expired may still be among them."""
        return self._accounts.grants

    @property
    def is_away(self) -> bool:
        """Whether the store of a shared book cannot be asked now."""
        return self._accounts.is_away

    def set_away(self, *, is_away: bool) -> None:
        """Say whether the store of a shared book can be asked."""
        self._accounts.set_away(is_away=is_away)

    def configure(self, budgets: Iterable[Budget], now_s: int) -> None:
        """Take a new set of budgets; a counter that one of them still keeps goes on, its holds included."""
        self._accounts.configure(budgets, self._latest(now_s))
        self._routes.clear()
        for counter in self._accounts:
            self.touch(counter)

    def touch(self, counter: Counter) -> None:
        """Let the store be told of a counter at the next occasion."""
        if self.is_shared and not counter.is_touched:
            counter.is_touched = True
            self.touched.append(counter)

    def known(self, budget_id: str, resource: str, name: str) -> Counter | None:
        """The counter of that name, in force or kept aside of a budget that is gone."""
        return self._accounts.known(budget_id, resource, name)

    def every_counter(self) -> list[Counter]:
        """The counters in force and those kept aside, as they are."""
        return self._accounts.every()

    def find(self, budget_id: str, name: str) -> Counter | None:
        """The counter in force of that name, if there is one."""
        return self._accounts.find(budget_id, name)

    def route(self, subject: Subject, now_s: int) -> Route:
        """The counters a subject falls on, resolved once and remembered until budgets or counters change."""
        route = self._routes.get(subject)
        if route is None:
            if len(self._routes) >= ROUTES_MAX:
                self._routes.clear()
            now_s = self._latest(now_s)
            matched = [(budget, budget.counter_of(subject)) for budget in self.budgets.values()]
            route = self._routes[subject] = Route(
                tuple(
                    (self._accounts.counter(budget, name, now_s), budget.resource_index, budget.is_hard)
                    for budget, name in matched
                    if name is not None
                )
            )
            for counter, _, _ in route.counters:
                self.touch(counter)
        return route

    def hold(
        self, route: Route, demand: Demand, hold_id: str, row: dict[str, Any], now_us: int, ttl_s: int
    ) -> Hold | Shortfall:
        """Set a demand aside on every counter of the route, or on none.

        The hold granted has the largest output cap within the demand's bounds that fits every hard budget.
        """
        fixed, rates, cap_min, cap = demand
        now_s = now_us // US
        if now_s > self._now_s:
            self._now_s = now_s
        else:
            now_s = self._now_s
        for counter, index, hard in route.counters:
            if now_s >= counter.turns_s:
                counter.turn(now_s)
            if hard:
                rate = rates[index]
                left = counter.ceiling - counter.spent - counter.held - fixed[index]
                if left * MILLION < rate * cap:
                    cap = left * MILLION // rate if rate else -1
                if cap < cap_min:
                    return _shortfall(route, demand, now_s, is_away=self.is_away)
        lines = []
        is_shared = self.is_shared
        for counter, index, _ in route.counters:
            amount = fixed[index] - (-rates[index] * cap // MILLION)
            cell = counter.cell
            cell.held += amount
            counter.held += amount
            counter.holds += 1
            lines.append(Line(counter, cell, amount))
            if is_shared and not counter.is_touched:
                self.touch(counter)
        hold = Hold(hold_id, tuple(lines), cap, now_us, now_us + ttl_s * US, row)
        self.holds[hold_id] = hold
        return hold

    def settle(self, hold_id: str, actual: Amounts, now_us: int) -> Settlement | None:
        """End a hold with what was really used; None when it had already been settled.

        More than was held is posted all the same and reported as an overage.
        """
        hold = self.holds.get(hold_id)
        if hold is None:
            moved(self._state_of(hold_id), Move.SETTLE)
            return None
        return self._end(hold, State.SETTLED, actual, now_us // US)

    def void(self, hold_id: str) -> Hold | None:
        """Return a hold of which nothing was sent upstream; None when it had already been voided."""
        hold = self.holds.get(hold_id)
        if hold is None:
            moved(self._state_of(hold_id), Move.VOID)
            return None
        self._release(hold)
        self._close(hold, State.VOIDED)
        return hold

    def renew(self, hold_id: str, now_us: int, ttl_s: int) -> Hold:
        """Put off the expiry of a live hold to a whole TTL from now."""
        hold = self.holds.get(hold_id)
        if hold is None:
            moved(self._state_of(hold_id), Move.RENEW)
            raise IllegalMove(f"hold {hold_id} is not open")
        hold.expires_at_us = now_us + ttl_s * US
        return hold

    def expire(self, hold_id: str, now_us: int) -> Settlement:
        """Charge an ownerless hold in full, concurrency excepted: what was not seen is never refunded."""
        hold = self.holds.get(hold_id)
        if hold is None:
            moved(self._state_of(hold_id), Move.EXPIRE)
            raise IllegalMove(f"hold {hold_id} is not open")
        return self._end(hold, State.EXPIRED, None, now_us // US)

    def grant(self, grant: Grant, now_s: int) -> None:
        """Add extra limit to a budget's counter, or to all of them; a repeated grant id changes nothing."""
        self._accounts.grant(grant, self._latest(now_s))

    def counters(self, now_s: int) -> list[Counter]:
        """Every live counter, turned to `now_s`; those that hold and count nothing any more are forgotten."""
        if self._accounts.forget(self._latest(now_s)):
            self._routes.clear()
            self.touched = [counter for counter in self.touched if counter.is_touched]
        return list(self._accounts)

    def adjust(self, charges: Iterable[Charge], now_s: int) -> list[Crossing]:
        """Apply the signed charges of a correction row, which stands in the journal by then, where they still count.

        Returns the thresholds that this crossed; in a shared book its store tells of them.
        """
        crossings, now_s = [], self._latest(now_s)
        for charge in charges:
            counter = self._accounts.counter_of(charge, now_s)
            before = counter.level if counter is not None else 0
            self._accounts.restore_spent(charge, now_s)
            if counter is not None:
                self.touch(counter)
                if counter.level > before and not self.is_shared:
                    crossings.append(self._crossing(counter, counter.cell))
        return crossings

    def restore_spent(self, charge: Charge, now_s: int) -> None:
        """Put back one charge of a rebuilt book; one of a budget that is not configured now is kept aside."""
        self._accounts.restore_spent(charge, self._latest(now_s))

    def restore_hold(self, hold: Hold, charges: Iterable[Charge], now_s: int) -> None:
        """Open a hold of a rebuilt book again, on the counters and in the windows it was opened on."""
        now_s = self._latest(now_s)
        hold.lines = tuple(self._accounts.restore_held(charge, now_s) for charge in charges)
        self.holds[hold.hold_id] = hold

    def restore_end(self, hold_id: str, state: State, charges: Iterable[Charge], now_s: int) -> None:
        """End a hold of a rebuilt book as its record says: with these charges, whatever it held."""
        hold = self.holds[hold_id]
        self._release(hold)
        for charge in charges:
            self.restore_spent(charge, now_s)
        self._close(hold, state)

    def spent_charges(self) -> list[Charge]:
        """What is spent in every cell that still counts, retired budgets included: the counters of a snapshot."""
        return self._accounts.spent()

    def _end(self, hold: Hold, state: State, actual: Amounts | None, now_s: int) -> Settlement:
        charges, crossings, overages = [], [], []
        now_s = self._latest(now_s)
        for counter, cell, held in hold.lines:
            budget = counter.budget
            if now_s >= counter.turns_s:
                counter.turn(now_s)
            if actual is None:
                spent = 0 if budget.resource == "concurrency" else held
            else:
                spent = actual[budget.resource_index]
            counter.end(cell, held, spent)
            if cell.live and spent and counter.grade() and not self.is_shared:
                crossings.append(self._crossing(counter, cell))
            if self.is_shared and not counter.is_touched:
                self.touch(counter)
            charges.append((budget.id, counter.name, cell.start_s, budget.resource, spent))
            if spent > held:
                overages.append(Overage(budget.id, counter.name, budget.resource, spent - held))
        self._close(hold, state)
        return Settlement(hold, tuple(charges), tuple(crossings), tuple(overages))

    def _close(self, hold: Hold, state: State) -> None:
        hold.state = state
        del self.holds[hold.hold_id]
        self._ended[hold.hold_id] = state
        if len(self._ended) > ENDED_MAX:
            self._ended.popitem(last=False)

    def _state_of(self, hold_id: str) -> State:
        state = self._ended.get(hold_id)
        if state is None:
            raise IllegalMove(f"hold {hold_id} is not known")
        return state

    def _latest(self, now_s: int) -> int:
        """The time of the book, which a clock that went back does not move."""
        self._now_s = max(self._now_s, now_s)
        return self._now_s

    def _release(self, hold: Hold) -> None:
        for counter, cell, amount in hold.lines:
            counter.end(cell, amount, 0)
            self.touch(counter)

    @staticmethod
    def _crossing(counter: Counter, cell: Cell) -> Crossing:
        budget = counter.budget
        return Crossing(
            budget.id,
            counter.name,
            budget.resource,
            counter.band,
            counter.spent + counter.spent_elsewhere,
            counter.limit,
            cell.start_s,
        )


def _shortfall(route: Route, demand: Demand, now_s: int, *, is_away: bool) -> Shortfall:
    """What a hold did not fit: the hard counter that stays short for longest."""
    needs = demand.at(demand.cap_min)
    short = []
    for counter, index, hard in route.counters:
        if now_s >= counter.turns_s:
            counter.turn(now_s)
        if hard and counter.room < needs[index]:
            short.append((counter, needs[index]))
    counter, asked = max(short, key=lambda each: _short_until_s(*each))
    budget = counter.budget
    is_concurrency = budget.resource == "concurrency"
    return Shortfall(
        budget=budget.id,
        owner=budget.owner,
        counter=counter.name,
        resource=budget.resource,
        window=budget.window.kind,
        limit=counter.limit,
        remaining=max(0, counter.available),
        asked=asked,
        resets_at_s=counter.resets_at_s(asked),
        is_short=(is_concurrency or budget.window.is_short) and asked <= counter.limit,
        is_concurrency=is_concurrency,
        is_cut_off=is_away and counter.tenure is not Tenure.OWN,
    )


def _short_until_s(counter: Counter, asked: int) -> int:
    """When a short counter will fit what is asked; concurrency comes back with any request that ends, so at once."""
    if counter.budget.resource == "concurrency" and asked <= counter.limit:
        return 0
    resets_at_s = counter.resets_at_s(asked)
    return FOREVER_S if resets_at_s is None else resets_at_s
