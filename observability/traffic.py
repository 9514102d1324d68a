"""Traffic: the cells that settled requests are counted in, and how they are shown."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from observability import names
from observability.histogram import DURATION_BOUNDS_US, MICROSECONDS, OVERHEAD_BOUNDS_US, TOKEN_BOUNDS, Histogram
from observability.labels import OTHER, Tally


class Shape:
    """How requests of one endpoint and model are distributed in time and size."""

    __slots__ = ("duration", "input_tokens", "output_tokens", "overhead", "ttft")

    def __init__(self) -> None:
        self.duration = Histogram(DURATION_BOUNDS_US)
        self.ttft = Histogram(DURATION_BOUNDS_US)
        self.overhead = Histogram(OVERHEAD_BOUNDS_US)
        self.input_tokens = Histogram(TOKEN_BOUNDS)
        self.output_tokens = Histogram(TOKEN_BOUNDS)


class Cell:
    """Sums over the requests of one endpoint, model, team, status and runtime."""

    __slots__ = (
        "cache_write_tokens",
        "cached_input_tokens",
        "gpu_us",
        "input_tokens",
        "list_cost_nusd",
        "output_tokens",
        "reasoning_tokens",
        "requests",
        "shape",
    )

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.requests = 0
        self.input_tokens = 0
        self.cached_input_tokens = 0
        self.cache_write_tokens = 0
        self.output_tokens = 0
        self.reasoning_tokens = 0
        self.list_cost_nusd = 0
        self.gpu_us = 0


CellKey = tuple[str, str, str, str, str]
Cells = Mapping[CellKey, Cell]
ENDPOINT, MODEL, TEAM, STATUS, RUNTIME = range(5)

TOKEN_KINDS = {"input": "input_tokens", "cached_input": "cached_input_tokens", "output": "output_tokens"}
GENAI_USAGE = {
    names.CLIENT_USAGE_INPUT_TOKENS: "input_tokens",
    names.CLIENT_USAGE_OUTPUT_TOKENS: "output_tokens",
    names.CLIENT_USAGE_CACHE_READ_INPUT_TOKENS: "cached_input_tokens",
    names.CLIENT_USAGE_CACHE_WRITE_INPUT_TOKENS: "cache_write_tokens",
    names.CLIENT_USAGE_REASONING_OUTPUT_TOKENS: "reasoning_tokens",
}
GENAI_LABELS = tuple(map(names.prometheus_name, (names.OPERATION_NAME, names.PROVIDER_NAME, names.REQUEST_MODEL)))
TALLIES = {
    names.REFUSALS: ("Requests of known callers refused, by code of the error table.", ("code",)),
    names.UNAUTHENTICATED: ("Requests without a valid key, which leave no ledger row.", ("reason",)),
    names.OVERAGE: ("Settlements that charged a budget more than was held.", ("budget",)),
    names.HOLD_EXPIRED: ("Holds that lost their owner and were charged in full.", ()),
    names.UPSTREAM_ERRORS: ("Failed calls of runtimes.", ("runtime", "kind")),
    names.REPLAYS: ("Answers sent again for an Idempotency-Key, which leave no ledger row.", ("endpoint",)),
}


class SettledCollector(Collector):
    """Shows what was counted about settled requests as metric families, at scrape."""

    def __init__(
        self,
        cells: Cells,
        shapes: Mapping[tuple[str, str], Shape],
        tallies: Mapping[str, Tally],
        breakers: Mapping[str, bool],
    ) -> None:
        self._cells = cells
        self._shapes = shapes
        self._tallies = tallies
        self._breakers = breakers

    def collect(self) -> Iterator[Metric]:
        """Every family, also those that nothing was counted in yet."""
        yield self._requests()
        yield self._tokens()
        yield self._sums(names.LIST_COST, "List cost charged, nano-USD.", (MODEL, TEAM), "list_cost_nusd")
        yield self._sums(names.GPU_TIME, "Accelerator time charged, microseconds.", (RUNTIME,), "gpu_us")
        yield from self._latencies()
        yield from self._genai_usage()
        yield from self._genai_operations()
        for name, (documentation, labels) in TALLIES.items():
            family = CounterMetricFamily(name, documentation, labels=labels)
            for key, count in self._tallies[name].items():
                family.add_metric(key, count)
            yield family
        breakers = GaugeMetricFamily(
            names.BREAKER_OPEN, "1 while a runtime's circuit breaker is open.", labels=["runtime"]
        )
        for runtime, is_open in self._breakers.items():
            breakers.add_metric([runtime], int(is_open))
        yield breakers

    def _requests(self) -> Metric:
        labels = (ENDPOINT, MODEL, TEAM, STATUS)
        return self._sums(names.REQUESTS, "Requests of known callers, one per usage row.", labels, "requests")

    def _tokens(self) -> Metric:
        family = CounterMetricFamily(
            names.TOKENS,
            "Tokens charged; cached_input is a part of input.",
            labels=("model", "team", "kind"),
        )
        for kind, field in TOKEN_KINDS.items():
            for labels, total in self._summed((MODEL, TEAM), field):
                family.add_metric((*labels, kind), total)
        return family

    def _sums(self, name: str, documentation: str, dimensions: tuple[int, ...], field: str) -> Metric:
        label_names = ("endpoint", "model", "team", "status", "runtime")
        family = CounterMetricFamily(name, documentation, labels=[label_names[each] for each in dimensions])
        for labels, total in self._summed(dimensions, field):
            family.add_metric(labels, total)
        return family

    def _summed(self, dimensions: tuple[int, ...], field: str) -> list[tuple[tuple[str, ...], int]]:
        """Sums of one field over the cells that agree in these dimensions; refusals appear in requests alone."""
        totals: dict[tuple[str, ...], int] = {}
        for key, cell in self._cells.items():
            amount: int = getattr(cell, field)
            if amount or key[RUNTIME]:
                labels = tuple(key[each] for each in dimensions)
                totals[labels] = totals.get(labels, 0) + amount
        return list(totals.items())

    def _latencies(self) -> Iterator[Metric]:
        shown = (
            (names.REQUEST_DURATION, "From arrival to the last byte, of requests that met a runtime.", "duration"),
            (names.TTFT, "From arrival to the first streamed byte.", "ttft"),
            (names.OVERHEAD, "Time that admission took, refusals included.", "overhead"),
        )
        for name, documentation, field in shown:
            family = HistogramMetricFamily(name, documentation, labels=("endpoint", "model"))
            for labels, shape in self._shapes.items():
                histogram: Histogram = getattr(shape, field)
                family.add_metric(labels, histogram.buckets(MICROSECONDS), histogram.shown_sum(MICROSECONDS))
            yield family

    def _genai_usage(self) -> Iterator[Metric]:
        for name, field in GENAI_USAGE.items():
            family = CounterMetricFamily(
                names.prometheus_name(name),
                "Tokens of inference operations (GenAI conventions).",
                labels=(*GENAI_LABELS, names.prometheus_name(names.TOKEN_MODALITY)),
            )
            by_operation: dict[tuple[str, str, str, str], int] = {}
            for (endpoint, model), total in self._summed((ENDPOINT, MODEL), field):
                operation = (*_genai(endpoint, model), names.MODALITY_UNKNOWN)
                by_operation[operation] = by_operation.get(operation, 0) + total
            for operation, total in by_operation.items():
                family.add_metric(operation, total)
            yield family

    def _genai_operations(self) -> Iterator[Metric]:
        both = HistogramMetricFamily(
            names.prometheus_name(names.CLIENT_TOKEN_USAGE),
            "Tokens per inference operation (GenAI conventions before September 2026).",
            labels=(*GENAI_LABELS, names.prometheus_name(names.TOKEN_TYPE)),
        )
        directions = (
            (names.CLIENT_OPERATION_INPUT_TOKENS, names.TOKEN_TYPE_INPUT, "input_tokens"),
            (names.CLIENT_OPERATION_OUTPUT_TOKENS, names.TOKEN_TYPE_OUTPUT, "output_tokens"),
        )
        for name, token_type, field in directions:
            family = HistogramMetricFamily(
                names.prometheus_name(name), "Tokens per inference operation (GenAI conventions).", labels=GENAI_LABELS
            )
            for (endpoint, model), shape in self._shapes.items():
                histogram: Histogram = getattr(shape, field)
                labels = _genai(endpoint, model)
                family.add_metric(labels, histogram.buckets(), histogram.shown_sum())
                both.add_metric((*labels, token_type), histogram.buckets(), histogram.shown_sum())
            yield family
        yield both


def _genai(endpoint: str, model: str) -> tuple[str, str, str]:
    return (names.OPERATIONS.get(endpoint, OTHER), names.PROVIDER_OPENAI, model)
