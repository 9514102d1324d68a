"""Reading vLLM's counters out of its Prometheus text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.vllm.sampling import MetricsError, VllmCounters, engines_shown, parse_metrics, samples_by_name

COUNTERS = ("prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits")

# Two engines behind several API servers, as vLLM makes their metrics; the second one has computed something or not.
SHARED = """
import sys
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, multiprocess
counters = [Counter(f"vllm:{name}", "x", ["model_name", "engine"]) for name in sys.argv[2:]]
counters.append(Counter("vllm:request_success", "x", ["model_name", "engine", "finished_reason"]))
gauges = [
    Gauge(f"vllm:{name}", "x", ["model_name", "engine"], multiprocess_mode="mostrecent")
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
]
for engine in "01":
    for each in (*counters, *gauges):
        each.labels("m", engine, *(["stop"] if each is counters[-1] else []))
if sys.argv[1] == "asked":
    counters[1].labels("m", "1").inc()
    gauges[0].labels("m", "1").set(1)
    gauges[1].labels("m", "1").set(0)
    gauges[2].labels("m", "1").set(0.5)
registry = CollectorRegistry()
multiprocess.MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


def engine_text(engine: int, model: str, counts: tuple[int, ...], usage: float = 0.0, running: int = 0) -> str:
    """One engine's samples in the shape in which vLLM 0.32 serves them, with families of other names between them."""
    labels = f'engine="{engine}",model_name="{model}"'
    lines = [f"vllm:num_requests_running{{{labels}}} {running}.0", f"vllm:num_requests_waiting{{{labels}}} 2.0"]
    lines.append(f'vllm:num_requests_waiting_by_reason{{{labels},reason="capacity"}} 2.0')
    lines.append(f"vllm:kv_cache_usage_perc{{{labels}}} {usage}")
    for name, count in zip(COUNTERS, counts, strict=True):
        lines += [f"# HELP vllm:{name}_total Some words.", f"# TYPE vllm:{name}_total counter"]
        lines.append(f"vllm:{name}_total{{{labels}}} {count}.0")
        lines += [f"# TYPE vllm:{name}_created gauge", f"vllm:{name}_created{{{labels}}} 1.7952114320727758e+09"]
    lines.append(f'vllm:prompt_tokens_by_source_total{{{labels},source="local_cache_hit"}} 7.0')
    for reason, count in {"stop": 1, "length": 3, "abort": 50, "error": 60, "repetition": 0}.items():
        lines.append(
            f'vllm:request_success_total{{engine="{engine}",finished_reason="{reason}",model_name="{model}"}} {count}.0'
        )
    return "\n".join(lines) + "\n"


def test_one_engines_counters_are_read_by_name() -> None:
    text = "python_gc_objects_collected_total 12.0\n" + engine_text(0, "tiny", (84, 17, 90, 32), usage=0.25, running=1)
    assert parse_metrics(text) == VllmCounters(
        prompt_tokens_total=84,
        generation_tokens_total=17,
        requests_success=4,
        prefix_cache_queries=90,
        prefix_cache_hits=32,
        running=1,
        waiting=2,
        kv_cache_usage=0.25,
    )


def test_engines_are_summed_and_the_fullest_cache_is_the_usage() -> None:
    text = engine_text(0, "a", (10, 1, 10, 5), usage=0.1) + engine_text(1, "a", (20, 2, 20, 6), usage=0.7)
    counters = parse_metrics(text)
    assert (counters.prompt_tokens_total, counters.generation_tokens_total) == (30, 3)
    assert (counters.prefix_cache_queries, counters.prefix_cache_hits, counters.requests_success) == (30, 11, 8)
    assert counters.kv_cache_usage == 0.7


def test_a_model_is_read_apart_from_the_others() -> None:
    text = engine_text(0, "a", (10, 1, 10, 5)) + engine_text(0, "b", (200, 20, 200, 60))
    assert parse_metrics(text, model="b").prompt_tokens_total == 200
    assert parse_metrics(text, model="a").prompt_tokens_total == 10
    assert parse_metrics(text).prompt_tokens_total == 210


def test_a_model_that_is_not_served_is_an_error_and_not_zero() -> None:
    with pytest.raises(MetricsError, match="no sample of vllm:prompt_tokens_total"):
        parse_metrics(engine_text(0, "a", (10, 1, 10, 5)), model="b")


@pytest.mark.parametrize("name", [*COUNTERS, "request_success", "num_requests_running", "kv_cache_usage_perc"])
def test_a_missing_counter_is_an_error_and_not_zero(name: str) -> None:
    text = engine_text(0, "a", (10, 1, 10, 5))
    of_name = (f"vllm:{name}_total", f"vllm:{name}{{")
    without = "".join(line for line in text.splitlines(keepends=True) if not line.startswith(of_name))
    with pytest.raises(MetricsError, match=f"no sample of vllm:{name}"):
        parse_metrics(without)


@pytest.mark.parametrize(("state", "levels"), [("idle", (0, 0, 0.0)), ("asked", (1, 0, 0.5))])
def test_several_api_servers_show_each_engine_from_the_start(
    tmp_path: Path, state: str, levels: tuple[int, int, float]
) -> None:
    """Though they leave out the gauges of an engine that has not computed anything yet."""
    command = [sys.executable, "-c", SHARED, state, *COUNTERS]
    text = subprocess.check_output(command, env={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}, text=True)
    assert 'vllm:num_requests_running{engine="0"' not in text
    counters = parse_metrics(text)
    assert (counters.running, counters.waiting, counters.kv_cache_usage) == levels
    assert engines_shown(samples_by_name(text, None)) == 2


def test_an_engine_is_one_of_a_model_however_many_samples_it_has() -> None:
    each = [engine_text(0, "a", (10, 1, 10, 5)), engine_text(0, "b", (1, 0, 0, 0)), engine_text(1, "a", (0, 0, 0, 0))]
    assert engines_shown(samples_by_name("".join(each), None)) == 3
    assert engines_shown(samples_by_name("".join(each), "a")) == 2
    assert engines_shown(samples_by_name(each[0] * 2, None)) == 1
    with pytest.raises(MetricsError, match="no sample of vllm:generation_tokens_total"):
        engines_shown(samples_by_name(each[0], "b"))


@pytest.mark.parametrize("value", ["NaN", "+Inf", "1.5"])
def test_a_counter_that_is_not_a_whole_number_is_an_error(value: str) -> None:
    text = engine_text(0, "a", (10, 1, 10, 5)).replace(
        'vllm:generation_tokens_total{engine="0",model_name="a"} 1.0',
        f'vllm:generation_tokens_total{{engine="0",model_name="a"}} {value}',
    )
    with pytest.raises(MetricsError, match="vllm:generation_tokens_total"):
        parse_metrics(text)


@pytest.mark.parametrize("text", ["", "<html>502 Bad Gateway</html>", 'vllm:prompt_tokens_total{engine="0 1', "{}\n"])
def test_what_is_no_prometheus_text_is_an_error(text: str) -> None:
    with pytest.raises(MetricsError):
        parse_metrics(text)


@given(st.text(max_size=200))
def test_no_text_whatever_raises_anything_else(text: str) -> None:
    with pytest.raises(MetricsError):
        parse_metrics("vllm:prompt_tokens_total" + text)
