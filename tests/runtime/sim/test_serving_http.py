"""The server as a process: metrics, disconnects, a full queue, start and stop."""

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime.sim.__main__ import main

StartSimulator = Callable[..., AbstractContextManager[str]]
ENDLESS = {"model": "m", "prompt": "x", "max_tokens": 4_000, "ignore_eos": True}
SETTLE_TIMEOUT_S = 10.0


def read_samples(http: httpx.Client, model: str) -> dict[str, float]:
    """The samples of one model by name; finished requests as `vllm:request_success_total/REASON`."""
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(http.get("/metrics").text):
        for sample in family.samples:
            if sample.labels.get("model_name") == model and "le" not in sample.labels:
                reason = sample.labels.get("finished_reason")
                samples[sample.name + (f"/{reason}" if reason else "")] = sample.value
    return samples


def wait_for(http: httpx.Client, model: str, condition: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """The samples once they meet the condition; fails when they do not in time."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while not condition(samples := read_samples(http, model)):
        assert time.monotonic() < deadline, f"still {samples}"
        time.sleep(0.02)
    return samples


def wait_until_idle(http: httpx.Client, model: str) -> dict[str, float]:
    """The samples once no request is running or waiting and no block is held."""
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    return wait_for(http, model, lambda samples: all(samples[name] == 0 for name in names))


def test_metrics_are_the_sums_of_usage(start_simulator: StartSimulator) -> None:
    with (
        start_simulator("--model", "m,other", "--time-scale", "20") as url,
        httpx.Client(base_url=url) as http,
        openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as sdk,
    ):

        def send(at: int) -> tuple[int, int, int]:
            if at % 5 == 0:
                embedding = sdk.embeddings.create(model="m", input=f"text {at}" * 10)
                return embedding.usage.prompt_tokens, 0, 0
            text = "shared words at the beginning " * 10 + f"and {at}"
            asked = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 5 + at * 7}
            if at % 2:
                usage = sdk.chat.completions.create(**asked).usage  # type: ignore[call-overload]
            else:
                options = {"include_usage": True}
                usage = list(sdk.chat.completions.create(**asked, stream=True, stream_options=options))[-1].usage  # type: ignore[call-overload]
            return usage.prompt_tokens, usage.completion_tokens, usage.prompt_tokens_details.cached_tokens

        with ThreadPoolExecutor(8) as pool:
            prompt, completion, cached = (sum(column) for column in zip(*pool.map(send, range(40)), strict=True))
        samples = wait_until_idle(http, "m")
        assert samples["vllm:prompt_tokens_total"] == prompt
        assert samples["vllm:generation_tokens_total"] == completion
        assert samples["vllm:prefix_cache_hits_total"] == cached > 0
        assert samples["vllm:request_success_total/stop"] + samples["vllm:request_success_total/length"] == 40
        assert samples["vllm:request_success_total/stop"] > 0
        assert samples["vllm:time_to_first_token_seconds_count"] == 40
        assert samples["vllm:e2e_request_latency_seconds_count"] == 40
        assert samples["vllm:inter_token_latency_seconds_count"] == completion - 32
        assert set(read_samples(http, "other").values()) == {0}


def test_a_prompt_counts_once_per_choice_in_the_metrics_as_in_vllm(start_simulator: StartSimulator) -> None:
    with start_simulator("--model", "m", "--time-scale", "20") as url, httpx.Client(base_url=url) as http:
        body = {"model": "m", "prompt": [1] * 40, "n": 3, "max_tokens": 2}
        usage = http.post("/v1/completions", json=body).json()["usage"]
        samples = wait_until_idle(http, "m")
        assert usage["prompt_tokens"] == 40
        assert usage["completion_tokens"] == samples["vllm:generation_tokens_total"] == 6
        assert samples["vllm:prompt_tokens_total"] == 3 * 40


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_what_its_request_held(start_simulator: StartSimulator, stream: bool) -> None:
    with start_simulator("--model", "m") as url, httpx.Client(base_url=url) as http:
        if stream:
            with http.stream("POST", "/v1/completions", json={**ENDLESS, "stream": True}) as answer:
                next(answer.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post("/v1/completions", json=ENDLESS, timeout=0.3)
        samples = wait_until_idle(http, "m")
        assert 0 < samples["vllm:generation_tokens_total"] < 4_000
        assert sum(value for name, value in samples.items() if "request_success" in name) == 0


def test_a_full_queue_answers_503_and_recovers(start_simulator: StartSimulator) -> None:
    knobs = ("--max-num-seqs", "1", "--max-waiting", "2")
    with start_simulator("--model", "m", *knobs) as url, httpx.Client(base_url=url) as http:
        with http.stream("POST", "/v1/completions", json={**ENDLESS, "stream": True}) as running:
            lines = running.iter_lines()
            next(lines)
            with http.stream("POST", "/v1/completions", json={**ENDLESS, "n": 2, "stream": True}):
                wait_for(http, "m", lambda samples: samples["vllm:num_requests_waiting"] == 2)
                refused = http.post("/v1/completions", json=ENDLESS)
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "overloaded"
                assert refused.headers["retry-after"] == "1"
        wait_until_idle(http, "m")
        assert http.post("/v1/completions", json={**ENDLESS, "max_tokens": 3}).status_code == 200


def test_an_engine_under_pressure_preempts_and_still_answers_in_full(start_simulator: StartSimulator) -> None:
    knobs = ("--num-blocks", "32", "--max-model-len", "512", "--time-scale", "50")
    with start_simulator("--model", "m", *knobs) as url, httpx.Client(base_url=url, timeout=30) as http:
        body = {"model": "m", "max_tokens": 200, "ignore_eos": True}

        def send(at: int) -> int:
            answer = http.post("/v1/completions", json={**body, "prompt": [at] * 50})
            return int(answer.json()["usage"]["completion_tokens"])

        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(send, range(6))) == [200] * 6
        samples = wait_until_idle(http, "m")
        assert samples["vllm:num_preemptions_total"] > 0
        assert samples["vllm:generation_tokens_total"] == 1_200
        assert samples["vllm:prompt_tokens_total"] == 300


def test_an_urgent_request_overtakes_those_that_wait(start_simulator: StartSimulator) -> None:
    with start_simulator("--model", "m", "--max-num-seqs", "1") as url, httpx.Client(base_url=url, timeout=30) as http:
        ended: list[str] = []

        def send(name: str, priority: int, tokens: int) -> None:
            body = {"model": "m", "prompt": name, "max_tokens": tokens, "ignore_eos": True, "priority": priority}
            assert http.post("/v1/completions", json=body).status_code == 200
            ended.append(name)

        def arrived(samples: dict[str, float]) -> float:
            return samples["vllm:num_requests_waiting"] + samples["vllm:num_requests_running"]

        with ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(send, "first", 0, 300)]
            wait_for(http, "m", lambda samples: arrived(samples) == 1)
            futures.append(pool.submit(send, "later", 1, 5))
            wait_for(http, "m", lambda samples: arrived(samples) == 2)
            futures.append(pool.submit(send, "urgent", -1, 5))
            for future in futures:
                future.result()
        assert ended == ["first", "urgent", "later"]


def test_time_passes_as_the_step_model_says(start_simulator: StartSimulator) -> None:
    with start_simulator("--model", "m") as url, httpx.Client(base_url=url, timeout=30) as http:
        body = {"model": "m", "prompt": "x", "max_tokens": 60, "ignore_eos": True}
        began_s = time.monotonic()
        http.post("/v1/completions", json=body)
        # Sixty steps of 6.4 ms or a little more; the host may be slow, but never early.
        assert 0.38 < time.monotonic() - began_s < 10


def test_models_and_health_are_told(client: openai.OpenAI, http: httpx.Client) -> None:
    assert [model.id for model in client.models.list()] == ["sim-small", "sim-large"]
    assert http.get("/health").status_code == 200


def test_stopping_ends_open_streams(start_simulator: StartSimulator) -> None:
    with start_simulator("--model", "m") as url:
        began_s = time.monotonic()
        stream = httpx.stream("POST", f"{url}/v1/completions", json={**ENDLESS, "stream": True})
        answer = stream.__enter__()
        next(answer.iter_lines())
    assert time.monotonic() - began_s < 10
    stream.__exit__(None, None, None)


@pytest.mark.parametrize(
    "arguments",
    [[], ["--model", "m", "--block-size", "0"], ["--model", "m", "--num-blocks", "1"], ["--model", "m", "--port", "x"]],
)
def test_wrong_arguments_end_with_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


@pytest.mark.parametrize("arguments", [["--model", "a,a"], ["--model", ","], ["--model", "m", "--time-scale", "0"]])
def test_models_must_be_distinct_names_and_time_must_pass(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "runtime.sim", *arguments]
    ended = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=20)
    assert ended.returncode == 2
    assert "error:" in ended.stderr
