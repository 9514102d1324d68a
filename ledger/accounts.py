"""Accounts: the counters of every budget, those in force and those that may come back, and the grants on them."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import replace

from domain.charges import Charge
from ledger.budgets import Budget
from ledger.counters import Counter, Grant, Tenure
from ledger.holds import Line
from ledger.windows import FOREVER_S, parse_window

IDLE_MAX = 1_000
RETIRED_MAX = 100_000


class Accounts:
    """Every counter by budget and name; time is passed in and must not go back.

    A counter whose budget is gone, or counts something else now, is retired: the holds on it still end there, and it
    goes on when such a budget comes back.
    """

    def __init__(self, *, is_shared: bool = False) -> None:
        self.budgets: dict[str, Budget] = {}
        self.is_shared = is_shared
        self.is_away = False
        self.grants: dict[str, Grant] = {}
        self._counters: dict[str, dict[str, Counter]] = {}
        self._retired: OrderedDict[tuple[str, str, str], Counter] = OrderedDict()

    def __iter__(self) -> Iterator[Counter]:
        """Every counter in force."""
        for counters in self._counters.values():
            yield from counters.values()

    def configure(self, budgets: Iterable[Budget], now_s: int) -> None:
        """Take a new set of budgets; what had stopped to count under the old ones stays forgotten."""
        known = self.every()
        self.budgets = {budget.id: budget for budget in budgets}
        self._counters = {budget_id: {} for budget_id in self.budgets}
        self._retired.clear()
        for counter in known:
            counter.turn(now_s)
            budget = self._home_of(counter.budget.id, counter.budget.resource, counter.name)
            if budget is not None:
                counter.tenure = self._tenure(budget)
                counter.configure(budget, self._grants_on(budget.id, counter.name), now_s)
                self._counters[budget.id][counter.name] = counter
            elif counter.holds or any(cell.spent for cell in counter.cells):
                self._retire(counter, now_s)

    def counter(self, budget: Budget, name: str, now_s: int) -> Counter:
        """The counter of that name, made when there is none."""
        counters = self._counters[budget.id]
        counter = counters.get(name)
        if counter is None:
            counter = counters[name] = Counter(budget, name)
            counter.tenure = self._tenure(budget)
            counter.configure(budget, self._grants_on(budget.id, name), now_s)
        return counter

    def set_away(self, *, is_away: bool) -> None:
        """Go by what each budget says of the time when the store of a shared book cannot be asked, or no longer."""
        self.is_away = is_away
        for counter in self:
            counter.tenure = self._tenure(counter.budget)
            counter.refit()

    def find(self, budget_id: str, name: str) -> Counter | None:
        """The counter in force of that name, if there is one."""
        return self._counters.get(budget_id, {}).get(name)

    def known(self, budget_id: str, resource: str, name: str) -> Counter | None:
        """The counter of that name, in force or retired."""
        counter = self.find(budget_id, name)
        if counter is not None and counter.budget.resource == resource:
            return counter
        return self._retired.get((budget_id, resource, name))

    def every(self) -> list[Counter]:
        """The counters in force and those retired."""
        return [*self, *self._retired.values()]

    def grant(self, grant: Grant, now_s: int) -> None:
        """Add extra limit to a budget's counter, or to all of them; a repeated grant id changes nothing."""
        if grant.grant_id in self.grants:
            return
        self.grants[grant.grant_id] = grant
        for counter in self._counters.get(grant.budget, {}).values():
            counter.configure(counter.budget, self._grants_on(grant.budget, counter.name), now_s)

    def forget(self, now_s: int) -> bool:
        """Turn every counter and drop the grants and counters that no longer matter; whether a counter was dropped.

        A counter of which nothing is spent or held matters no more once its window has turned, or when its budget has
        very many.
        """
        dropped = False
        for counters in self._counters.values():
            is_crowded = len(counters) > IDLE_MAX
            for name, counter in list(counters.items()):
                turned = now_s >= counter.turns_s
                if turned:
                    counter.turn(now_s)
                if (turned or is_crowded) and counter.is_idle:
                    del counters[name]
                    counter.is_touched, dropped = False, True
        self.grants = {key: grant for key, grant in self.grants.items() if grant.expires_at_s > now_s}
        return dropped

    def counter_of(self, charge: Charge, now_s: int) -> Counter | None:
        """The counter in force on which a charge still counts now, made when there is none yet."""
        budget = self._home_of(charge.budget, charge.resource, charge.counter)
        if budget is None or budget.window.cell_gone_s(charge.window_start_s) <= now_s:
            return None
        counter = self.counter(budget, charge.counter, now_s)
        counter.turn(now_s)
        return counter

    def restore_spent(self, charge: Charge, now_s: int) -> None:
        """Put back one charge of a rebuilt book, unless its window no longer counts."""
        budget = self._home_of(charge.budget, charge.resource, charge.counter)
        if budget is not None and budget.window.cell_gone_s(charge.window_start_s) <= now_s:
            return
        counter = self._kept_for(charge, now_s)
        counter.cell_at(charge.window_start_s).spent += charge.amount
        counter.spent += charge.amount
        counter.turn(now_s)

    def restore_held(self, charge: Charge, now_s: int) -> Line:
        """Put back one line of a hold of a rebuilt book."""
        counter = self._kept_for(charge, now_s)
        cell = counter.cell_at(charge.window_start_s)
        cell.held += charge.amount
        counter.held += charge.amount
        counter.holds += 1
        counter.turn(now_s)
        return Line(counter, cell, charge.amount)

    def spent(self) -> list[Charge]:
        """What is spent in every cell that still counts, in retired counters too."""
        return [
            Charge(counter.budget.id, counter.name, cell.start_s, counter.budget.resource, cell.spent)
            for counter in self.every()
            for cell in counter.cells
            if cell.spent
        ]

    def _tenure(self, budget: Budget) -> Tenure:
        if not self.is_shared or not budget.is_hard:
            return Tenure.OWN
        if not self.is_away or budget.on_unavailable == "lease":
            return Tenure.LEASED
        return Tenure.OPEN if budget.on_unavailable == "allow" else Tenure.CLOSED

    def _home_of(self, budget_id: str, resource: str, name: str) -> Budget | None:
        """The configured budget that keeps this counter, if any."""
        budget = self.budgets.get(budget_id)
        return budget if budget is not None and budget.counts(resource, name) else None

    def _kept_for(self, charge: Charge, now_s: int) -> Counter:
        budget = self._home_of(charge.budget, charge.resource, charge.counter)
        if budget is not None:
            return self.counter(budget, charge.counter, now_s)
        retired = self._retired.get((charge.budget, charge.resource, charge.counter))
        if retired is None:
            # Which window it had is not known any more, so it counts until a budget comes back that says.
            unknown = Budget(charge.budget, "", (), charge.resource, FOREVER_S, parse_window("total"), "soft")
            retired = Counter(unknown, charge.counter)
            self._retire(retired, now_s)
        return retired

    def _retire(self, counter: Counter, now_s: int) -> None:
        """Keep a counter aside, where no limit is ever crossed."""
        counter.configure(replace(counter.budget, limit=FOREVER_S), (), now_s)
        self._retired[counter.budget.id, counter.budget.resource, counter.name] = counter
        if len(self._retired) > RETIRED_MAX:
            self._retired.popitem(last=False)

    def _grants_on(self, budget_id: str, name: str) -> tuple[Grant, ...]:
        return tuple(
            grant for grant in self.grants.values() if grant.budget == budget_id and grant.counter in ("*", name)
        )
