"""The writer of an engine's telemetry, read back from its files."""

from __future__ import annotations

import ast
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from runtime.telemetry import writer as module
from runtime.telemetry.reader import Follower
from runtime.telemetry.writer import CHECK_US, SEGMENT_MAX, TelemetryWriter, segments

Line = list[Any]
FACTS = {"engine": "sim 1", "model": "m", "block_size": 16, "num_blocks": 100, "accelerators": 1, "knobs": {"a": 1}}


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_us = 1_000_000_000

    def __call__(self) -> int:
        return self.now_us


def lines(folder: Path, number: int, source: str = "engine-0") -> list[Line]:
    """The lines of one segment."""
    return [json.loads(line) for line in (folder / f"{source}.{number}.jsonl").read_text().splitlines()]


def contexts(state: Line) -> dict[str, int]:
    """The context of each request in a state line."""
    return {request_id: context for _, request_id, context in state[1]}


def test_a_segment_begins_with_who_wrote_it_and_who_is_in_the_batch(tmp_path: Path) -> None:
    clock = Clock()
    TelemetryWriter(tmp_path / "new" / "folder", "engine-0", FACTS, clock_us=clock)
    opened, state = lines(tmp_path / "new" / "folder", 0)
    assert (opened[:3], opened[4:6]) == (["open", 1, "engine-0"], [0, clock.now_us])
    assert opened[6] == FACTS | {"lost": 0}
    assert state == ["state", []]


def test_every_kind_of_line_is_written_as_the_format_says(tmp_path: Path) -> None:
    writer = TelemetryWriter(tmp_path, "engine-0", FACTS, clock_us=Clock())
    writer.join(0, 'R "1"', 40, 16, 77)
    writer.step(10, 20, 3, 1, 2, [(0, 24)])
    writer.step(20, 31, 3, 1, 0)
    writer.leave(0, "finished", 2)
    counts = {"prompt_tokens": 1, "cached_tokens": 2, "output_tokens": 3, "queued_us": 4, "prefill_us": 5}
    writer.finished("R", "stop", **counts, decode_us=6, e2e_us=7, preemptions=8)
    writer.close()
    assert lines(tmp_path, 0)[2:] == [
        ["join", 0, 'R "1"', 40, 16, 77],
        ["step", 10, 20, 3, 1, 2, [[0, 24]]],
        ["step", 20, 31, 3, 1, 0, []],
        ["leave", 0, "finished", 2],
        ["finished", "R", "stop", 1, 2, 3, 4, 5, 6, 7, 8],
        ["close", 1_000_000_000],
    ]


def test_what_a_step_says_is_with_the_operating_system_when_it_returns(tmp_path: Path) -> None:
    """An engine that is killed loses nothing: its process is ended by SIGKILL right after a step and after a leave."""
    child = os.fork()
    if child == 0:
        writer = TelemetryWriter(tmp_path, "engine-0", FACTS)
        writer.join(0, "R", 1, 0, 0)
        writer.step(1, 2, 1, 1, 0, [(0, 1)])
        writer.leave(0, "aborted", 1)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert [line[0] for line in lines(tmp_path, 0)] == ["open", "state", "join", "step", "leave"]


def replayed(folder: Path, numbers: list[int]) -> Iterator[tuple[dict[str, int], dict[str, int]]]:
    """Each segment's stated contexts beside those that the lines of the segment before lead to."""
    batch: dict[int, tuple[str, int]] = {}
    for number in numbers:
        for line in lines(folder, number):
            match line:
                case ["state", stated]:
                    if number != numbers[0]:
                        yield contexts(line), dict(batch.values())
                    batch = {handle: (name, context) for handle, name, context in stated}
                case ["join", handle, name, _, context, _]:
                    batch[handle] = (name, context)
                case ["leave", handle, *_]:
                    del batch[handle]
                case ["step", *_, takes]:
                    taken = dict(takes)
                    batch = {h: (name, context + taken.get(h, 1)) for h, (name, context) in batch.items()}


