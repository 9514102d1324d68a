"""The launcher, against a real subprocess that stands in for vLLM's API server."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from runtime.vllm.couplings import EngineFacts, KnobError
from runtime.vllm.knobs import VllmKnobs
from runtime.vllm.launcher import MODULE, VllmLaunch, VllmServer, VllmServerError, VllmStartError, is_healthy, tail
from tests.runtime.vllm.fake_launch import launch_of

BARE = VllmLaunch(python=Path("py"), model=Path("m"), served_model_name="tiny", log=Path("l"))


def facts(launch: VllmLaunch) -> dict[str, Any]:
    """What the fake saw when it started."""
    seen: dict[str, Any] = json.loads((launch.model / "facts.json").read_text())
    return seen


def is_running(pid: int) -> bool:
    """Whether a process runs; one that ended but was not yet reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_argv_says_the_model_the_port_and_what_bursar_relies_on() -> None:
    argv = BARE.argv(8123)
    assert argv[:3] == ["py", "-m", MODULE]
    pairs = dict(pairwise(argv))
    assert pairs["--host"] == "127.0.0.1"
    assert pairs["--port"] == "8123"
    assert pairs["--model"] == "m"
    assert pairs["--served-model-name"] == "tiny"
    assert pairs["--block-size"] == "32"
    assert pairs["--scheduling-policy"] == "priority"
    assert pairs["--dtype"] == "float32"
    assert pairs["--kv-cache-memory-bytes"] == str(1 << 30)
    assert {"--enforce-eager", "--enable-prompt-tokens-details", "--enable-prefix-caching"} <= set(argv)


def test_the_environment_is_offline_silent_and_has_no_secret_and_no_other_pythons_settings() -> None:
    base = {
        "PATH": "/bin",
        "PYTHONPATH": "/x",
        "VIRTUAL_ENV": "/v",
        "BURSAR_SIGNING_KEY": "secret",
        "HF_HUB_OFFLINE": "0",
        "SECOND_RUNTIME": "a secret under any name",
        "VLLM_API_KEY": "a secret under one of vLLM's",
        "VLLM_CPU_KVCACHE_SPACE": "4",
    }
    environment = BARE.environment(base, Path("scratch"))
    assert environment["PATH"] == "/bin"
    assert environment["VLLM_CPU_KVCACHE_SPACE"] == "4"
    assert base.keys() & environment.keys() == {"PATH", "HF_HUB_OFFLINE", "VLLM_CPU_KVCACHE_SPACE"}
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["VLLM_NO_USAGE_STATS"] == "1"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""


def test_the_environment_says_how_many_threads_and_where() -> None:
    launch = replace(BARE, omp_threads=2, omp_threads_bind="0-1")
    environment = launch.environment({}, Path("scratch"))
    assert environment["OMP_NUM_THREADS"] == "2"
    assert environment["VLLM_CPU_OMP_THREADS_BIND"] == "0-1"


def test_a_server_on_an_accelerator_sees_it_and_keeps_its_own_threads() -> None:
    launch = replace(BARE, knobs=VllmKnobs(EngineFacts(device="cuda")))
    environment = launch.environment({"CUDA_VISIBLE_DEVICES": "1"}, Path("scratch"))
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert "OMP_NUM_THREADS" not in environment


def test_a_metered_server_has_the_plugins_scheduler_and_its_folder_and_others_have_neither(tmp_path: Path) -> None:
    launch = replace(BARE, telemetry=tmp_path)
    assert dict(pairwise(launch.argv(1)))["--scheduler-cls"] == "bursar_vllm.scheduler.MeteredScheduler"
    assert launch.environment({}, Path("scratch"))["BURSAR_TELEMETRY"] == str(tmp_path)
    assert "--scheduler-cls" not in BARE.argv(1)
    assert "BURSAR_TELEMETRY" not in BARE.environment({"BURSAR_TELEMETRY": "of another"}, Path("scratch"))


def test_options_that_are_off_are_said_to_be_off() -> None:
    assert "--no-enable-prefix-caching" in VllmKnobs(enable_prefix_caching=False).argv()
    assert "--enable-per-request-metrics" not in VllmKnobs().argv()
    assert "--no-enable-per-request-metrics" in VllmKnobs(enable_per_request_metrics=False).argv()
    assert "--enable-per-request-metrics" in VllmKnobs(enable_per_request_metrics=True).argv()


def test_what_vllm_is_to_work_out_is_not_said() -> None:
    assert "--max-num-seqs" not in VllmKnobs(max_num_seqs=None).argv()


def test_a_server_generates_unless_told_to_embed() -> None:
    assert "--runner" not in VllmKnobs().argv()
    assert dict(pairwise(VllmKnobs(runner="pooling", convert="embed").argv()))["--runner"] == "pooling"


