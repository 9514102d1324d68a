"""Metrics: what Prometheus can ask of one gateway worker."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.metrics_core import Metric

from domain.usage import Usage
from observability import names
from observability.exposition import CONTENT_TYPE, expose
from observability.labels import OTHER, LabelBounds, Tally
from observability.probes import Probes
from observability.traffic import Cell, CellKey, SettledCollector, Shape

__all__ = ["CONTENT_TYPE", "Metrics"]

ENDPOINTS = ("chat", "completions", "embeddings", "responses", "messages", "mcp")
STATUSES = ("ok", "refused", "failed", "cut", "expired")
NO_RUNTIME = ""
VALUES_MAX = 200
CELLS_MAX = 10_000


class Metrics:
    """Everything counted about governed requests, in plain integers of one thread.

    Labels take only values that `allow` was told; others are counted as `other`, so sums stay exact while a flood of
    invented names adds no series.
    """

    def __init__(self, *, values_max: int = VALUES_MAX, cells_max: int = CELLS_MAX) -> None:
        self._endpoints = LabelBounds(len(ENDPOINTS))
        self._statuses = LabelBounds(len(STATUSES))
        self._models = LabelBounds(values_max)
        self._teams = LabelBounds(values_max)
        self._runtimes = LabelBounds(values_max)
        self._budgets = LabelBounds(values_max)
        self._endpoints.allow(ENDPOINTS)
        self._statuses.allow(STATUSES)
        self._cells_max = cells_max
        self._cells: dict[CellKey, Cell] = {}
        self._shapes: dict[tuple[str, str], Shape] = {}
        self._tallies = {
            names.REFUSALS: Tally(),
            names.UNAUTHENTICATED: Tally(),
            names.OVERAGE: Tally(values_max),
            names.HOLD_EXPIRED: Tally(),
            names.UPSTREAM_ERRORS: Tally(values_max),
            names.REPLAYS: Tally(),
        }
        self._tallies[names.HOLD_EXPIRED].add(count=0)
        self._breakers: dict[str, bool] = {}
        self.probes = Probes(self._budgets)
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(SettledCollector(self._cells, self._shapes, self._tallies, self._breakers))
        self.registry.register(self.probes)

    def allow(
        self,
        *,
        models: Iterable[str] = (),
        teams: Iterable[str] = (),
        runtimes: Iterable[str] = (),
        budgets: Iterable[str] = (),
    ) -> list[str]:
        """Admit configured ids as label values and return those that found no room; ids stay admitted."""
        runtimes = list(runtimes)
        left_out = self._models.allow(models) + self._teams.allow(teams)
        left_out += self._runtimes.allow(runtimes) + self._budgets.allow(budgets)
        for runtime in runtimes:
            self._breakers.setdefault(self._runtimes.bound(runtime), False)
        return left_out

    def settled(
        self,
        endpoint: str,
        model: str,
        team: str,
        status: str,
        usage: Usage,
        list_cost_nusd: int,
        gpu_us: int,
        runtime: str,
        duration_us: int,
        ttft_us: int,
        overhead_us: int,
    ) -> None:
        """Count one governed request at its end, as its `usage` row records it.

        A refused request names no `runtime`: it counts as a request and in the overhead, not in the latencies.
        `ttft_us` is 0 where nothing was streamed.
        """
        cell = self._cells.get((endpoint, model, team, status, runtime))
        if cell is None:
            cell = self._open_cell(endpoint, model, team, status, runtime)
        shape = cell.shape
        input_tokens = usage.input_tokens
        output_tokens = usage.output_tokens
        cell.requests += 1
        cell.input_tokens += input_tokens
        cell.output_tokens += output_tokens
        cell.list_cost_nusd += list_cost_nusd
        cell.gpu_us += gpu_us
        if usage.cached_input_tokens or usage.cache_write_tokens or usage.reasoning_tokens:
            cell.cached_input_tokens += usage.cached_input_tokens
            cell.cache_write_tokens += usage.cache_write_tokens
            cell.reasoning_tokens += usage.reasoning_tokens
        shape.overhead.observe(overhead_us)
        if runtime == NO_RUNTIME:
            return
        shape.input_tokens.observe(input_tokens)
        shape.output_tokens.observe(output_tokens)
        shape.duration.observe(duration_us)
        if ttft_us:
            shape.ttft.observe(ttft_us)

    def refused(self, code: str) -> None:
        """Count a refusal by its code in the error table."""
        self._tallies[names.REFUSALS].add(code)

    def unauthenticated(self, reason: str) -> None:
        """Count a request without a valid key; such requests leave no ledger row."""
        self._tallies[names.UNAUTHENTICATED].add(reason)

    def overage(self, budget: str) -> None:
        """Count a settlement that charged a budget more than was held."""
        self._tallies[names.OVERAGE].add(self._budgets.bound(budget))

    def hold_expired(self) -> None:
        """Count a hold that lost its owner and was charged in full."""
        self._tallies[names.HOLD_EXPIRED].add()

    def upstream_error(self, runtime: str, kind: str) -> None:
        """Count a failed call of a runtime by its kind of failure."""
        self._tallies[names.UPSTREAM_ERRORS].add(self._runtimes.bound(runtime), kind)

    def replayed(self, endpoint: str) -> None:
        """Count an answer that was sent again; it is no request of its own and leaves no ledger row."""
        self._tallies[names.REPLAYS].add(self._endpoints.bound(endpoint))

    def breaker(self, runtime: str, *, is_open: bool) -> None:
        """Show the circuit breaker of a runtime as it now stands."""
        self._breakers[self._runtimes.bound(runtime)] = is_open

    def watch(self, name: str, read: Callable[[], int]) -> None:
        """Read a metric of `names` from its owner at every scrape; a name is watched once."""
        self.probes.watch(name, read)

    def watch_revision(self, read: Callable[[], str]) -> None:
        """Show the revision of the policy bundle that decides now."""
        self.probes.read_revision = read

    def watch_budgets(self, read: Callable[[], Iterable[tuple[str, int]]]) -> None:
        """Show what remains of each budget, from (budget, remaining) of its counters, the tightest counter of each."""
        self.probes.read_budgets = read

    def watch_drift(self, read: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        """Show what was found when the ledger was last reconciled, by kind and quantity, of which there are few."""
        self.probes.read_drift = read

    def watch_runtimes(self, read: Callable[[], Mapping[str, Mapping[tuple[str, str], int]]]) -> None:
        """Show what runtimes tell of themselves: by metric, by runtime and the label that the metric has."""
        self.probes.read_runtimes = read

    def collect(self) -> list[Metric]:
        """All metrics as they stand now; `expose` may write them out in another thread."""
        return list(self.registry.collect())

    def render(self) -> bytes:
        """All metrics in Prometheus' text format, of type `CONTENT_TYPE`."""
        return expose(self.collect())

    def _open_cell(self, endpoint: str, model: str, team: str, status: str, runtime: str) -> Cell:
        key = (
            self._endpoints.bound(endpoint),
            self._models.bound(model),
            self._teams.bound(team),
            self._statuses.bound(status),
            runtime if runtime == NO_RUNTIME else self._runtimes.bound(runtime),
        )
        cell = self._cells.get(key)
        if cell is None and len(self._cells) >= self._cells_max:
            key = (key[0], OTHER, OTHER, key[3], OTHER if key[4] else NO_RUNTIME)
            cell = self._cells.get(key)
        if cell is None:
            shape = self._shapes.get(key[:2])
            if shape is None:
                shape = self._shapes[key[:2]] = Shape()
            cell = self._cells[key] = Cell(shape)
        return cell
