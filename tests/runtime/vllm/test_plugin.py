"""The plugin on a scheduler that has the names of vLLM's, of this version and of others."""

from __future__ import annotations

import ast
import importlib
import json
import logging
import sys
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.attribution.engine import Attribution
from runtime.attribution.weights import Weights
from runtime.step_time import StepTime
from runtime.telemetry.reader import Follower
from runtime.telemetry.records import Parser
from runtime.telemetry.writer import segments
from tests.e2e.replay import finished_lines, replayed
from tests.runtime.vllm.fake_vllm import (
    PLUGIN,
    DiffusionAsyncScheduler,
    DiffusionScheduler,
    Request,
    Scheduler,
    assembled,
    configuration,
    plugin,
)

ENGINE = "engine-3"
STEPS_MAX = 5_000


@pytest.fixture
def telemetry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the environment names."""
    monkeypatch.setenv("BURSAR_TELEMETRY", str(tmp_path / "telemetry"))
    return tmp_path / "telemetry"


@pytest.fixture
def metered(tmp_path: Path) -> Iterator[Any]:
    """The module of the metered scheduler, beside a vLLM 0.32."""
    with plugin(tmp_path / "site"):
        yield importlib.import_module("bursar_vllm.scheduler")


def facts_of(folder: Path, source: str = ENGINE) -> dict[str, Any]:
    """The facts of the newest segment."""
    with (folder / f"{source}.{segments(folder, source)[-1]}.jsonl").open() as file:
        return dict(json.loads(file.readline())[6])


def run(scheduler: Any, ahead: int = 1, between: Any = None) -> tuple[Counter[str], int]:
    """The engine core's loop until nothing is left: what was computed for whom, and in how many steps."""
    computed: Counter[str] = Counter()
    on_their_way: deque[Any] = deque()
    steps = 0
    while scheduler.requests or on_their_way:
        assert steps < STEPS_MAX, "the engine comes to an end"
        while len(on_their_way) < ahead and scheduler.requests:
            on_their_way.append(scheduler.schedule())
            computed.update(on_their_way[-1].num_scheduled_tokens)
        if between is not None:
            between()
        if not on_their_way:
            continue
        output = on_their_way.popleft()
        steps += bool(output.total_num_scheduled_tokens)
        assert scheduler.update_from_output(output, None) == "outputs"
    return computed, steps


