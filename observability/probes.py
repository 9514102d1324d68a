"""Probes: metrics whose owners are asked at scrape, so that keeping them costs nothing in between."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from observability import names
from observability.labels import LabelBounds

BUDGET_COUNTERS_MAX = 10_000

WATCHED = {
    names.HOLDS_OPEN: "Holds that are neither settled nor void.",
    names.IN_FLIGHT: "Requests under way.",
    names.QUEUE_WAITING: "Requests that wait for a window or a slot.",
    names.LEDGER_LAG_ROWS: "Journal rows that the ledger does not have yet.",
    names.LEDGER_LAG_SECONDS: "Age of the oldest journal row that the ledger does not have yet, in whole seconds.",
    names.JOURNAL_FSYNCS: "Group commits of the journal.",
    names.BOOK_AWAY: "1 while the shared budget book cannot be asked.",
    names.BOOK_EXCHANGES: "Round trips to the shared budget book.",
    names.BOOK_FETCHES: "Requests that waited for the shared budget book, because a lease did not do.",
    names.BOOK_WAITING: "Organisations of the shared budget book that wait until all gateways have reported.",
    names.JOURNAL_BYTES: "Bytes appended to the journal.",
    names.POLICY_CACHE_HITS: "Decisions answered from the cache.",
    names.POLICY_CACHE_MISSES: "Decisions evaluated.",
    names.POLICY_AWAY: "1 while the OPA server cannot be asked, so that what it decided before is not in force.",
    names.POLICY_BRIDGED: "Earlier decisions that served while the policy engine was away.",
    names.POLICY_SHADOW_FAILURES: "Decisions that the shadow bundle failed to make, or that it had no time for.",
    names.POLICY_ENGINE_RESTARTS: "Processes that evaluate policies, the shadow's too, started in place of others.",
    names.POLICY_INPUTS_REFUSED: "Evaluations refused because their input ended a process or took too long.",
    names.TOOL_CALLS_DROPPED: "Rows of tool calls that were not written, because the journal had no room or failed.",
    names.QUALITY_SKIPPED: "Sampled answers that were not scored, because too many waited to be checked.",
    names.CHECK_PROCESSES_ENDED: "Processes that make checks, ended because they took too long or found dead.",
    names.RISK_SCOPES_DROPPED: "Scopes whose risk score was given up at normal, or not taken up, for want of room.",
    names.RISK_SCORES_UNTOLD: "Additions to risk scores that other replicas were not told, for want of room.",
    names.WEBHOOK_EVENTS_DROPPED: "Events that were never sent to a webhook, because too many waited for it.",
    names.WEBHOOK_EVENTS_FAILED: "Events that a webhook did not take, also when tried again.",
    names.ATTRIBUTION_STOPPED: "Runtimes whose telemetry is not followed now, because following it failed.",
    names.ATTRIBUTION_WAITING: "Requests whose accelerator time is known before they are settled or found.",
    names.ATTRIBUTION_POSTED: "Correction rows that brought requests from estimated to attributed accelerator time.",
    names.ATTRIBUTION_DROPPED: "Shares of accelerator time that were given up, because too many waited.",
}
# Of each runtime, by one label more.
OF_RUNTIMES = {
    names.ACCELERATOR_TIME: ("Accelerator time as a runtime's telemetry has it, microseconds, by account.", "account"),
    names.TELEMETRY_LOST: ("Lines or segments of telemetry that could not be read, by reason.", "reason"),
    names.TOKEN_DRIFT: (
        "Tokens by which a runtime's counts of completed requests were off their charges.",
        "quantity",
    ),
}


class Probes(Collector):
    """Asks the owners at every scrape; a callback must neither block nor do I/O."""

    def __init__(self, budgets: LabelBounds, counters_max: int = BUDGET_COUNTERS_MAX) -> None:
        self._budgets = budgets
        self._counters_max = counters_max
        self._watched: dict[str, Callable[[], int]] = {}
        self.read_revision: Callable[[], str] | None = None
        self.read_budgets: Callable[[], Iterable[tuple[str, int]]] | None = None
        self.read_drift: Callable[[], Mapping[tuple[str, str], int]] | None = None
        self.read_runtimes: Callable[[], Mapping[str, Mapping[tuple[str, str], int]]] | None = None

    def watch(self, name: str, read: Callable[[], int]) -> None:
        """Ask `read` for a metric of `WATCHED`; one name has one owner."""
        if name not in WATCHED:
            raise ValueError(f"{name} is not a metric that is read at scrape")
        if name in self._watched:
            raise ValueError(f"{name} has an owner already")
        self._watched[name] = read

    def collect(self) -> Iterator[Metric]:
        """The families that have an owner."""
        for name, read in self._watched.items():
            if name.endswith("_total"):
                yield CounterMetricFamily(name, WATCHED[name], value=read())
            else:
                yield GaugeMetricFamily(name, WATCHED[name], value=read())
        if self.read_revision is not None:
            labels = {"revision": self.read_revision()}
            yield InfoMetricFamily(names.POLICY_REVISION_INFO, "The policy bundle that decides now.", value=labels)
        if self.read_drift is not None:
            drift = GaugeMetricFamily(
                names.LEDGER_DRIFT,
                "How far all accounts together were off what the ledger's rows allow, when they were last compared.",
                labels=["kind", "quantity"],
            )
            for (kind, quantity), amount in self.read_drift().items():
                drift.add_metric([kind, quantity], amount)
            yield drift
        if self.read_runtimes is not None:
            for name, found in self.read_runtimes().items():
                documentation, label = OF_RUNTIMES[name]
                family = CounterMetricFamily(name, documentation, labels=["runtime", label])
                for key, count in found.items():
                    family.add_metric(key, count)
                yield family
        if self.read_budgets is not None:
            yield from self._remaining(self.read_budgets())

    def _remaining(self, counters: Iterable[tuple[str, int]]) -> Iterator[Metric]:
        rows = iter(counters)
        tightest: dict[str, int] = {}
        for budget, remaining in islice(rows, self._counters_max):
            label = self._budgets.bound(budget)
            tightest[label] = min(remaining, tightest.get(label, remaining))
        family = GaugeMetricFamily(
            names.BUDGET_REMAINING,
            "What the tightest counter of a budget has left, in its resource.",
            labels=["budget"],
        )
        for label, remaining in tightest.items():
            family.add_metric([label], remaining)
        yield family
        unread = int(next(rows, None) is not None)
        documentation = "1 when there were more counters than one scrape reads, so the tightest may be another."
        yield GaugeMetricFamily(names.BUDGET_COUNTERS_UNREAD, documentation, value=unread)
