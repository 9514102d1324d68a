"""What Prometheus reads is exactly what was settled, and no flood of names makes it grow."""

from collections import defaultdict
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from domain.usage import NOTHING, Usage
from observability import names
from observability.exposition import expose
from observability.metrics import CONTENT_TYPE, Metrics

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
Scrape = Callable[[Metrics], Samples]

USAGE = Usage(input_tokens=100, cached_input_tokens=32, cache_write_tokens=8, output_tokens=20, reasoning_tokens=5)


def settle(metrics: Metrics, usage: Usage = USAGE, **changes: object) -> None:
    row: dict[str, object] = {
        "endpoint": "chat",
        "model": "large",
        "team": "search",
        "status": "ok",
        "list_cost_nusd": 1_234_567_891,
        "gpu_us": 777,
        "runtime": "sim",
        "duration_us": 15_000,
        "ttft_us": 0,
        "overhead_us": 300,
    } | changes
    metrics.settled(usage=usage, **row)  # type: ignore[arg-type]


def sample(samples: Samples, name: str, **labels: str) -> float:
    return samples[(name, frozenset(labels.items()))]


def total(samples: Samples, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(value for (each, have), value in samples.items() if each == name and wanted <= have)


def test_one_settled_request_is_counted_in_every_family(metrics: Metrics, scrape: Scrape) -> None:
    settle(metrics, ttft_us=12_000)
    samples = scrape(metrics)
    assert sample(samples, names.REQUESTS, endpoint="chat", model="large", team="search", status="ok") == 1
    assert sample(samples, names.TOKENS, model="large", team="search", kind="input") == 100
    assert sample(samples, names.TOKENS, model="large", team="search", kind="cached_input") == 32
    assert sample(samples, names.TOKENS, model="large", team="search", kind="output") == 20
    assert sample(samples, names.LIST_COST, model="large", team="search") == 1_234_567_891
    assert sample(samples, names.GPU_TIME, runtime="sim") == 777
    for name in (names.REQUEST_DURATION, names.TTFT, names.OVERHEAD):
        assert sample(samples, f"{name}_count", endpoint="chat", model="large") == 1
    assert sample(samples, f"{names.REQUEST_DURATION}_sum", endpoint="chat", model="large") == 0.015


def test_genai_metrics_of_both_generations_carry_the_same_tokens(metrics: Metrics, scrape: Scrape) -> None:
    settle(metrics)
    settle(metrics, endpoint="completions", model="small")
    samples = scrape(metrics)
    operation = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "openai", "gen_ai_request_model": "large"}
    counted = {
        "gen_ai_client_inference_usage_input_tokens_total": 100,
        "gen_ai_client_inference_usage_cache_read_input_tokens_total": 32,
        "gen_ai_client_inference_usage_cache_write_input_tokens_total": 8,
        "gen_ai_client_inference_usage_output_tokens_total": 20,
        "gen_ai_client_inference_usage_reasoning_output_tokens_total": 5,
    }
    for name, tokens in counted.items():
        assert sample(samples, name, **operation, gen_ai_token_modality="unknown") == tokens
    for token_type, tokens in (("input", 100), ("output", 20)):
        assert sample(samples, "gen_ai_client_token_usage_sum", **operation, gen_ai_token_type=token_type) == tokens
        assert sample(samples, f"gen_ai_client_inference_operation_{token_type}_tokens_sum", **operation) == tokens
    text_completion = operation | {"gen_ai_operation_name": "text_completion", "gen_ai_request_model": "small"}
    assert sample(samples, "gen_ai_client_inference_operation_input_tokens_count", **text_completion) == 1


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["chat", "completions", "embeddings", "made-up"]),
        st.sampled_from(["large", "small", "invented-1", "invented-2"]),
        st.sampled_from(["search", "research", "unknown-team"]),
        st.sampled_from(["ok", "failed", "cut", "expired"]),
        st.integers(0, 10**6),
        st.integers(0, 10**6),
        st.integers(0, 10**12),
        st.integers(0, 10**9),
    ),
    max_size=60,
)


@given(ROWS)
def test_sums_over_labels_equal_what_was_settled(rows: list[tuple[str, str, str, str, int, int, int, int]]) -> None:
    metrics = Metrics(cells_max=5)
    metrics.allow(models=["large", "small"], teams=["search", "research"], runtimes=["sim"])
    expected: dict[str, int] = defaultdict(int)
    for endpoint, model, team, status, input_tokens, output_tokens, cost, gpu_us in rows:
        usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
        metrics.settled(endpoint, model, team, status, usage, cost, gpu_us, "sim", 1_000, 0, 10)
        expected["input"] += input_tokens
        expected["output"] += output_tokens
        expected["cost"] += cost
        expected["gpu"] += gpu_us
    samples: Samples = {
        (each.name, frozenset(each.labels.items())): each.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for each in family.samples
    }
    assert total(samples, names.REQUESTS) == len(rows)
    assert total(samples, names.TOKENS, kind="input") == expected["input"]
    assert total(samples, names.TOKENS, kind="output") == expected["output"]
    assert total(samples, names.LIST_COST) == expected["cost"]
    assert total(samples, names.GPU_TIME) == expected["gpu"]
    assert total(samples, f"{names.REQUEST_DURATION}_count") == len(rows)