@pytest.mark.parametrize("ahead", [1, 2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_the_stream_says_what_was_computed_for_whom(
    metered: Any, telemetry: Path, ahead: int, seed: int
) -> None:
    """Chunks, cached prefixes, preemptions and aborts at any moment, with up to three batches on their way."""
    random = Random(seed)
    scheduler = metered.MeteredScheduler(vllm_config=configuration(ahead=ahead > 1))
    assert isinstance(scheduler, metered.MeteredScheduler) == (ahead > 1)
    names = [f"chatcmpl-R{number}-0123abcd" for number in range(30)]
    for name in names:
        prompt = random.randrange(2, 40)
        scheduler.add_request(Request(name, prompt, random.randrange(1, 20), random.randrange(prompt)))

    def disturb() -> None:
        if random.random() < 0.1:
            scheduler.finish_requests(random.choice(names))
        if random.random() < 0.1:
            scheduler.preempt()

    computed, steps = run(scheduler, ahead, disturb)
    scheduler.shutdown()
    assert scheduler.is_shut
    replay = replayed(telemetry, ENGINE)
    assert replay.closed
    assert "off" not in replay.facts
    assert replay.steps == steps
    expected = {name.split("-")[1]: tokens for name, tokens in computed.items()}
    assert {name: tokens for name, tokens in replay.computed_tokens().items() if tokens} == expected
    assert replay.batch == {}
    assert {stay.reason for stay in replay.stays} <= {"finished", "aborted", "preempted"}


def test_one_that_is_resumed_ahead_of_the_steps_it_missed_is_not_taken_for_gone(
    metered: Any, telemetry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two batches on their way it runs again, and nobody waits, before the step without it is written."""
    scheduler = metered.MeteredScheduler(vllm_config=configuration(ahead=True))
    for name in ("A", "R"):
        scheduler.add_request(Request(name, 4, 9))
    ahead = deque([scheduler.schedule(), scheduler.schedule()])
    scheduler.preempt()
    scheduler.update_from_output(ahead.popleft())
    monkeypatch.setattr(Scheduler, "seats", 1)
    ahead.append(scheduler.schedule())
    scheduler.update_from_output(ahead.popleft())
    scheduler.finish_requests("A")
    ahead.append(scheduler.schedule())
    assert "R" in ahead[-1].num_scheduled_tokens
    while ahead:
        scheduler.update_from_output(ahead.popleft())
    run(scheduler)
    scheduler.shutdown()
    attribution, parser = Attribution(Weights.of(StepTime())), Parser()
    records = [record for piece in Follower(telemetry).read(1 << 20) for record in parser.records(piece.data)]
    shares = [share for record in records for share in attribution.take(record)]
    told = {(share.request_id, share.reason, share.certainty, share.preemptions) for share in shares}
    assert told == {("A", "aborted", "exact", 0), ("R", "finished", "exact", 1)}
    assert attribution.totals.prompt_tokens == 8


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("is_asked_to_meter", [False, True])
def test_a_diffusion_model_has_the_scheduler_that_vllm_chooses_for_it(
    metered: Any, telemetry: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool, is_asked_to_meter: bool
) -> None:
    """Which vLLM does only while no class is named: ours must not be a plain one in its place."""
    if not is_asked_to_meter:
        monkeypatch.delenv("BURSAR_TELEMETRY")
    scheduler = metered.MeteredScheduler(vllm_config=configuration(ahead=ahead, diffusion_config=object()))
    assert isinstance(scheduler, DiffusionScheduler)
    assert isinstance(scheduler, DiffusionAsyncScheduler) == ahead
    scheduler.add_request(Request("R", 4, 2))
    assert run(scheduler)[0] == {"R": 5}
    assert telemetry.exists() == is_asked_to_meter


def test_the_facts_say_what_runs(metered: Any, telemetry: Path) -> None:
    metered.MeteredScheduler(vllm_config=configuration())
    facts = facts_of(telemetry)
    assert (facts["engine"], facts["model"], facts["device"], facts["accelerators"]) == (
        "vllm 0.32.0",
        "tiny",
        "cuda",
        2,
    )
    assert (facts["block_size"], facts["num_blocks"]) == (16, 10)
    assert facts["knobs"]["max_num_seqs"] == 4
    assert facts["knobs"]["scheduling_policy"] == "fcfs"
    assert facts["knobs"]["dtype"] == "float32"
    assert facts["knobs"]["block_size"] is None, "this configuration has none"


def test_without_a_folder_the_plugin_does_nothing(
    metered: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BURSAR_TELEMETRY", raising=False)
    scheduler = metered.MeteredScheduler(vllm_config=configuration())
    scheduler.add_request(Request("R", 4, 2))
    assert run(scheduler)[0] == {"R": 5}
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


REFUSED = [
    ({}, "0.33.1", "this plugin knows vLLM 0.32, and this is 0.33.1"),
    ({}, "0.3.2", "this is 0.3.2"),
    ({"speculative_config": object()}, "0.32.1", "more than one token a step"),
    ({"diffusion_config": object()}, "0.32.0", "does not decode token by token"),
    ({"kv_transfer_config": SimpleNamespace(kv_connector="NixlConnector")}, "0.32.0", "KV connector NixlConnector"),
    (
        {"kv_transfer_config": SimpleNamespace(kv_connector="LMCacheMPConnector")},
        "0.32.0",
        "KV connector LMCacheMPConnector is not vLLM's own offload tier",
    ),
]


@pytest.mark.parametrize(("changed", "version", "reason"), REFUSED)
def test_what_cannot_be_metered_is_refused_in_one_line_and_served_all_the_same(
    tmp_path: Path,
    telemetry: Path,
    caplog: pytest.LogCaptureFixture,
    changed: dict[str, Any],
    version: str,
    reason: str,
) -> None:
    with plugin(tmp_path / "site", version), caplog.at_level(logging.WARNING):
        scheduler = importlib.import_module("bursar_vllm.scheduler").MeteredScheduler(
            vllm_config=configuration(**changed)
        )
        scheduler.add_request(Request("R", 4, 2))
        assert run(scheduler)[0] == {"R": 5}
        scheduler.shutdown()
    [record] = caplog.records
    assert reason in record.getMessage()
    assert reason in facts_of(telemetry)["off"]
    assert replayed(telemetry, ENGINE).steps == 0


def test_the_tier_in_the_hosts_memory_can_be_metered(metered: Any, telemetry: Path) -> None:
    tier = SimpleNamespace(kv_connector="OffloadingConnector")
    metered.MeteredScheduler(vllm_config=configuration(kv_transfer_config=tier))
    assert "off" not in facts_of(telemetry)


def test_a_version_that_lacks_what_the_plugin_looks_for_is_served_all_the_same(tmp_path: Path, telemetry: Path) -> None:
    with plugin(tmp_path / "site", "0.32.0", without="async_scheduler"):
        module = importlib.import_module("bursar_vllm.scheduler")
        scheduler = module.MeteredScheduler(vllm_config=configuration(ahead=True))
        scheduler.add_request(Request("R", 4, 2))
        assert run(scheduler)[0] == {"R": 5}
        config = configuration()
        del config.cache_config, config.device_config
        bare = module.MeteredScheduler(vllm_config=config)
        bare.add_request(Request("R", 4, 2))
        assert run(bare)[0] == {"R": 5}
    assert "device_config" in facts_of(telemetry)["off"]


def test_a_step_that_the_format_cannot_say_ends_the_telemetry_and_not_the_engine(
    metered: Any, telemetry: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = metered.MeteredScheduler(vllm_config=configuration())
    scheduler.add_request(Request("R", 4, 9))
    monkeypatch.setattr(Scheduler, "decoded_per_step", 2)
    run(scheduler)
    assert scheduler.requests == {}
    [record] = caplog.records
    assert "1 requests decoded 2 tokens in one step" in record.getMessage()
    assert "decoded 2 tokens" in facts_of(telemetry)["off"]


@pytest.mark.parametrize("broken", ["schedule", "update", "add", "free", "preempt"])
def test_an_error_of_the_plugin_is_never_the_engines(
    metered: Any, telemetry: Path, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = metered.StepMeter
    method = {"schedule": "scheduled", "update": "computed", "add": "queued", "free": "left", "preempt": "left"}[broken]
    scheduler = metered.MeteredScheduler(vllm_config=configuration())
    scheduler.add_request(Request("R", 4, 3))
    if broken != "add":
        scheduler.update_from_output(scheduler.schedule())
    monkeypatch.setattr(meter, method, lambda *_: 1 / 0)
    if broken == "preempt":
        scheduler.preempt()
    scheduler.add_request(Request("S", 4, 3))
    run(scheduler)
    assert scheduler.requests == {}
    assert "ZeroDivisionError" in facts_of(telemetry)["off"]


def test_a_session_that_streams_its_input_ends_the_telemetry(metered: Any, telemetry: Path) -> None:
    scheduler = metered.MeteredScheduler(vllm_config=configuration())
    request = Request("R", 4, 2)
    request.resumable = True
    scheduler.add_request(request)
    assert run(scheduler)[0] == {"R": 5}
    assert "streams its input" in facts_of(telemetry)["off"]


R = "0190a1b2-c3d4-7e5f-8901-123456789012"


@pytest.mark.parametrize(
    ("given", "internal", "sent"),
    [
        (f"chatcmpl-{R}-0a1b2c3d", True, R),
        (f"1_chatcmpl-{R}-0a1b2c3d", True, R),
        (f"cmpl-{R}-0-0a1b2c3d", True, R),
        (f"12_cmpl-{R}-3-0a1b2c3d", True, R),
        (f"embd-{R}-0-0a1b2c3d", True, R),
        (f"chatcmpl-{R}", False, R),
        (f"cmpl-{R}-11", False, R),
        (f"chatcmpl-{R}", True, R),
        ("chatcmpl-mine", False, "mine"),
        ("resp_123-0a1b2c3d", True, "resp_123"),
        ("", True, ""),
    ],
)
def test_the_id_that_was_sent_is_found_in_what_vllm_makes_of_it(
    metered: Any, given: str, internal: bool, sent: str
) -> None:
    module = importlib.import_module("bursar_vllm.request_id")
    assert module.sent_id(given, internal=internal) == sent


def finished(**changed: Any) -> SimpleNamespace:
    """One request as vLLM's front end lists it."""
    told = {
        "request_id": f"chatcmpl-{R}",
        "finish_reason": "stop",
        "num_prompt_tokens": 10,
        "num_cached_tokens": 4,
        "num_generation_tokens": 3,
        "queued_time": 0.5,
        "prefill_time": 0.25,
        "decode_time": 0.125,
        "e2e_latency": 1.0,
        "num_preemptions": 1,
    }
    return SimpleNamespace(**{**told, **changed})


def test_the_logger_writes_what_vllm_counts_of_each_finished_request(metered: Any, telemetry: Path) -> None:
    module = importlib.import_module("bursar_vllm.stat_logger")
    logger = module.BursarStatLogger(configuration(), 1)
    logger.log_engine_initialized()
    logger.record(None, None)
    logger.record(SimpleNamespace(), SimpleNamespace(finished_requests=[finished()]), mm_cache_stats=None, engine_idx=1)
    line = ["finished", R, "stop", 10, 4, 3, 500_000, 250_000, 125_000, 1_000_000, 1]
    assert finished_lines(telemetry, "requests-1") == [line]


def test_each_front_end_of_several_has_its_own_file_and_an_error_is_never_vllms(metered: Any, telemetry: Path) -> None:
    module = importlib.import_module("bursar_vllm.stat_logger")
    parallel = SimpleNamespace(world_size=1, _api_process_rank=2)
    logger = module.BursarStatLogger(configuration(parallel_config=parallel), 0)
    logger.record(None, SimpleNamespace(finished_requests=[finished(num_prompt_tokens=object())]))
    logger.record(None, SimpleNamespace(finished_requests=[finished()]))
    assert "cannot be told" in facts_of(telemetry, "requests-0-2")["off"]


def test_the_logger_of_another_version_does_nothing(tmp_path: Path, telemetry: Path) -> None:
    with plugin(tmp_path / "site", "0.31.0"):
        logger = importlib.import_module("bursar_vllm.stat_logger").BursarStatLogger(configuration())
        logger.record(None, SimpleNamespace(finished_requests=[finished()]))
    assert finished_lines(telemetry) == []


def test_the_plugin_needs_nothing_but_python_and_vllm(tmp_path: Path) -> None:
    files = sorted((assembled(tmp_path) / "bursar_vllm").rglob("*.py"))
    assert {"writer.py", "catalogue.py", "scheduler.py"} <= {file.name for file in files}
    strangers = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                strangers |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                strangers.add(str(node.module).split(".")[0])
    assert strangers - sys.stdlib_module_names == {"vllm"}


def test_the_plugin_is_known_to_vllm_by_its_entry_point() -> None:
    text = (PLUGIN / "pyproject.toml").read_text()
    assert (
        '[project.entry-points."vllm.stat_logger_plugins"]\nbursar = "bursar_vllm.stat_logger:BursarStatLogger"' in text
    )
