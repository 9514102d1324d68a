"""Following telemetry: everything in order and once, what is missing said, whatever becomes of the files meanwhile."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from runtime.telemetry.reader import LINE_BYTES_MAX, Follower
from runtime.telemetry.records import Close, Finished, Join, Leave, Lost, Open, Parser, Record, State, Step
from runtime.telemetry.writer import TelemetryWriter

FACTS = {"engine": "sim 1", "model": "m", "block_size": 16, "num_blocks": 100, "accelerators": 2, "knobs": {}}
BIG = 1 << 20


def writer(folder: Path, source: str = "engine-0", bytes_max: int = BIG) -> TelemetryWriter:
    return TelemetryWriter(folder, source, FACTS, bytes_max)


class Reading:
    """A follower with a parser for each source."""

    def __init__(self, folder: Path) -> None:
        self.follower = Follower(folder)
        self.parsers: dict[str, Parser] = {}

    def new(self, bytes_max: int = BIG) -> dict[str, list[Record]]:
        found: dict[str, list[Record]] = {}
        for piece in self.follower.read(bytes_max):
            records = found.setdefault(piece.source, [])
            if piece.lost is not None:
                records.append(piece.lost)
            records += self.parsers.setdefault(piece.source, Parser()).records(piece.data)
        return found

    def engine(self) -> list[Record]:
        return self.new().get("engine-0", [])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "telemetry"


def test_what_is_written_is_read_once_and_in_order(folder: Path) -> None:
    engine, reading = writer(folder), Reading(folder)
    engine.join(1, "r-1", 20, 16, 7)
    engine.step(100, 200, 3, 1, 0, [(1, 4)])
    (opened, state, joined, stepped) = reading.engine()
    assert isinstance(opened, Open)
    assert (opened.segment, opened.accelerators, opened.block_size, opened.lost) == (0, 2, 16, 0)
    assert (state, joined, stepped) == (State(()), Join(1, "r-1", 20, 16, 7), Step(100, 200, 3, 1, 0, ((1, 4),)))
    assert reading.engine() == []
    engine.leave(1, "finished", 5)
    engine.close()
    left, closed = reading.engine()
    assert left == Leave(1, "finished", 5)
    assert isinstance(closed, Close)


def test_sources_are_followed_apart(folder: Path) -> None:
    reading = Reading(folder)
    writer(folder).step(1, 2, 0, 0, 0)
    counts = {"prompt_tokens": 5, "cached_tokens": 4, "output_tokens": 3, "queued_us": 2, "prefill_us": 1}
    times = {"decode_us": 9, "e2e_us": 8, "preemptions": 0}
    writer(folder, "requests-0").finished("r-1", "stop", **counts, **times)
    found = reading.new()
    assert [len(found[source]) for source in ("engine-0", "requests-0")] == [3, 3]
    assert found["requests-0"][2] == Finished("r-1", "stop", 5, 4, 3, 2, 1, 9, 8, 0)


def test_segments_that_turn_lose_nothing_while_one_follows(folder: Path) -> None:
    engine, reading = writer(folder, bytes_max=600), Reading(folder)
    steps: list[Record] = []
    for number in range(200):
        engine.step(number, number + 1, 0, 0, 0)
        steps += [record for record in reading.engine() if isinstance(record, Step | Lost)]
    assert [step.begin_us for step in steps if isinstance(step, Step)] == list(range(200))
    assert len(list(folder.iterdir())) == 2


def test_segments_that_were_removed_unread_are_counted(folder: Path) -> None:
    engine, reading = writer(folder, bytes_max=600), Reading(folder)
    assert len(reading.engine()) == 2
    for number in range(200):
        engine.step(number, number + 1, 0, 0, 0)
    found = reading.engine()
    (lost,) = [record for record in found if isinstance(record, Lost)]
    kept = sorted(int(path.name.split(".")[1]) for path in folder.iterdir())
    assert lost == Lost("segments", kept[0] - 1), "the first one is open still, so it is read to its end"
    assert isinstance(found[-1], Step)


def test_a_follower_that_comes_later_begins_with_the_oldest_segment(folder: Path) -> None:
    engine = writer(folder, bytes_max=600)
    engine.join(4, "long", 9, 0, 0)
    for number in range(100):
        engine.step(number, number + 1, 0, 0, 0, [(4, 9)] if number == 0 else [])
    found = Reading(folder).engine()
    assert not [record for record in found if isinstance(record, Lost)]
    assert isinstance(found[1], State)
    (handle, name, context) = found[1].batch[0]
    assert (handle, name, context > 9) == (4, "long", True)


def test_a_new_start_of_the_engine_is_a_new_session(folder: Path) -> None:
    reading = Reading(folder)
    writer(folder).step(1, 2, 0, 0, 0)
    writer(folder).step(3, 4, 0, 0, 0)
    sessions = [record for record in reading.engine() if isinstance(record, Open)]
    assert [each.segment for each in sessions] == [0, 1]
    assert len({each.session for each in sessions}) == 2


def test_a_folder_that_is_not_there_yet_or_was_made_anew_is_followed_from_then_on(folder: Path) -> None:
    reading = Reading(folder)
    assert reading.engine() == []
    assert reading.follower.is_missing
    first = writer(folder)
    first.step(1, 2, 0, 0, 0)
    assert len(reading.engine()) == 3
    assert not reading.follower.is_missing
    shutil.rmtree(folder)
    assert reading.engine() == []
    writer(folder).step(3, 4, 0, 0, 0)
    found = reading.engine()
    assert found[0] == Lost("replaced")
    assert found[-1] == Step(3, 4, 0, 0, 0, ())


def test_a_line_that_is_not_whole_waits_and_is_torn_once_nothing_can_follow(folder: Path) -> None:
    writer(folder)
    reading = Reading(folder)
    reading.engine()
    path = folder / "engine-0.0.jsonl"
    with path.open("ab") as file:
        file.write(b'["step",1,2,0,')
        file.flush()
        assert reading.engine() == []
        file.write(b'0,0,[]]\n["step",3')
    assert reading.engine() == [Step(1, 2, 0, 0, 0, ())]
    writer(folder)
    assert reading.engine()[0] == Lost("torn")


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"[]",
        b"{}",
        b'["step"]',
        b'["step",1,2,0,0,0,[[1,2],[1,3]]]',
        b'["step",1,2,0,0,0,[[1]]]',
        b'["step",1,2,0,0,0,7]',
        b'["step",1,2.5,0,0,0,[]]',
        b'["step",-1,2,0,0,0,[]]',
        b'["step",1,99999999999999999999,0,0,0,[]]',
        b'["step",true,2,0,0,0,[]]',
        b'["step",1,3600000002,0,0,0,[]]',
        b'["step",1,2,9007199254740991,0,0,[]]',
        b'["step",1,2,0,0,0,[[1,9007199254740991]]]',
        b'["open",1,"engine-0","s",0,1,{"accelerators":100001}]',
        b'["join",1,"r",2,3]',
        b'["join",1,7,2,3,4]',
        b'["join",1,"' + b"x" * 600 + b'",2,3,4]',
        b'["leave",1,"vanished",2]',
        b'["state",[[1,2,3]]]',
        b'["finished","r","stop",1]',
        b'["close","now"]',
        b'["open",1,"engine-0","s",0,1,7]',
        b'["opened",1]',
        b"\xff\xfe",
    ],
)
def test_a_line_that_cannot_be_read_is_lost_and_nothing_else(line: bytes) -> None:
    records = list(Parser().records(line + b'\n["step",1,2,0,0,0,[]]'))
    assert records == [Lost("garbage"), Step(1, 2, 0, 0, 0, ())]


def test_another_version_of_the_format_is_passed_over_until_a_segment_of_ours() -> None:
    ours: Any = b'["open",1,"engine-0","s",1,5,{}]\n["step",1,2,0,0,0,[]]'
    foreign = b'["open",2,"engine-0","s",0,5,{}]\n["step",1,2,0,0,0,[]]\ngarbage\n'
    parser = Parser()
    assert list(parser.records(foreign)) == [Lost("version", detail="2")]
    assert parser.foreign == "2"
    assert [type(record) for record in parser.records(ours)] == [Open, Step]
    assert parser.foreign == ""


def test_a_link_or_what_is_no_file_is_not_read_and_the_reason_is_said(folder: Path) -> None:
    folder.mkdir()
    segment = folder / "engine-0.0.jsonl"
    segment.symlink_to("/dev/zero")
    reading = Reading(folder)
    assert reading.engine() == []
    assert str(segment) in reading.follower.failure
    segment.unlink()
    os.mkfifo(segment)
    assert reading.engine() == []
    assert reading.follower.failure == f"{segment} cannot be read: not a regular file"
    segment.unlink()
    writer(folder)
    assert len(reading.engine()) == 2
    assert reading.follower.failure == ""


def test_a_segment_that_may_not_be_read_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    writer(folder)
    reading = Reading(folder)
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        assert reading.engine() == []
    assert reading.follower.failure == f"{folder / 'engine-0.0.jsonl'} cannot be read: Permission denied"


def test_why_an_engine_tells_nothing_is_read(folder: Path) -> None:
    TelemetryWriter(folder, "engine-0", FACTS | {"off": "it streams its prompts"}).close()
    opened = Reading(folder).engine()[0]
    assert isinstance(opened, Open)
    assert opened.off == "it streams its prompts"


def test_a_line_without_an_end_takes_no_memory_without_one(folder: Path) -> None:
    writer(folder)
    reading = Reading(folder)
    reading.engine()
    with (folder / "engine-0.0.jsonl").open("ab") as file:
        file.write(b"x" * (2 * LINE_BYTES_MAX) + b'\n["step",1,2,0,0,0,[]]\n')
    found: list[Record] = []
    while True:
        found += reading.new(1 << 21).get("engine-0", [])
        if not reading.follower.has_more:
            break
    assert found == [Lost("long"), Step(1, 2, 0, 0, 0, ())]


def test_no_call_reads_more_than_it_may(folder: Path) -> None:
    engine, reading = writer(folder), Reading(folder)
    for number in range(3_000):
        engine.step(number, number + 1, 0, 0, 0)
    first = reading.new(8_192)["engine-0"]
    assert 10 < len(first) < 1_000
    rest = 0
    while reading.follower.has_more:
        rest += len(reading.new(8_192).get("engine-0", []))
    assert len(first) + rest == 3_002