def test_a_flood_of_invented_names_adds_no_series(metrics: Metrics, scrape: Scrape) -> None:
    settle(metrics)
    settle(metrics, model="x", team="x", runtime="x", endpoint="x", status="x")
    before = scrape(metrics)
    for number in range(1_000):
        invented = f"invented-{number}"
        settle(metrics, model=invented, team=invented, runtime=invented, endpoint=invented, status=invented)
    after = scrape(metrics)
    assert after.keys() == before.keys()
    other = {"endpoint": "other", "model": "other", "team": "other", "status": "other"}
    assert sample(after, names.REQUESTS, **other) == 1_001


def test_configured_names_beyond_the_bound_are_reported_and_counted_as_other(scrape: Scrape) -> None:
    metrics = Metrics(values_max=2)
    assert metrics.allow(teams=["a", "b", "c"]) == ["c"]
    settle(metrics, team="c")
    assert total(scrape(metrics), names.REQUESTS, team="other") == 1


def test_cells_are_bounded_even_when_every_label_is_known(scrape: Scrape) -> None:
    metrics = Metrics(cells_max=3)
    metrics.allow(models=[f"m{n}" for n in range(20)], teams=["search"], runtimes=["sim"])
    for number in range(20):
        settle(metrics, model=f"m{number}")
    samples = scrape(metrics)
    series = [key for key in samples if key[0] == names.REQUESTS]
    assert len(series) == 4
    assert total(samples, names.REQUESTS) == 20


def test_a_refusal_is_a_request_without_latency_or_tokens(metrics: Metrics, scrape: Scrape) -> None:
    settle(metrics, NOTHING, status="refused", runtime="", list_cost_nusd=0, gpu_us=0, overhead_us=90)
    samples = scrape(metrics)
    assert total(samples, names.REQUESTS, status="refused") == 1
    assert total(samples, f"{names.OVERHEAD}_count") == 1
    assert total(samples, f"{names.REQUEST_DURATION}_count") == 0
    assert not [key for key in samples if key[0] in (names.TOKENS, names.LIST_COST, names.GPU_TIME)]


def test_an_expired_hold_is_charged_in_the_counters_although_no_runtime_is_known(
    metrics: Metrics, scrape: Scrape
) -> None:
    settle(metrics, status="expired", runtime="")
    samples = scrape(metrics)
    assert total(samples, names.TOKENS, kind="input") == 100
    assert total(samples, names.LIST_COST) == 1_234_567_891


def test_a_value_on_a_bound_falls_into_that_bucket(metrics: Metrics, scrape: Scrape) -> None:
    settle(metrics, duration_us=10_000)
    settle(metrics, duration_us=10_001)
    settle(metrics, duration_us=10**9)
    samples = scrape(metrics)
    labels = {"endpoint": "chat", "model": "large"}
    buckets = {
        le: sample(samples, f"{names.REQUEST_DURATION}_bucket", le=le, **labels) for le in ("0.01", "0.02", "+Inf")
    }
    assert buckets == {"0.01": 1, "0.02": 2, "+Inf": 3}


def test_events_are_counted_by_their_bounded_labels(metrics: Metrics, scrape: Scrape) -> None:
    metrics.refused("policy_denied")
    metrics.refused("policy_denied")
    metrics.unauthenticated("unknown")
    metrics.overage("org-day")
    metrics.overage("not-configured")
    metrics.hold_expired()
    metrics.upstream_error("sim", "timeout")
    metrics.replayed("chat")
    metrics.replayed("invented")
    metrics.breaker("sim", is_open=True)
    samples = scrape(metrics)
    assert sample(samples, names.REFUSALS, code="policy_denied") == 2
    assert sample(samples, names.UNAUTHENTICATED, reason="unknown") == 1
    assert sample(samples, names.OVERAGE, budget="org-day") == 1
    assert sample(samples, names.OVERAGE, budget="other") == 1
    assert sample(samples, names.HOLD_EXPIRED) == 1
    assert sample(samples, names.UPSTREAM_ERRORS, runtime="sim", kind="timeout") == 1
    assert sample(samples, names.REPLAYS, endpoint="chat") == 1
    assert sample(samples, names.REPLAYS, endpoint="other") == 1
    assert sample(samples, names.BREAKER_OPEN, runtime="sim") == 1


def test_alarms_read_zero_before_anything_happened(metrics: Metrics, scrape: Scrape) -> None:
    samples = scrape(metrics)
    assert sample(samples, names.HOLD_EXPIRED) == 0
    assert sample(samples, names.BREAKER_OPEN, runtime="sim") == 0


