"""Prometheus metrics of one engine, under the names of vLLM v1."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from runtime.sim.engine import Engine
from runtime.sim.request import FinishReason

LABELS: Final = ("model_name", "engine")
_TTFT_BUCKETS: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_INTER_TOKEN_BUCKETS: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_LATENCY_BUCKETS: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)


class _Histogram:
    """Counts per bucket. It takes a third of the time of prometheus_client's, and is touched for every token."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def read(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative counts by upper bound, and the sum of the values."""
        names = [*(str(bound) for bound in self._bounds), "+Inf"]
        total = 0
        buckets: list[tuple[str, float]] = []
        for name, count in zip(names, self._counts, strict=True):
            total += count
            buckets.append((name, total))
        return buckets, self._sum


class EngineMetrics:
    """What is observed as it happens; everything else is read from the engine when asked for."""

    def __init__(self, model: str, engine: Engine) -> None:
        self.labels = (model, "0")
        self.engine = engine
        self.time_to_first_token_s = _Histogram(_TTFT_BUCKETS)
        self.inter_token_latency_s = _Histogram(_INTER_TOKEN_BUCKETS)
        self.e2e_latency_s = _Histogram(_LATENCY_BUCKETS)
        # vLLM exports all of these from the start, and never counts an aborted request as finished.
        self.successes = {"stop": 0, "length": 0, "abort": 0, "error": 0}

    def finished(self, reason: FinishReason, latency_s: float) -> None:
        """Count a request that ended by itself."""
        self.successes[reason.value] += 1
        self.e2e_latency_s.observe(latency_s)


class MetricsCollector:
    """Collects the metrics of several engines, for a prometheus_client registry."""

    def __init__(self, engines: Sequence[EngineMetrics]) -> None:
        self._engines = engines

    def collect(self) -> Iterable[Metric]:
        """All metric families, each with a sample per engine."""
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()

    def _gauges(self) -> Iterable[Metric]:
        running = GaugeMetricFamily("vllm:num_requests_running", "Requests in the batch.", labels=LABELS)
        waiting = GaugeMetricFamily("vllm:num_requests_waiting", "Requests waiting for the batch.", labels=LABELS)
        usage = GaugeMetricFamily("vllm:kv_cache_usage_perc", "KV-cache usage; 1 means all of it.", labels=LABELS)
        for one in self._engines:
            running.add_metric(one.labels, one.engine.num_running)
            waiting.add_metric(one.labels, one.engine.num_waiting)
            usage.add_metric(one.labels, one.engine.pool.usage)
        return running, waiting, usage

    def _counters(self) -> Iterable[Metric]:
        for name, attribute, text in (
            ("vllm:prefix_cache_queries", "prefix_query_tokens", "Prefix cache queries, in tokens."),
            ("vllm:prefix_cache_hits", "prefix_hit_tokens", "Prefix cache hits, in tokens."),
            ("vllm:prompt_tokens", "prompt_tokens", "Prompt tokens processed."),
            ("vllm:generation_tokens", "generation_tokens", "Tokens generated."),
            ("vllm:num_preemptions", "preemptions", "Preemptions."),
        ):
            family = CounterMetricFamily(name, text, labels=LABELS)
            for one in self._engines:
                family.add_metric(one.labels, getattr(one.engine.totals, attribute))
            yield family
        success = CounterMetricFamily("vllm:request_success", "Requests finished.", labels=(*LABELS, "finished_reason"))
        for one in self._engines:
            for reason, count in one.successes.items():
                success.add_metric((*one.labels, reason), count)
        yield success

    def _histograms(self) -> Iterable[Metric]:
        for name, attribute, text in (
            ("vllm:time_to_first_token_seconds", "time_to_first_token_s", "Time to first token, in seconds."),
            ("vllm:inter_token_latency_seconds", "inter_token_latency_s", "Time between tokens, in seconds."),
            ("vllm:e2e_request_latency_seconds", "e2e_latency_s", "Request latency, in seconds."),
        ):
            family = HistogramMetricFamily(name, text, labels=LABELS)
            for one in self._engines:
                buckets, total = getattr(one, attribute).read()
                family.add_metric(one.labels, buckets, total)
            yield family