@pytest.mark.parametrize("seed", range(20))
def test_each_new_segment_states_the_batch_that_the_lines_before_it_lead_to(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    writer = TelemetryWriter(tmp_path, "engine-0", FACTS, segment_bytes_max=600)
    present: list[int] = []
    compared = 0
    for number in range(60):
        if random.random() < 0.5:
            writer.join(number, f"R{number}", 100, random.randrange(64), 5)
            present.append(number)
        chosen = [handle for handle in present if random.random() < 0.3]
        writer.step(number, number + 1, 0, len(present), 0, [(each, random.randrange(50)) for each in chosen])
        if present and random.random() < 0.4:
            writer.leave(present.pop(random.randrange(len(present))), "finished", 1)
        for stated, expected in replayed(tmp_path, segments(tmp_path, "engine-0")):
            assert stated == expected
            compared += 1
    assert compared > 10


def test_only_the_last_two_segments_are_kept_and_the_folder_stays_bounded(tmp_path: Path) -> None:
    writer = TelemetryWriter(tmp_path, "engine-0", FACTS, segment_bytes_max=1000)
    other = TelemetryWriter(tmp_path, "engine-01", FACTS)
    for number in range(500):
        writer.step(number, number + 1, 0, 0, 0)
        assert sum(path.stat().st_size for path in tmp_path.glob("engine-0.*")) < 2 * (1000 + 100)
    kept = segments(tmp_path, "engine-0")
    assert len(kept) == 2
    assert kept[1] == kept[0] + 1 > 10
    assert [lines(tmp_path, number)[0][4] for number in kept] == kept
    other.close()
    assert segments(tmp_path, "engine-01") == [0]


def test_a_new_process_goes_on_after_the_highest_number_and_removes_what_is_older(tmp_path: Path) -> None:
    for number in (3, 7, 11):
        (tmp_path / f"engine-0.{number}.jsonl").write_text("[]\n")
    (tmp_path / "engine-0.note.jsonl").write_text("not ours")
    TelemetryWriter(tmp_path, "engine-0", FACTS).close()
    TelemetryWriter(tmp_path, "engine-0", FACTS).close()
    assert segments(tmp_path, "engine-0") == [12, 13]
    first, second = (lines(tmp_path, number)[0] for number in (12, 13))
    assert first[3] != second[3], "each start is a session of its own"
    assert (tmp_path / "engine-0.note.jsonl").exists()


def test_numbers_that_no_reader_knows_begin_anew(tmp_path: Path) -> None:
    (tmp_path / f"engine-0.{SEGMENT_MAX}.jsonl").touch()
    (tmp_path / f"engine-0.{SEGMENT_MAX + 1}.jsonl").touch()
    TelemetryWriter(tmp_path, "engine-0", FACTS, clock_us=Clock())
    assert segments(tmp_path, "engine-0") == [0]
    assert [piece.source for piece in Follower(tmp_path).read(1 << 20)] == ["engine-0"]


def test_a_folder_that_is_lost_costs_lines_and_is_made_again_within_a_second(tmp_path: Path) -> None:
    clock = Clock()
    folder = tmp_path / "telemetry"
    writer = TelemetryWriter(folder, "engine-0", FACTS, clock_us=clock)
    writer.join(4, "R", 10, 0, 0)
    writer.step(0, 1, 1, 1, 0, [(4, 10)])
    shutil.rmtree(folder)
    clock.now_us += CHECK_US
    writer.step(1, 2, 1, 1, 0)
    writer.step(2, 3, 1, 1, 0)
    [number] = segments(folder, "engine-0")
    opened, state, step = lines(folder, number)
    assert (number, opened[6]["lost"]) == (1, 1)
    assert state == ["state", [[4, "R", 11]]]
    assert step[1] == 2


def test_a_full_disk_drops_and_counts_and_leaves_no_torn_line(tmp_path: Path) -> None:
    """The limit on a file's size makes a write fall short and then fail, as a disk does that fills up."""
    clock = Clock()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    deaf = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    writer = TelemetryWriter(tmp_path, "engine-0", FACTS, clock_us=clock)
    writer.join(0, "R", 5, 0, 0)
    writer.step(0, 1, 1, 1, 0, [(0, 5)])
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "engine-0.0.jsonl").stat().st_size + 10, limits[1]))
        writer.step(1, 2, 1, 1, 0)
        writer.join(1, "S", 8, 0, 0)
        clock.now_us += CHECK_US
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        writer.step(2, 3, 1, 1, 0, [(1, 8)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, deaf)
    assert segments(tmp_path, "engine-0") == [0], "a segment that could not begin is not there"
    assert [line[0] for line in lines(tmp_path, 0)] == ["open", "state", "join", "step"]
    clock.now_us += CHECK_US
    writer.leave(0, "finished", 3)
    writer.step(3, 4, 1, 1, 0)
    opened, state, step = lines(tmp_path, 1)
    assert opened[6]["lost"] == writer.lost == 4, "two steps, a join and a leave"
    assert (state, step[1]) == (["state", [[1, "S", 8]]], 3)


def test_a_folder_that_cannot_be_made_does_not_keep_an_engine_from_its_work(tmp_path: Path) -> None:
    clock = Clock()
    (tmp_path / "file").write_text("in the way")
    writer = TelemetryWriter(tmp_path / "file", "engine-0", FACTS, clock_us=clock)
    writer.step(0, 1, 1, 1, 0)
    (tmp_path / "file").unlink()
    clock.now_us -= 5 * CHECK_US  # a clock that was put back does not put the next attempt off
    writer.step(1, 2, 1, 1, 0)
    writer.close()
    opened, _, closed = lines(tmp_path / "file", 0)
    assert (opened[6]["lost"], closed[0]) == (2, "close")


def test_a_long_name_is_cut_and_facts_that_are_no_json_are_written_as_text(tmp_path: Path) -> None:
    writer = TelemetryWriter(tmp_path, "engine-0", {"model": Path("m")})
    writer.join(0, "R" * 10_000, 1, 0, 0)
    writer.step(0, 1, 1, 1, 0, [(0, 1)])
    opened, _, join, _ = lines(tmp_path, 0)
    assert (opened[6]["model"], join[2]) == ("m", "R" * 256)


def test_the_file_stands_alone() -> None:
    """It is copied into the vLLM plugin, which has no dependencies."""
    tree = ast.parse(Path(module.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names
