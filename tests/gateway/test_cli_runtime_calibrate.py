"""`bursar runtime list`, `describe` and `calibrate`, over the simulator served as if it were a real engine."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from runtime.calibration.stored import Calibration
from runtime.step_time import StepTime
from tests.gateway.test_cli_commands import AWAY, DONE, WRONG_USAGE, answer, ran
from tests.runtime.sim.conftest import running_simulator

KNOBS = ("--max-model-len", "512", "--max-num-seqs", "4", "--max-num-batched-tokens", "256", "--num-blocks", "128")
TIMEOUT_S = 110


def write_configuration(folder: Path, url: str) -> Path:
    """A served engine with its telemetry, one that is not there, and an embedded one that does not run."""
    runtimes: list[dict[str, Any]] = [
        {"id": "served", "owner": "platform", "url": f"{url}/v1", "telemetry": str(folder / "telemetry")},
        {"id": "gone", "owner": "platform", "url": "http://127.0.0.1:9"},
        {"id": "embedded", "owner": "platform", "url": "sim://"},
    ]
    model = {"owner": "platform", "upstream_model": "m", "price": "free", "context_tokens": 512, "endpoints": ["chat"]}
    models = [{**model, "id": f"m-{each['id']}", "runtimes": [each["id"]]} for each in runtimes]
    path = folder / "bursar.yaml"
    path.write_text(yaml.safe_dump({"version": 1, "runtimes": runtimes, "models": models}), encoding="utf-8")
    return path


def eventually(is_so: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline_s, f"not in time: {what}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration of a simulator that runs in real time."""
    folder = tmp_path_factory.mktemp("served")
    arguments = ("--model", "m", "--telemetry", str(folder / "telemetry"), *KNOBS)
    with running_simulator(folder, *arguments) as url:
        yield write_configuration(folder, url)


def test_runtimes_are_listed_with_their_health(served: Path, tmp_path: Path) -> None:
    rows = {row["id"]: row for row in answer("runtime", "list", "--json", home=tmp_path / "home", config=served)}
    assert (rows["served"]["health"], rows["served"]["models"], rows["served"]["telemetry"]) == ("ok", ["m"], "on")
    assert rows["gone"]["health"].startswith("away")
    assert rows["gone"]["telemetry"] == "unknown"
    assert (rows["embedded"]["url"], rows["embedded"]["health"]) == ("sim://", "not running")


def test_an_engine_is_described(served: Path, tmp_path: Path) -> None:
    found = answer("runtime", "describe", "served", "--json", home=tmp_path, config=served)
    assert (found["engine"], found["model"]) == ("sim", "m")
    assert found["capacity"]["model_len_tokens"] == 512
    assert {knob["name"]: knob["value"] for knob in found["knobs"]}["max_num_seqs"] == 4
    table = ran(DONE, "runtime", "describe", "served", home=tmp_path, config=served).stdout
    assert "max_num_batched_tokens" in table


def test_what_is_not_there_is_said(served: Path, tmp_path: Path) -> None:
    assert (
        "there is no runtime nobody"
        in ran(WRONG_USAGE, "runtime", "describe", "nobody", home=tmp_path, config=served).stderr
    )
    assert ran(AWAY, "runtime", "describe", "gone", home=tmp_path, config=served).stderr
    for name, said in (("embedded", "does not run"), ("gone", "has no telemetry folder"), ("", "name either")):
        arguments = ("runtime", "calibrate", *([name] if name else []))
        assert said in ran(WRONG_USAGE, *arguments, home=tmp_path, config=served).stderr


@pytest.mark.timeout(TIMEOUT_S)
def test_calibrating_the_simulator_finds_its_own_coefficients(served: Path, tmp_path: Path) -> None:
    """Its telemetry tells the times of its model to the microsecond, so the fit is that model."""
    arguments = ("runtime", "calibrate", "served", "--seconds", "1", "--turns", "2", "--json")
    kept = answer(*arguments, home=tmp_path, config=served)
    found = Calibration.load(tmp_path / "calibrations" / "served.json")
    assert (kept["path"], kept["digest"]) == (str(tmp_path / "calibrations" / "served.json"), found.digest)
    truth = StepTime()
    assert found.step_time.base_us == pytest.approx(truth.base_us, rel=0.002)
    assert found.step_time.prefill_token_ns == pytest.approx(truth.prefill_token_ns, rel=0.01)
    assert found.step_time.decode_request_ns == pytest.approx(truth.decode_request_ns, rel=0.1)
    assert found.step_time.decode_context_ps == pytest.approx(truth.decode_context_ps, rel=0.1)
    assert found.engine.engine == "sim 1"
    assert found.ranges.spans["tokens of a request"][1] == 512
    for each in (*found.errors["held_out"].values(), *found.errors["training"].values()):
        assert each["mean_absolute"] < 0.002
    assert found.rate.output_us_per_mtok > found.rate.input_us_per_mtok > 0
    simulate_its_engine_and_no_other(found, served, tmp_path)


def simulate_its_engine_and_no_other(found: Calibration, config: Path, home: Path) -> None:
    """`--runtime` takes the runtime's own calibration, and refuses one of another engine under that name."""
    trace = home / "trace.jsonl"
    rows = [{"timestamp": at * 100, "input_length": 40, "output_length": 4, "hash_ids": [at]} for at in range(30)]
    trace.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    arguments = ("runtime", "simulate", "--runtime", "served", "--trace", str(trace), "--json")
    simulated = answer(*arguments, home=home, config=config)
    assert (simulated["calibration"], simulated["finished"]) == (found.digest, 30)
    other = replace(found, engine=replace(found.engine, model="another"))
    other.save(home / "calibrations" / "served.json")
    refused = ran(WRONG_USAGE, *arguments, home=home, config=config)
    assert "of another engine: model 'another', not 'm'" in refused.stderr


@pytest.mark.timeout(TIMEOUT_S)
def test_an_engine_that_dies_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    """It is killed two seconds into the loads."""
    port_file = tmp_path / "port"
    command = [sys.executable, "-m", "runtime.sim", "--model", "m", "--port-file", str(port_file), *KNOBS]
    process = subprocess.Popen([*command, "--telemetry", str(tmp_path / "telemetry")])
    killing = threading.Timer(2.0, process.kill)
    try:
        eventually(port_file.exists, "the simulator has started")
        config = write_configuration(tmp_path, f"http://127.0.0.1:{json.loads(port_file.read_text())['port']}")
        killing.start()
        done = ran(AWAY, "runtime", "calibrate", "served", "--seconds", "2", "--json", home=tmp_path, config=config)
    finally:
        killing.cancel()
        process.kill()
        process.wait()
    assert "the engine stopped answering in the middle" in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "calibrations").exists()
