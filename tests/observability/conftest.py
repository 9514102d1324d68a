"""Fixtures of the observability tests."""

from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from observability.metrics import Metrics

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
Scrape = Callable[[Metrics], Samples]


@pytest.fixture
def metrics() -> Metrics:
    """Metrics that know the models, teams, runtimes and budgets of these tests."""
    metrics = Metrics()
    metrics.allow(models=["large", "small"], teams=["search", "research"], runtimes=["sim"], budgets=["org-day"])
    return metrics


@pytest.fixture
def scrape() -> Scrape:
    """Reads the rendered text as Prometheus does: (sample name, labels) to value."""

    def scrape(metrics: Metrics) -> Samples:
        samples: Samples = {}
        for family in text_string_to_metric_families(metrics.render().decode("utf-8")):
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in samples, f"{key} is rendered twice"
                samples[key] = sample.value
        return samples

    return scrape
