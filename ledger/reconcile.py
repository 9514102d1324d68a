"""Reconcile: what the book's counters, the runtimes and the journal say, beside what the ledger's rows add up to.

Drift is a number: how far an account lies outside of what the rows allow. Nothing is changed here; all that is asked of
the ledger is asked as of a cut, which is one record of one writer's journal.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from domain.charges import Charge
from ledger.book import Book
from ledger.budgets import Budget
from ledger.tables import BY_KIND

COUNTER, RUNTIME, STORE = "counter", "runtime", "store"
BUDGETS_PER_QUERY = 100
PAGE_ROWS = 20_000
# How far a clock may have gone back: a row may then be older than the window that it was charged to.
CLOCK_STEP_S = 86_400

# A request that was cut short has a report and the step in flight, which may not have been taken; and a runtime may
# take some more before it sees that nobody listens.
STEPS_IN_FLIGHT = 1
STEPS_UNNOTICED = 8

_SUMS_SQL = """
SELECT charge.1 AS budget, charge.2 AS counter, toUnixTimestamp(charge.3) AS window_start_s, charge.4 AS resource,
       sum(charge.5) AS amount
FROM usage ARRAY JOIN charges AS charge
WHERE {writers} AND ts >= fromUnixTimestamp64Second({from_s}, 'UTC') AND budget IN ({budgets})
  AND window_start_s >= {first_s} AND {after}
GROUP BY budget, counter, window_start_s, resource
HAVING amount != 0
ORDER BY budget, counter, window_start_s, resource
LIMIT {limit}
"""
_AFTER = (
    "(budget, counter, window_start_s, resource)"
    " > ({after_budget:String}, {after_counter:String}, {after_start_s:UInt32}, {after_resource:String})"
)
_KINDS_SQL = """
SELECT kind, count() AS rows, groupBitmap(seq) AS seqs, min(seq) AS first, max(seq) AS last
FROM events WHERE writer = {writer:String} AND seq <= {seq:UInt64} GROUP BY kind
"""
_ROWS_SQL = "SELECT count() AS rows FROM {table} WHERE writer = {{writer:String}} AND seq <= {{seq:UInt64}}"
_TOKENS_SQL = """
SELECT certainty, count() AS rows, sum(input_tokens) AS input, sum(output_tokens) AS output,
       sum(cached_input_tokens) AS cached
FROM usage
WHERE runtime = {runtime:String} AND writer = {writer:String} AND seq > {after:UInt64} AND seq <= {seq:UInt64}
  AND status != 'adjusted'
