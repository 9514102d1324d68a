"""`bursar runtime list`, `describe` and `calibrate`, over the simulator served as if it were a real engine."""

import json
import re
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

from gateway.cli.runtime_calibrate import print_calibration
from runtime.calibration.session import lone_rate
from runtime.calibration.stored import Calibration
from runtime.step_time import StepTime
from tests.gateway.test_cli_commands import AWAY, DONE, NO, WRONG_USAGE, answer, ran
from tests.runtime.calibration.test_stored import MADE
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
    assert "served: sim 1, model m\n" in table
    for row in (
        r"max_num_seqs .* 4 .* 1 to 4,096 .* requests .* max_num_batched_tokens ",
        r"scheduling_policy .* fcfs, priority ",
        r"block_size .* 16 ",
        r"num_gpu_blocks_override .* 129 ",
        r"a token for each request .* max_num_batched_tokens, max_num_seqs .* yes ",
    ):
        assert re.search(row, table), row
    for other in ("speculative_config", "tenants apart", "active within seats"):
        assert other not in table, "the simulator has no such knob"


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
    done = ran(DONE, *arguments, home=tmp_path, config=served)
    told_of_each_load(done.stderr)
    kept = json.loads(done.stdout)
    assert kept["lone_rate"]["gpu_us_per_output_mtok"] > kept["rate"]["gpu_us_per_output_mtok"]
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


def told_of_each_load(told: str) -> None:
    """Where there is no terminal: how long it will take, and a line for each load."""
    lines = told.splitlines()
    loads = [line.partition(":")[0] for line in lines]
    assert [*loads[:5], *loads[6:11]] == [
        *("warming", "prefills", "decodes-short", "decodes-long", "hits"),
        *(f"even-closed-{users}" for users in (1, 2, 4, 6)),
        "even-open-35",
    ]
    assert re.fullmatch(r"4 seats, so up to 6 users at once: about \d+ s more", lines[5])
    assert lines[9] == "even-closed-6: 12 requests ended"
    assert len(lines) == 16


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


def test_what_belongs_to_launch_is_refused_without_it(served: Path, tmp_path: Path) -> None:
    """A configured runtime runs already; an interpreter that the environment names is for other commands."""
    for option in (("--set", "max_num_seqs=3"), ("--python", sys.executable)):
        done = ran(WRONG_USAGE, "runtime", "calibrate", "served", *option, home=tmp_path, config=served)
        assert "--set and --python go with --launch" in done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BURSAR_VLLM_PYTHON", sys.executable)
        done = ran(WRONG_USAGE, "runtime", "calibrate", "embedded", home=tmp_path, config=served)
    assert "does not run" in done.stderr


def test_an_engine_whose_clock_runs_at_another_speed_is_refused_at_once(tmp_path: Path) -> None:
    arguments = ("--model", "m", "--telemetry", str(tmp_path / "telemetry"), "--time-scale", "4", *KNOBS)
    with running_simulator(tmp_path, *arguments) as url:
        config = write_configuration(tmp_path, url)
        done = ran(NO, "runtime", "calibrate", "served", home=tmp_path, config=config)
    assert done.stderr.startswith("bursar: the simulator's clock runs 4 times as fast as that of its clients")


def test_rates_say_that_they_are_of_full_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what a request that is alone takes: a base for each of its tokens."""
    errors = {"outlier_steps": 0, "outlier_time_share": 0.0, "held_out": {}, "training": {}}
    made = replace(MADE, step_time=StepTime(6_400, 0, 40_000, 0, 20_000, 52_000), errors=errors)
    print_calibration(made, tmp_path / "m.json")
    told = " ".join(capsys.readouterr().out.split())
    assert "The rates are those of full batches." in told
    lone = lone_rate(made.step_time, made.engine)
    assert lone.output_us_per_mtok == pytest.approx(6_422_000_000, rel=0.001)
    assert lone.input_us_per_mtok > 40_000_000
    assert f"gpu_us_per_output_mtok {lone.output_us_per_mtok:,}" in told
    assert "seen: requests in a step 1 to 4" in told


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
