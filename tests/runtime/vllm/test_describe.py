"""The description of an engine, made of its telemetry's facts and of what it says over HTTP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runtime.description import Description
from runtime.telemetry.writer import TelemetryWriter
from runtime.vllm.catalogue import KNOBS
from runtime.vllm.describe import COMPONENTS, DescribeError, Said, cache_info, describe, described, said_in
from runtime.vllm.launcher import VllmServer, free_port, url_of
from tests.runtime.vllm.fake_launch import launch_of

FACTS = {
    "engine": "vllm 0.32.0",
    "model": "tiny",
    "device": "cpu",
    "accelerators": 2,
    "block_size": 32,
    "num_blocks": 99,
    "knobs": {"max_num_seqs": 8, "max_model_len": 1024, "block_size": 32, "max_num_batched_tokens": 4},
}


def violated(description: Description) -> list[str]:
    """The couplings that do not hold."""
    return [coupling.name for coupling in description.couplings if coupling.violated]


def test_the_facts_of_the_telemetry_make_a_description(tmp_path: Path) -> None:
    TelemetryWriter(tmp_path, "engine-0", FACTS)
    said = said_in(tmp_path)
    description = described(said)
    assert (description.engine, description.model, description.device) == ("vllm", "tiny", "cpu")
    assert description.versions == {"vllm": "0.32.0"}
    assert (description.telemetry.status, description.telemetry.lost_lines) == ("on", 0)
    assert description.telemetry.since_us > 0
    capacity = description.capacity
    assert (capacity.num_blocks, capacity.block_size_tokens, capacity.cache_tokens) == (99, 32, 99 * 32)
    assert (capacity.model_len_tokens, capacity.seats, capacity.accelerators) == (1024, 8, 2)
    assert description.value("max_num_seqs") == 8
    with pytest.raises(KeyError):
        description.value("nothing")
    assert violated(description) == ["a token for each request"]


def test_a_description_is_json_and_each_knob_says_what_may_be_done_with_it() -> None:
    whole = json.loads(json.dumps(described(Said(FACTS)).as_json()))
    [seats] = [knob for knob in whole["knobs"] if knob["name"] == "max_num_seqs"]
    assert (seats["value"], seats["low"], seats["high"], seats["unit"]) == (8, 1, 4096, "requests")
    assert seats["live"] is False
    assert seats["why"] == KNOBS["max_num_seqs"].why


def test_every_knob_belongs_to_one_component() -> None:
    """But those of neither the engine nor its front end: none."""
    belonging = [knob for _, _, knobs, _ in COMPONENTS for knob in knobs]
    assert sorted(belonging) == sorted(KNOBS)


def test_components_have_the_knobs_that_the_engine_has_and_the_tier_only_where_there_is_one() -> None:
    without = described(Said(FACTS)).components
    assert [component.name for component in without] == ["front end", "scheduler", "kv cache", "executor"]
    assert [component.feeds for component in without if component.name == "kv cache"] == [()]
    scheduler = without[1]
    assert scheduler.knobs == ("max_num_seqs", "max_num_batched_tokens")
    tiered = described(Said({**FACTS, "knobs": {"kv_offloading_size": 4.0}}))
    assert tiered.components[-1].name == "offload tier"
    assert tiered.components[2].feeds == ("offload tier",)


def test_a_simulated_engine_is_described_by_the_same_means() -> None:
    knobs = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "step_time.base_us": 6400}
    description = described(Said({**FACTS, "engine": "sim 1", "knobs": knobs}))
    assert (description.engine, description.versions) == ("sim", {"sim": "1"})
    assert description.value("step_time.base_us") == 6400
    assert violated(description) == []
    sizes = (description.value("block_size"), description.value("num_gpu_blocks_override"))
    assert sizes == (32, 100), "vLLM counts a block more, which it never uses"
    assert "num_gpu_blocks_override" in description.components[2].knobs
    [seats] = [knob for knob in description.knobs if knob.name == "max_num_seqs"]
    assert seats.couples == ("max_num_batched_tokens",), "it has no max_num_active_seqs"


def test_a_refused_engine_says_why_and_an_unknown_folder_is_not_an_error(tmp_path: Path) -> None:
    assert said_in(None).telemetry.status == "unknown"
    assert "the plugin did not start" in said_in(tmp_path).telemetry.reason
    TelemetryWriter(tmp_path, "engine-0", {"engine": "vllm 0.33.0", "off": "another version"}).close()
    assert (said_in(tmp_path).telemetry.status, said_in(tmp_path).telemetry.reason) == ("off", "another version")


@pytest.mark.parametrize("line", [b"", b"{", b"[1]\n", b'["open",1,"s","t",0,1,[]]\n', b"\xff\xfe\n"])
def test_a_segment_that_cannot_be_read_leaves_the_telemetry_off(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "engine-0.0.jsonl").write_bytes(line)
    assert said_in(tmp_path).telemetry.status == "off"
    assert said_in(tmp_path).facts == {}


def test_a_server_without_the_plugin_is_described_by_what_it_serves(tmp_path: Path) -> None:
    with VllmServer(launch_of(tmp_path, "")) as server:
        description = describe(server.base_url)
    assert (description.model, description.versions) == ("tiny", {"vllm": "0.32.0"})
    assert description.capacity.num_blocks == 99, "one of vLLM's blocks is never used"
    assert description.capacity.model_len_tokens == 4096
    assert description.value("block_size") == 32
    assert description.value("gpu_memory_utilization") == 0.92
    assert description.value("enable_prefix_caching") is True
    assert description.value("kv_offloading_size") is None
    assert description.telemetry.status == "unknown"


def test_a_server_that_is_away_or_no_vllm_is_named(tmp_path: Path) -> None:
    with pytest.raises(DescribeError, match="/version did not answer"):
        describe(url_of(free_port()))
    launch = launch_of(tmp_path, "")
    fake = tmp_path / "site" / "vllm" / "entrypoints" / "openai" / "api_server.py"
    fake.write_text(fake.read_text().replace('{"version": "0.32.0"}', '{"name": "nginx"}'))
    with VllmServer(launch) as server, pytest.raises(DescribeError, match="does not answer as vLLM does"):
        describe(server.base_url)


def test_metrics_without_the_cache_have_no_labels_of_it() -> None:
    assert cache_info('vllm:other{a="b"} 1.0\n') == {}