GROUP BY certainty
"""

Ask = Callable[[str, dict[str, str]], list[dict[str, Any]]]
Key = tuple[str, str, int, str]


class Account(NamedTuple):
    """One quantity twice: the least and the most that the ledger's rows allow, and what was found elsewhere.

    That of a counter has the `charge` that the ledger has on it.
    """

    kind: str
    subject: str
    quantity: str
    least: int
    most: int
    found: int
    charge: Charge | None = None

    @property
    def drift(self) -> int:
        """How far what was found lies above what the rows allow, or below it (negative)."""
        return max(0, self.found - self.most) + min(0, self.found - self.least)


class Cut(NamedTuple):
    """The counters in force as they stood when the journal of `writer` ended with the record `seq`.

    The counters of a shared book are this writer's part of what all replicas spent.
    """

    writer: str
    seq: int
    now_s: int
    is_shared: bool
    budgets: Mapping[str, Budget]
    spent: Mapping[Key, int]


class Totals(NamedTuple):
    """What a runtime has counted since it started."""

    prompt_tokens: int
    generation_tokens: int
    cached_tokens: int


class Baseline(NamedTuple):
    """What a runtime had counted when it was at rest and the journal of `writer` ended with the record `seq`."""

    writer: str
    seq: int
    totals: Totals


def cut(book: Book, writer: str, seq: int, now_s: int) -> Cut:
    """The counters now; `seq` must be the last record of the journal, and nothing may happen in between."""
    spent = {
        (counter.budget.id, counter.name, cell.start_s, counter.budget.resource): cell.spent
        for counter in book.counters(now_s)
        for cell in counter.cells
        if cell.spent
    }
    return Cut(writer, seq, now_s, book.is_shared, dict(book.budgets), spent)


def counters(ask: Ask, at: Cut) -> Iterator[Account]:
    """Every counter in force beside its charges, window by window, for all windows that still count."""
    left = dict(at.spent)
    for charge in _sums(ask, at):
        key = (charge.budget, charge.counter, charge.window_start_s, charge.resource)
        found = left.pop(key, None)
        if found is None and not _is_counted(at.budgets[charge.budget], charge, at.now_s):
            continue
        yield _counter(charge, found or 0)
    for key, found in left.items():
        yield _counter(Charge(*key, 0), found)


def store(ask: Ask, writer: str, seq: int) -> Iterator[Account]:
    """The records of a journal, which are numbered without gaps, beside what each table has of them.

    Those before the first that the store ever had are not looked for: they were gone before it was made.
    """
    parameters = {"writer": writer, "seq": str(seq)}
    kinds = {str(row["kind"]): row for row in ask(_KINDS_SQL, parameters)}
    first = min((int(row["first"]) for row in kinds.values()), default=1)
    seqs = sum(int(row["seqs"]) for row in kinds.values())
    rows = sum(int(row["rows"]) for row in kinds.values())
    yield Account(STORE, f"{writer}: records up to {seq}", "records", seq - first + 1, seq - first + 1, seqs)
    yield Account(STORE, f"{writer}: records there twice", "records", 0, 0, rows - seqs)
    for name in BY_KIND:
        has = int(ask(_ROWS_SQL.format(table=name), parameters)[0]["rows"])
        of_kind = int(kinds[name]["rows"]) if name in kinds else 0
        yield Account(STORE, f"{writer}: rows of {name}", "records", of_kind, of_kind, has)


def runtime(ask: Ask, name: str, base: Baseline, seq: int, now: Totals) -> tuple[Account, ...]:
    """What a runtime counted since a baseline beside what the rows of its requests allow.

    A row that is exact leaves no doubt, but for a request for several answers (`n`): its prompt is counted once for
    each, and its row does not say so. What a request that was cut short found in the cache is not known.
    """
    parameters = {"runtime": name, "writer": base.writer, "after": str(base.seq), "seq": str(seq)}
    found = {str(row["certainty"]): row for row in ask(_TOKENS_SQL, parameters)}

    def of(certainty: str, column: str) -> int:
        return int(found[certainty][column]) if certainty in found else 0

    seen_input = of("exact", "input") + of("at_least", "input")
    unseen = STEPS_UNNOTICED * (of("at_least", "rows") + of("at_most", "rows"))
    seen_output = of("exact", "output") + of("at_least", "output")
    least_output = seen_output - STEPS_IN_FLIGHT * of("at_least", "rows")
    prompts = now.prompt_tokens - base.totals.prompt_tokens
    generated = now.generation_tokens - base.totals.generation_tokens
    most_input, most_output = seen_input + of("at_most", "input"), seen_output + of("at_most", "output") + unseen
    hits = now.cached_tokens - base.totals.cached_tokens
    seen_cached = of("exact", "cached") + of("at_least", "cached")
    most_cached = of("exact", "cached") + of("at_least", "input") + of("at_most", "input")
    return (
        Account(RUNTIME, name, "prompt_tokens", seen_input, most_input, prompts),
        Account(RUNTIME, name, "generation_tokens", least_output, most_output, generated),
        Account(RUNTIME, name, "cached_tokens", seen_cached, most_cached, hits),
    )


def _counter(charge: Charge, found: int) -> Account:
    since = datetime.fromtimestamp(charge.window_start_s, UTC).strftime(" since %Y-%m-%dT%H:%M:%SZ")
    subject = f"{charge.budget} ({charge.counter}){since if charge.window_start_s else ''}"
    return Account(COUNTER, subject, charge.resource, charge.amount, charge.amount, found, charge)


def _sums(ask: Ask, at: Cut) -> Iterator[Charge]:
    """What the ledger charged to the budgets in force, in the windows that may still count."""
    by_start: dict[int, list[str]] = {}
    for budget in at.budgets.values():
        by_start.setdefault(_first_s(budget, at.now_s), []).append(budget.id)
    for first_s, names in by_start.items():
        for at_name in range(0, len(names), BUDGETS_PER_QUERY):
            yield from _pages(ask, at, first_s, names[at_name : at_name + BUDGETS_PER_QUERY])


def _pages(ask: Ask, at: Cut, first_s: int, names: Sequence[str]) -> Iterator[Charge]:
    parameters = {f"b{index}": name for index, name in enumerate(names)} | {"writer": at.writer}
    parts = {
        "writers": f"(writer = {{writer:String}} AND seq <= {at.seq})",
        "first_s": first_s,
        "from_s": max(0, first_s - CLOCK_STEP_S),
        "budgets": ", ".join(f"{{b{index}:String}}" for index in range(len(names))),
        "limit": PAGE_ROWS,
    }
    if not at.is_shared:
        # A book of its own went on from what other writers of this home, whose journals are gone, had charged.
        parts["writers"] = f"(writer != {{writer:String}} OR seq <= {at.seq})"
    after: dict[str, str] = {}
    while True:
        rows = ask(_SUMS_SQL.format(**parts, after=_AFTER if after else "1"), parameters | after)
        found = [
            Charge(row["budget"], row["counter"], int(row["window_start_s"]), row["resource"], int(row["amount"]))
            for row in rows
        ]
        yield from found
        if len(found) < PAGE_ROWS:
            return
        last = found[-1]
        after = {"after_budget": last.budget, "after_counter": last.counter}
        after |= {"after_start_s": str(last.window_start_s), "after_resource": last.resource}


def _first_s(budget: Budget, now_s: int) -> int:
    """A Unix second before which no window of this budget began that still counts."""
    window = budget.window
    if window.kind == "total":
        return 0
    if window.kind == "rolling":
        return max(0, window.cell_start_s(now_s) - window.duration_s - window.cell_s)
    return window.cell_start_s(now_s)


def _is_counted(budget: Budget, charge: Charge, now_s: int) -> bool:
    """Whether the budget as it is now would have such a counter and window, and still count it."""
    window, start_s = budget.window, charge.window_start_s
    return (
        budget.counts(charge.resource, charge.counter)
        and window.cell_start_s(start_s) == start_s
        and window.cell_gone_s(start_s) > now_s
    )
