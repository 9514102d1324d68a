"""A server is changed and rolled back: against a real subprocess that stands in for vLLM's API server."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.vllm.control import NotVerified, Patience, VllmControl
from runtime.vllm.knobs import VllmKnobs
from runtime.vllm.launcher import VllmLaunch, VllmServerError, VllmStartError
from tests.runtime.vllm.fake_launch import launch_of

PATIENCE = Patience(start_s=20, verify_s=5, drain_s=0.3, stop_s=5)


@contextmanager
def control_of(launch: VllmLaunch) -> Iterator[VllmControl]:
    """A started server that is ended with the test."""
    with VllmControl(launch, PATIENCE) as control:
        yield control


def stages(control: VllmControl) -> list[str]:
    """What was done, in order."""
    return [happening.stage for happening in control.happenings]


def test_a_server_is_started_verified_and_stopped(tmp_path: Path) -> None:
    with control_of(launch_of(tmp_path, "slow")) as control:
        assert control.is_alive()
        assert control.sample().prompt_tokens_total == 7
    assert stages(control) == ["started", "verified", "stopped"]
    assert control.pid is None
    assert [happening.at_us for happening in control.happenings] == sorted(h.at_us for h in control.happenings)


def test_other_knobs_are_another_process_at_the_same_address(tmp_path: Path) -> None:
    with control_of(launch_of(tmp_path, "")) as control:
        pid, url = control.pid, control.base_url
        applied = control.apply({"max_num_seqs": 4})
        assert (applied.outcome, applied.knobs["max_num_seqs"], applied.reason) == ("applied", 4, "")
        assert [happening.stage for happening in applied.happenings] == ["drained", "stopped", "started", "verified"]
        assert control.pid not in (None, pid)
        assert control.base_url == url
        assert control.launch.knobs == VllmKnobs(max_num_seqs=4)


def test_the_knobs_that_run_already_cost_no_restart(tmp_path: Path) -> None:
    with control_of(launch_of(tmp_path, "")) as control:
        pid = control.pid
        applied = control.apply({"max_num_seqs": 16})
        assert (applied.outcome, applied.happenings, control.pid) == ("applied", (), pid)


def test_a_set_that_the_catalogue_refuses_is_not_tried(tmp_path: Path) -> None:
    with control_of(launch_of(tmp_path, "")) as control:
        pid = control.pid
        applied = control.apply({"max_num_batched_tokens": 8})
        assert (applied.outcome, control.pid) == ("refused", pid)
        assert applied.reason.startswith("max_num_batched_tokens (8) must be at least max_num_seqs (16)")
        assert (
            control.apply({"max_num_sequences": 4}).reason == "vLLM 0.32 has no knob max_num_sequences in the catalogue"
        )


def test_a_server_that_does_not_come_to_rest_is_left_alone(tmp_path: Path) -> None:
    launch = launch_of(tmp_path, "")
    with control_of(launch) as control:
        pid = control.pid
        (launch.model / "busy").touch()
        applied = control.apply({"max_num_seqs": 4})
        assert (applied.outcome, control.pid, applied.knobs["max_num_seqs"]) == ("refused", pid, 16)
        assert applied.reason == "requests still ran after 0.3 s"
        (launch.model / "busy").unlink()
        assert control.apply({"max_num_seqs": 4}).outcome == "applied"


@pytest.mark.parametrize("hidden", [("first step",), ("busy", "uncounted")], ids=" and ".join)
def test_a_request_that_is_not_counted_yet_or_once_is_not_cut(tmp_path: Path, hidden: tuple[str, ...]) -> None:
    launch = launch_of(tmp_path, "")
    with control_of(launch) as control:
        pid = control.pid
        for name in hidden:
            (launch.model / name).touch()
        applied = control.apply({"max_num_seqs": 4})
        assert (applied.outcome, applied.reason, control.pid) == ("refused", "requests still ran after 0.3 s", pid)


def test_a_server_that_dies_while_it_comes_to_rest_is_started_on_the_new_set(tmp_path: Path) -> None:
    launch = launch_of(tmp_path, "")
    with control_of(launch) as control:
        for name in ("busy", "dying"):
            (launch.model / name).touch()
        applied = control.apply({"max_num_seqs": 4})
        assert applied.outcome == "applied"
        assert [happening.stage for happening in applied.happenings] == ["died", "started", "verified"]


def test_a_server_that_takes_too_long_to_answer_may_compute_and_is_left_alone(tmp_path: Path) -> None:
    launch = launch_of(tmp_path, "")
    with control_of(launch) as control:
        pid = control.pid
        (launch.model / "late").touch()
        assert (control.apply({"max_num_seqs": 4}).outcome, control.pid) == ("refused", pid)


@pytest.mark.parametrize(
    ("behaviour", "why"), [("dies with 4 seats", "head_dim 7"), ("mute with 4 seats", "without an answer")]
)
def test_knobs_that_fail_to_start_or_to_answer_are_rolled_back(tmp_path: Path, behaviour: str, why: str) -> None:
    launch = launch_of(tmp_path, behaviour)
    with control_of(launch) as control:
        applied = control.apply({"max_num_seqs": 4})
        assert (applied.outcome, applied.knobs["max_num_seqs"]) == ("rolled back", 16)
        assert why in applied.reason
        assert [happening.stage for happening in applied.happenings][-3:] == ["started", "verified", "rolled back"]
        assert control.is_alive()
        assert control.launch.knobs == launch.knobs


def test_when_not_even_the_last_good_knobs_run_any_more_it_is_down_and_says_so(tmp_path: Path) -> None:
    launch = launch_of(tmp_path, "")
    with control_of(launch) as control:
        (launch.model / "behaviour").write_text("dies")
        applied = control.apply({"max_num_seqs": 4})
        assert applied.outcome == "down"
        assert [happening.stage for happening in applied.happenings] == ["drained", "stopped", "failed", "failed"]
        assert not control.is_alive()
        (launch.model / "behaviour").write_text("")
        assert control.apply({"max_num_seqs": 4}).outcome == "applied", "the next set is tried all the same"


def test_a_server_that_dies_is_noticed_once_and_revived(tmp_path: Path) -> None:
    with control_of(launch_of(tmp_path, "")) as control:
        assert control.pid is not None
        os.kill(control.pid, signal.SIGKILL)
        os.waitid(os.P_PID, control.pid, os.WEXITED | os.WNOWAIT)
        assert not control.is_alive()
        assert not control.is_alive()
        assert stages(control) == ["started", "verified", "died"]
        with pytest.raises(VllmServerError, match="/metrics did not answer"):
            control.sample()
        assert control.revive()
        assert control.is_alive()


@pytest.mark.parametrize(
    ("behaviour", "error"), [("dies", VllmStartError), ("mute", NotVerified), ("ailing", NotVerified)]
)
def test_a_server_that_cannot_be_used_is_not_left_running(
    tmp_path: Path, behaviour: str, error: type[VllmServerError]
) -> None:
    control = VllmControl(launch_of(tmp_path, behaviour), PATIENCE)
    with pytest.raises(error):
        control.start()
    assert control.pid is None
    assert stages(control)[-1] == "failed"


def test_a_server_that_embeds_is_verified_by_embedding(tmp_path: Path) -> None:
    launch = replace(launch_of(tmp_path, ""), knobs=VllmKnobs(runner="pooling", convert="embed"))
    with control_of(launch) as control:
        assert control.is_alive()


def test_the_record_of_what_happened_is_bounded(tmp_path: Path) -> None:
    control = VllmControl(launch_of(tmp_path, ""), PATIENCE, happenings_max=3)
    for _ in range(5):
        refused = control.apply({"max_num_seqs": 0})
        assert [happening.stage for happening in refused.happenings] == ["refused"]
    assert stages(control) == ["refused"] * 3
