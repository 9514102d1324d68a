"""Accounts: the ledger, the metrics and the budgets of one instance, and where they disagree."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

LEDGER_SQL = """
SELECT team, status, http_status, count() AS requests, sum(input_tokens) AS input,
       sum(cached_input_tokens) AS cached_input, sum(output_tokens) AS output,
       sum(list_cost_nusd) AS list_cost_nusd, sum(gpu_us) AS gpu_us
FROM usage GROUP BY team, status, http_status
"""
CHARGES_SQL = """
SELECT charge.1 AS budget, charge.2 AS counter, toUnixTimestamp(charge.3) AS window_start_s, charge.4 AS resource,
       sum(charge.5) AS amount
FROM usage ARRAY JOIN charges AS charge GROUP BY budget, counter, window_start_s, resource
"""

Row = Mapping[str, Any]

WINDOW_S = {"minute": 60, "hour": 3_600, "day": 86_400}


class Check(NamedTuple):
    """Two accounts of one quantity, which must be the same."""

    what: str
    expected: int
    found: int

    @property
    def agrees(self) -> bool:
        """Whether both say the same."""
        return self.expected == self.found


@dataclass(frozen=True)
class Sent:
    """Requests that left the clients, by whether their key was valid."""

    known: int
    unknown: int


class Scrape:
    """The samples of one `/metrics` page."""

    def __init__(self, text: str) -> None:
        self._samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    def total(self, name: str, **labels: str) -> int:
        """The sum of a metric over every series that has these labels."""
        wanted = labels.items()
        return sum(int(each.value) for each in self._samples if each.name == name and wanted <= each.labels.items())

    def gauge(self, name: str) -> int:
        """The value of a metric without labels; KeyError where the page does not show it."""
        for each in self._samples:
            if each.name == name:
                return int(each.value)
        raise KeyError(name)


def compare(
    sent: Sent, usage: Sequence[Row], charges: Sequence[Row], scrape: Scrape, counters: Iterable[Row], now_s: int
) -> list[Check]:
    """Every quantity that two of the accounts know, in the order of a request's life."""
    return [
        Check("requests of known callers = usage rows", sent.known, _sum(usage, "requests")),
        Check("requests without a key = unauthenticated", sent.unknown, scrape.total("bursar_unauthenticated_total")),
        *_traffic(usage, scrape),
        *agreement(counters, charges, now_s),
        Check("holds open", 0, scrape.gauge("bursar_holds_open")),
        Check("holds expired", 0, scrape.gauge("bursar_hold_expired_total")),
        Check("overages", 0, scrape.total("bursar_overage_total")),
    ]


def agreement(counters: Iterable[Row], charges: Sequence[Row], now_s: int) -> list[Check]:
    """Every live counter against the charges of its current window."""
    return [_budget(counter, charges, now_s) for counter in counters]


def unexercised(usage: Sequence[Row], charges: Sequence[Row], counters: Sequence[Row], budgets: int) -> list[str]:
    """What the load should have reached and did not, so that agreement would prove little."""
    statuses = {row["status"] for row in usage}
    missing = [f"no request ended as {status}" for status in ("ok", "refused", "cut") if status not in statuses]
    if not any(int(row["http_status"]) == 429 for row in usage):
        missing.append("no budget was ever full")
    if sum(int(row["cached_input"]) for row in usage) == 0:
        missing.append("no input came from the cache")
    charged = len({row["budget"] for row in charges})
    if charged < budgets:
        missing.append(f"only {charged} of {budgets} budgets were charged")
    if not counters:
        missing.append("no budget has a live counter")
    return missing


def _traffic(usage: Sequence[Row], scrape: Scrape) -> Iterable[Check]:
    for status in sorted({row["status"] for row in usage}):
        rows = [row for row in usage if row["status"] == status]
        counted = scrape.total("bursar_requests_total", status=status)
        yield Check(f"requests {status}: ledger = metrics", _sum(rows, "requests"), counted)
    for team in sorted({row["team"] for row in usage}):
        rows = [row for row in usage if row["team"] == team]
        for kind in ("input", "cached_input", "output"):
            counted = scrape.total("bursar_tokens_total", team=team, kind=kind)
            yield Check(f"{kind} tokens of {team}: ledger = metrics", _sum(rows, kind), counted)
        counted = scrape.total("bursar_list_cost_nusd_total", team=team)
        yield Check(f"list cost of {team}: ledger = metrics", _sum(rows, "list_cost_nusd"), counted)
    yield Check("gpu_us: ledger = metrics", _sum(usage, "gpu_us"), scrape.total("bursar_gpu_us_total"))


def window_start_s(window: str, now_s: int) -> int:
    """When the calendar window that `now_s` lies in began, or 0 for `total`; KeyError for any other kind."""
    if window == "month":
        first = datetime.fromtimestamp(now_s, UTC).replace(day=1, hour=0, minute=0, second=0)
        return int(first.timestamp())
    return 0 if window == "total" else now_s - now_s % WINDOW_S[window]


def _budget(counter: Row, charges: Sequence[Row], now_s: int) -> Check:
    """A counter against the charges of its window; what is held at quiescence counts as a difference."""
    since_s = window_start_s(counter["window"], now_s)
    charged = sum(
        int(row["amount"])
        for row in charges
        if (row["budget"], row["counter"], row["resource"])
        == (counter["budget"], counter["counter"], counter["resource"])
        and int(row["window_start_s"]) >= since_s
    )
    what = f"budget {counter['budget']} ({counter['counter']}): charges = counter"
    return Check(what, charged, int(counter["spent"]) + int(counter["held"]))


def _sum(rows: Iterable[Row], column: str) -> int:
    return sum(int(row[column]) for row in rows)
