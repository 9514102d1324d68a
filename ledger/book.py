"""The book: every counter and every open hold, in memory, with one writer.

`hold` takes from every matching budget or from none. `settle`, `void` and `expire` each end a hold once. The book does
no I/O and reads no clock: its owner journals what it returns and passes the time in.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from domain.amounts import MILLION, Amounts
from domain.charges import Charge
from domain.decision import BANDS, Band
from ledger.budgets import Budget, Subject
from ledger.counters import Cell, Counter, Grant
from ledger.holds import Demand, Hold, IllegalMove, Line, Move, Shortfall, State, moved

ROUTES_MAX = 20_000
ENDED_MAX = 20_000
RETIRED_MAX = 100_000
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
    charges: tuple[Charge, ...]
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
    """The budget book of one gateway worker."""

    def __init__(self, budgets: Iterable[Budget], now_s: int) -> None:
        self.budgets: dict[str, Budget] = {}
        self.holds: dict[str, Hold] = {}
        self.grants: dict[str, Grant] = {}
        self._counters: dict[str, dict[str, Counter]] = {}
        self._retired: OrderedDict[tuple[str, str, str, int], Cell] = OrderedDict()
        self._routes: dict[Subject, Route] = {}
        self._ended: OrderedDict[str, State] = OrderedDict()
        self.configure(budgets, now_s)

    def configure(self, budgets: Iterable[Budget], now_s: int) -> None:
        """Take a new set of budgets; counters of budgets whose identity is unchanged go on."""
        new = {budget.id: budget for budget in budgets}
        for old in list(self.budgets.values()):
            kept = new.get(old.id)
            if kept is None or kept.identity != old.identity:
                for counter in self._counters.pop(old.id, {}).values():
                    self._retire(counter)
        self.budgets = new
        for budget in new.values():
            for counter in self._counters.setdefault(budget.id, {}).values():
                counter.configure(budget, self._grants_of(budget.id, counter.name), now_s)
        self._routes.clear()

    def route(self, subject: Subject, now_s: int) -> Route:
        """The counters a subject falls on, resolved once and remembered."""
        route = self._routes.get(subject)
        if route is None:
            if len(self._routes) >= ROUTES_MAX:
                self._routes.clear()
            matched = [(budget, budget.counter_of(subject)) for budget in self.budgets.values()]
            route = self._routes[subject] = Route(
                tuple(
                    (self._counter(budget, name, now_s), budget.resource_index, budget.is_hard)
                    for budget, name in matched
                    if name is not None
                )
            )
        return route

    def hold(
        self, route: Route, demand: Demand, hold_id: str, row: dict[str, Any], now_us: int, ttl_s: int
    ) -> Hold | Shortfall:
        """Set a demand aside on every counter of the route, or on none.

        The hold granted has the largest output cap within the demand's bounds that fits every hard budget.
        """
        fixed, rates, cap_min, cap = demand
        now_s = now_us // US
        for counter, index, hard in route.counters:
            if now_s >= counter.turns_s:
                counter.turn(now_s)
            if hard:
                rate = rates[index]
                left = counter.limit - counter.spent - counter.held - fixed[index]
                if left * MILLION < rate * cap:
                    cap = left * MILLION // rate if rate else -1
                if cap < cap_min:
                    return self._shortfall(route, demand)
        lines = []
        for counter, index, _ in route.counters:
            amount = fixed[index] - (-rates[index] * cap // MILLION)
            cell = counter.cells[-1]
            cell.held += amount
            counter.held += amount
            lines.append(Line(counter, cell, amount))
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
        for counter, cell, amount in hold.lines:
            self._release(counter, cell, amount)
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
        self.grants[grant.grant_id] = grant
        for counter in self._counters.get(grant.budget, {}).values():
            counter.configure(counter.budget, self._grants_of(grant.budget, counter.name), now_s)

    def counters(self, now_s: int) -> list[Counter]:
        """Every live counter, turned to `now_s`; those that hold and count nothing any more are forgotten."""
        live = []
        for counters in self._counters.values():
            for name, counter in list(counters.items()):
                if now_s >= counter.turns_s:
                    counter.turn(now_s)
                    if counter.is_idle:
                        del counters[name]
                        self._routes.clear()
                        continue
                live.append(counter)
        self.grants = {key: grant for key, grant in self.grants.items() if grant.expires_at_s > now_s}
        return live

    def restore(self, charge: Charge, *, held: bool, now_s: int) -> Line | None:
        """Put back one charge of a rebuilt book, as held or as spent; None when its window no longer counts.

        Charges of budgets that are not configured now are kept aside, in case they come back.
        """
        budget = self.budgets.get(charge.budget)
        if budget is None or budget.resource != charge.resource:
            if not held:
                self._retired_cell(charge[:2], charge.resource, charge.window_start_s).spent += charge.amount
            return None
        if budget.window.cell_gone_s(charge.window_start_s) <= now_s and not held:
            return None
        counter = self._counter(budget, charge.counter, now_s)
        cell = counter.restore(charge.window_start_s)
        if held:
            cell.held += charge.amount
            counter.held += charge.amount
        else:
            cell.spent += charge.amount
            counter.spent += charge.amount
        counter.turn(now_s)
        return Line(counter, cell, charge.amount) if held else None

    def spent_charges(self) -> list[Charge]:
        """What is spent in every cell that still counts, retired budgets included: the counters of a snapshot."""
        spent = [
            Charge(counter.budget.id, counter.name, cell.start_s, counter.budget.resource, cell.spent)
            for counters in self._counters.values()
            for counter in counters.values()
            for cell in counter.cells
            if cell.spent
        ]
        retired = [
            Charge(budget, name, start_s, resource, cell.spent)
            for (budget, name, resource, start_s), cell in self._retired.items()
        ]
        return spent + retired

    def _end(self, hold: Hold, state: State, actual: Amounts | None, now_s: int) -> Settlement:
        charges, crossings, overages = [], [], []
        for counter, cell, held in hold.lines:
            budget = counter.budget
            if actual is None:
                spent = 0 if budget.resource == "concurrency" else held
            else:
                spent = actual[budget.resource_index]
            cell.held -= held
            cell.spent += spent
            if cell.live:
                counter.held -= held
                counter.spent += spent
                if spent and counter.grade():
                    crossings.append(self._crossing(counter, cell))
            charges.append(Charge(budget.id, counter.name, cell.start_s, budget.resource, spent))
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

    @staticmethod
    def _release(counter: Counter, cell: Cell, amount: int) -> None:
        cell.held -= amount
        if cell.live:
            counter.held -= amount

    @staticmethod
    def _crossing(counter: Counter, cell: Cell) -> Crossing:
        budget = counter.budget
        return Crossing(
            budget.id, counter.name, budget.resource, counter.band, counter.spent, counter.limit, cell.start_s
        )

    def _shortfall(self, route: Route, demand: Demand) -> Shortfall:
        needs = demand.at(demand.cap_min)
        short = [
            (counter, needs[index])
            for counter, index, hard in route.counters
            if hard and counter.available < needs[index]
        ]
        counter, asked = max(short, key=lambda each: each[0].resets_at_s(each[1]) or float("inf"))
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
        )

    def _counter(self, budget: Budget, name: str, now_s: int) -> Counter:
        counters = self._counters.setdefault(budget.id, {})
        counter = counters.get(name)
        if counter is None:
            counter = counters[name] = Counter(budget, name)
            self._revive(counter)
            counter.configure(budget, self._grants_of(budget.id, name), now_s)
        return counter

    def _grants_of(self, budget_id: str, name: str) -> tuple[Grant, ...]:
        return tuple(
            grant for grant in self.grants.values() if grant.budget == budget_id and grant.counter in ("*", name)
        )

    def _retire(self, counter: Counter) -> None:
        for cell in counter.cells:
            if cell.spent:
                kept = self._retired_cell((counter.budget.id, counter.name), counter.budget.resource, cell.start_s)
                kept.spent += cell.spent

    def _retired_cell(self, owner: tuple[str, str], resource: str, start_s: int) -> Cell:
        key = (*owner, resource, start_s)
        cell = self._retired.get(key)
        if cell is None:
            cell = self._retired[key] = Cell(start_s)
            if len(self._retired) > RETIRED_MAX:
                self._retired.popitem(last=False)
        return cell

    def _revive(self, counter: Counter) -> None:
        wanted = (counter.budget.id, counter.name, counter.budget.resource)
        for key in [key for key in self._retired if key[:3] == wanted]:
            cell = counter.restore(key[3])
            cell.spent += self._retired.pop(key).spent
            counter.spent += cell.spent