def test_knobs_are_changed_by_making_others_and_equal_when_they_say_the_same() -> None:
    knobs = VllmKnobs(max_num_seqs=4)
    changed = knobs.changed(max_num_seqs=8, block_size=64)
    assert (knobs.values["max_num_seqs"], changed.values["block_size"]) == (4, 64)
    assert changed == VllmKnobs(max_num_seqs=8, block_size=64) != knobs
    assert len({changed, VllmKnobs(max_num_seqs=8, block_size=64)}) == 1
    assert "block_size=64" in repr(changed)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("block_size", 16),
        ("max_num_seqs", 0),
        ("max_model_len", -1),
        ("max_num_batched_tokens", 8),
        ("kv_cache_memory_bytes", 0),
    ],
)
def test_settings_that_vllm_would_refuse_are_refused_at_once(field: str, value: int) -> None:
    with pytest.raises(KnobError, match=field):
        VllmKnobs(**{field: value})


def test_a_server_is_up_when_start_returns_and_gone_after_stop(tmp_path: Path) -> None:
    launch = launch_of(tmp_path, "slow")
    with VllmServer(launch) as server:
        assert server.base_url.startswith("http://127.0.0.1:")
        assert is_healthy(int(server.base_url.rsplit(":", 1)[1]))
        server.check_alive()
        leader, engine = server.pid, facts(launch)["engine_pid"]
        assert leader is not None
        assert is_running(leader)
        assert os.getpgid(leader) == leader != os.getpgid(0)
        assert facts(launch)["environment"]["HF_HUB_OFFLINE"] == "1"
        assert "--enforce-eager" in facts(launch)["argv"]
        scratch = Path(facts(launch)["environment"]["TMPDIR"])
        assert scratch.is_dir()
    assert not scratch.exists()
    assert not is_running(leader)
    assert not is_running(engine)
    assert server.pid is None


def test_a_server_that_dies_while_it_starts_is_explained_by_the_end_of_its_log(tmp_path: Path) -> None:
    launch = launch_of(tmp_path, "dies")
    server = VllmServer(launch)
    with pytest.raises(VllmStartError, match=r"(?s)status 3 .*head_dim 7 is not supported"):
        server.start()
    assert server.pid is None
    assert not is_running(facts(launch)["engine_pid"])


def test_a_server_that_never_becomes_healthy_is_ended_at_the_time_limit(tmp_path: Path) -> None:
    launch = launch_of(tmp_path, "hangs")
    server = VllmServer(launch, start_timeout_s=1.5)
    with pytest.raises(VllmStartError, match=r"(?s)not healthy after 1\.5 s.*loading weights for ever"):
        server.start()
    assert server.pid is None
    assert not is_running(facts(launch)["engine_pid"])


def test_a_server_deaf_to_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    launch = launch_of(tmp_path, "deaf")
    server = VllmServer(launch, stop_grace_s=0.3)
    server.start()
    leader = server.pid
    assert leader is not None
    began_s = time.monotonic()
    server.stop()
    assert 0.3 <= time.monotonic() - began_s < 10
    assert not is_running(leader)
    assert not is_running(facts(launch)["engine_pid"])


def test_a_server_that_ended_by_itself_is_noticed(tmp_path: Path) -> None:
    launch = launch_of(tmp_path, "")
    with VllmServer(launch) as server:
        assert server.pid is not None
        os.kill(server.pid, 9)
        os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(VllmServerError, match="ended with status -9"):
            server.check_alive()
    assert not is_running(facts(launch)["engine_pid"])


def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    launch = VllmLaunch(
        python=tmp_path / "no-python", model=tmp_path, served_model_name="tiny", log=tmp_path / "vllm.log"
    )
    with pytest.raises(VllmStartError, match="no-python"):
        VllmServer(launch).start()


def test_stopping_twice_or_before_the_start_does_nothing(tmp_path: Path) -> None:
    launch = launch_of(tmp_path, "")
    server = VllmServer(launch)
    server.stop()
    with pytest.raises(VllmServerError, match="not started"):
        server.check_alive()
    server.start()
    server.stop()
    server.stop()
    assert server.pid is None


def test_a_second_start_of_a_running_server_is_a_mistake(tmp_path: Path) -> None:
    launch = launch_of(tmp_path, "")
    with VllmServer(launch) as server, pytest.raises(RuntimeError, match="started before"):
        server.start()


def test_the_tail_of_a_log_is_bounded_in_lines_and_bytes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"x" * 200_000 + b"\n" + b"\n".join(b"line %d \xff" % n for n in range(100)))
    lines = tail(log).splitlines()
    assert len(lines) == 40
    assert lines[-1].startswith("line 99")
    log.write_bytes(b"y" * 200_000)
    assert len(tail(log)) == 64 * 1024
