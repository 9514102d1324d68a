"""What `bursar runtime list`, `describe` and `doctor` say of telemetry: whether it is read, and how many count."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.cli.runtime_metering import metered
from runtime.telemetry.writer import TelemetryWriter
from tests.gateway.test_cli_commands import AWAY, DONE, answer, ran

FACTS = {"engine": "sim 1", "model": "m", "block_size": 16, "num_blocks": 100, "accelerators": 1, "knobs": {}}
TOLD_S = 1_700_000_000
TOLD = "2023-11-14 22:13:20 UTC"
# Of several API servers: the engine that was asked first has gauges, the others not yet.
ASKED = b'vllm:num_requests_running{engine="0",model_name="m"} 0\n'
METRICS = b'vllm:generation_tokens_total{engine="%d",model_name="m"} 0\n'


def told(folder: Path, index: int = 0, **facts: Any) -> Path:
    """The segment of an engine that told last at `TOLD`."""
    TelemetryWriter(folder, f"engine-{index}", FACTS | facts, clock_us=lambda: TOLD_S * 1_000_000 + index)
    segment = folder / f"engine-{index}.0.jsonl"
    os.utime(segment, (TOLD_S, TOLD_S))
    return segment


def as_version_2(segment: Path) -> None:
    segment.write_text(segment.read_text().replace('["open",1,', '["open",2,', 1))
    os.utime(segment, (TOLD_S, TOLD_S))


@pytest.fixture
def shows(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let every runtime show so many engines at /metrics."""

    def shows(engines: int) -> None:
        page = ASKED + b"".join(METRICS % index for index in range(engines))
        monkeypatch.setattr("gateway.cli.runtime_metering.get", lambda *_: page)

    return shows


def configured(folder: Path) -> Path:
    runtime = {"id": "killed", "owner": "o", "url": "http://127.0.0.1:9", "telemetry": str(folder / "t"), "gpus": 8}
    bare = {"id": "bare", "owner": "o", "url": "http://127.0.0.1:9", "gpus": 8}
    model = {"owner": "o", "upstream_model": "m", "price": "free", "context_tokens": 512, "endpoints": ["chat"]}
    models = [{**model, "id": name, "runtimes": [name]} for name in ("killed", "bare")]
    path = folder / "bursar.yaml"
    path.write_text(yaml.safe_dump({"version": 1, "runtimes": [runtime, bare], "models": models}), encoding="utf-8")
    return path


def test_the_accelerators_that_count_are_those_of_all_engines_that_run(
    tmp_path: Path, shows: Callable[[int], None]
) -> None:
    assert metered(None, 8, "http://x") == (metered(None, 8, None).state, 8)
    for index in range(3):
        told(tmp_path, index, accelerators=2)
    shows(3)
    assert metered(tmp_path, 8, "http://x").accelerators == 6
    (tmp_path / "engine-2.0.jsonl").open("a").write(f'["close",{TOLD_S * 1_000_000}]\n')
    shows(2)
    assert metered(tmp_path, 8, "http://x").accelerators == 4
    segment = tmp_path / "engine-0.1.jsonl"
    segment.write_text((tmp_path / "engine-0.0.jsonl").read_text().replace(str(TOLD_S), str(TOLD_S + 60)))
    shows(1)
    assert metered(tmp_path, 8, "http://x").accelerators == 2, "engine-1 is of a run that was killed"


def test_telemetry_of_another_version_is_off_and_says_what_to_do(tmp_path: Path, shows: Callable[[int], None]) -> None:
    shows(2)
    told(tmp_path)
    as_version_2(told(tmp_path, 1))
    found = metered(tmp_path, 8, "http://x")
    assert found.brief == "off: engine-1: version 2, and this Bursar reads 1: install its plugin"


def test_a_runtime_that_was_killed_is_not_shown_as_metered(tmp_path: Path) -> None:
    told(tmp_path / "t", accelerators=2)
    config = configured(tmp_path)
    rows = {row["id"]: row for row in answer("runtime", "list", "--json", home=tmp_path / "home", config=config)}
    assert rows["killed"]["telemetry"] == f"off: not running; as of {TOLD}"
    assert [rows[name]["accelerators"] for name in ("killed", "bare")] == [2, 8]
    said = ran(DONE, "runtime", "describe", "killed", home=tmp_path / "home", config=config).stdout
    assert said.startswith(f"killed: not running; as of {TOLD}\n")
    assert "accelerators 2; telemetry off" in said
    found = answer("runtime", "describe", "killed", "--json", home=tmp_path / "home", config=config)
    assert (found["telemetry"]["status"], found["capacity"]["accelerators"]) == ("off", 2)


def test_what_cannot_be_described_says_what_is_wrong_with_its_telemetry(tmp_path: Path) -> None:
    as_version_2(told(tmp_path / "t"))
    config = configured(tmp_path)
    said = ran(AWAY, "runtime", "describe", "killed", home=tmp_path / "home", config=config).stderr
    assert "version 2, and this Bursar reads 1: install its plugin" in said


@pytest.mark.parametrize("is_of_another_version", [False, True])
def test_doctor_has_a_line_about_the_telemetry_of_each_runtime(tmp_path: Path, is_of_another_version: bool) -> None:
    segment = told(tmp_path / "t")
    if is_of_another_version:
        as_version_2(segment)
    config = configured(tmp_path)
    found = json.loads(ran(AWAY, "doctor", "--json", home=tmp_path / "home", config=config).stdout)
    lines = {each["dependency"]: (each["state"], each["detail"]) for each in found}
    version = "version 2, and this Bursar reads 1: install its plugin"
    why = version if is_of_another_version else f"not running; as of {TOLD}"
    assert lines["telemetry killed"] == ("optional", f"off: {why}; requests are charged estimates")
    assert lines["telemetry bare"] == ("optional", "none is configured; requests are charged estimates")