def test_codes_are_bounded_too(metrics: Metrics, scrape: Scrape) -> None:
    for number in range(500):
        metrics.refused(f"code-{number}")
    samples = scrape(metrics)
    assert len([key for key in samples if key[0] == names.REFUSALS]) == 65
    assert total(samples, names.REFUSALS) == 500


def test_owners_are_asked_at_every_scrape(metrics: Metrics, scrape: Scrape) -> None:
    holds = ["h-1", "h-2", "h-3"]
    revisions = ["sha256:aa"]
    metrics.watch(names.HOLDS_OPEN, lambda: len(holds))
    metrics.watch(names.JOURNAL_FSYNCS, lambda: 10)
    metrics.watch_revision(lambda: revisions[-1])
    first = scrape(metrics)
    holds.clear()
    revisions.append("sha256:bb")
    second = scrape(metrics)
    assert sample(first, names.HOLDS_OPEN) == 3
    assert sample(first, names.JOURNAL_FSYNCS) == 10
    assert sample(first, "bursar_policy_revision_info", revision="sha256:aa") == 1
    assert sample(second, names.HOLDS_OPEN) == 0
    assert sample(second, "bursar_policy_revision_info", revision="sha256:bb") == 1
    assert total(second, "bursar_policy_revision_info") == 1


def test_only_known_metrics_are_watched_and_by_one_owner(metrics: Metrics) -> None:
    metrics.watch(names.IN_FLIGHT, lambda: 1)
    with pytest.raises(ValueError, match="has an owner already"):
        metrics.watch(names.IN_FLIGHT, lambda: 2)
    with pytest.raises(ValueError, match="is not a metric"):
        metrics.watch("bursar_made_up", lambda: 1)


def test_a_budget_shows_its_tightest_counter(metrics: Metrics, scrape: Scrape) -> None:
    metrics.watch_budgets(lambda: [("org-day", 50), ("org-day", 7), ("org-day", 99), ("removed", 1)])
    samples = scrape(metrics)
    assert sample(samples, names.BUDGET_REMAINING, budget="org-day") == 7
    assert sample(samples, names.BUDGET_REMAINING, budget="other") == 1
    assert sample(samples, names.BUDGET_COUNTERS_UNREAD) == 0


def test_drift_is_shown_by_kind_and_quantity_once_it_is_known(metrics: Metrics, scrape: Scrape) -> None:
    drift: dict[tuple[str, str], int] = {}
    metrics.watch_drift(lambda: drift)
    assert [key for key in scrape(metrics) if key[0] == names.LEDGER_DRIFT] == []
    drift.update({("counter", "tokens"): 0, ("runtime", "prompt_tokens"): 7})
    samples = scrape(metrics)
    assert sample(samples, names.LEDGER_DRIFT, kind="counter", quantity="tokens") == 0
    assert sample(samples, names.LEDGER_DRIFT, kind="runtime", quantity="prompt_tokens") == 7


def test_a_scrape_reads_a_bounded_number_of_counters_and_says_so(metrics: Metrics, scrape: Scrape) -> None:
    read: list[int] = []

    def counters() -> object:
        for number in range(1_000_000):
            read.append(number)
            yield ("org-day", number)

    metrics.watch_budgets(counters)  # type: ignore[arg-type]
    samples = scrape(metrics)
    assert sample(samples, names.BUDGET_COUNTERS_UNREAD) == 1
    assert len(read) == 10_001


def test_integers_are_rendered_exactly_beyond_what_a_float_holds(metrics: Metrics) -> None:
    settle(metrics, list_cost_nusd=2**53)
    settle(metrics, list_cost_nusd=1)
    line = f'bursar_list_cost_nusd_total{{model="large",team="search"}} {2**53 + 1}\n'
    assert line in metrics.render().decode()


def test_label_values_are_escaped(scrape: Scrape) -> None:
    metrics = Metrics()
    awkward = 'a "quoted"\\ name\nwith a line break'
    metrics.allow(teams=[awkward])
    settle(metrics, team=awkward)
    assert total(scrape(metrics), names.REQUESTS, team=awkward) == 1


def test_what_was_collected_is_written_as_it_was_then(metrics: Metrics) -> None:
    settle(metrics)
    collected = metrics.collect()
    before = [line for line in metrics.render().splitlines() if not line.startswith(b"process_")]
    settle(metrics)
    after = [line for line in expose(collected).splitlines() if not line.startswith(b"process_")]
    assert after == before


def test_every_family_has_the_name_and_type_that_prometheus_expects(metrics: Metrics) -> None:
    metrics.watch_revision(lambda: "sha256:aa")
    text = metrics.render().decode()
    assert "# TYPE bursar_requests_total counter\n" in text
    assert "# TYPE bursar_breaker_open gauge\n" in text
    assert "# TYPE bursar_policy_revision_info gauge\n" in text
    assert "# TYPE process_cpu_seconds_total counter\n" in text


def test_content_type_is_the_text_format_that_is_rendered(metrics: Metrics) -> None:
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")
    assert b"# TYPE bursar_request_duration_seconds histogram" in metrics.render()
