"""A power loss takes the last moments of a journal and nothing else, and the journal that is left is whole."""

import random
from pathlib import Path

import pytest

from ledger.disk import SECTOR_BYTES
from ledger.journal import Journal
from ledger.records import HEADER_BYTES, SNAPSHOT
from ledger.segments import read, segment_paths
from tests.simulation.disk import Machine, ProcessDisk

WRITER = Path("journal") / "w"
SEGMENT_BYTES = 1 << 15
INTERVAL_US = 10_000


class Clock:
    """Microseconds that pass when told to."""

    def __init__(self) -> None:
        self.us = 1_772_280_000_000_000

    def now_us(self) -> int:
        return self.us


def machine_of(dice: random.Random) -> Machine:
    return Machine(dice, lambda: 1.0, lambda process, operation: None)


def open_on(disk: ProcessDisk, clock: Clock) -> Journal:
    return Journal.open(
        WRITER, segment_bytes=SEGMENT_BYTES, snapshot=dict, disk=disk, now_us=clock.now_us, commits_itself=False
    )


@pytest.mark.parametrize("seed", range(30))
def test_at_most_what_came_within_the_interval_is_lost(seed: int) -> None:
    """Appends at random moments over twenty power losses, with the fsync thread looking every 10 ms."""
    dice = random.Random(seed)
    clock, machine = Clock(), machine_of(dice)
    for _ in range(20):
        disk = machine.process("gateway")
        journal = open_on(disk, clock)
        journal.commit()
        appended: list[tuple[int, int]] = [(clock.us, journal.tail_seq)]
        for _ in range(dice.randrange(60)):
            for _ in range(dice.randrange(4)):
                body = {"pad": "x" * dice.choice((10, 500, 3_000))}
                appended.append((clock.us, journal.append("usage", body)))
            clock.us += INTERVAL_US
            if dice.random() < 0.9:
                journal.commit()
            else:
                break
        disk.die()
        machine.lose_power()
        kept_seq = max(seq for at_us, seq in appended if at_us < clock.us - INTERVAL_US or seq == appended[0][1])
        again = machine.process("gateway")
        tail_seq = open_on(again, clock).tail_seq
        seqs = [record.seq for record in read(WRITER, disk=again)]
        again.die()
        assert seqs == list(range(1, tail_seq + 1))
        assert tail_seq >= kept_seq, f"records {tail_seq + 1} to {kept_seq} were older than the interval"


@pytest.mark.parametrize("records", [1, 3])
@pytest.mark.parametrize("lost_bytes", range(1, HEADER_BYTES))
def test_a_header_of_which_only_the_first_bytes_are_lost_is_a_torn_tail(
    tmp_path: Path, lost_bytes: int, records: int
) -> None:
    """The header stands across two sectors, and the first of them was not written: later records were, and are cut."""
    journal = Journal.open(tmp_path / "w", segment_bytes=1 << 16, snapshot=dict)
    while (journal._offset + lost_bytes) % SECTOR_BYTES:
        short_bytes = (-(journal._offset + lost_bytes)) % SECTOR_BYTES
        before = journal._offset
        journal.append("usage", {"pad": ""})
        fixed_bytes = journal._offset - before
        journal.append("usage", {"pad": "x" * ((short_bytes - 2 * fixed_bytes) % SECTOR_BYTES)})
    kept_seq, at = journal.tail_seq, journal._offset
    for _ in range(records):
        journal.append("usage", {"pad": "x" * 300})
    journal.close()
    path = segment_paths(tmp_path / "w")[-1]
    content = bytearray(path.read_bytes())
    content[at : at + lost_bytes] = bytes(lost_bytes)
    path.write_bytes(content)
    journal = Journal.open(tmp_path / "w", segment_bytes=1 << 16, snapshot=dict)
    assert (journal.tail_seq, journal.cut_bytes > 0) == (kept_seq, True)
    journal.append("usage", {})
    journal.close()
    assert [record.seq for record in read(tmp_path / "w")] == list(range(1, kept_seq + 2))


def test_a_snapshot_whose_record_was_lost_is_taken_away_with_its_segment(tmp_path: Path) -> None:
    """It may tell what that record would have said, and that has not happened."""
    counted = 0
    journal = Journal.open(tmp_path / "w", segment_bytes=1 << 13, snapshot=lambda: {"counted": counted})
    while len(segment_paths(tmp_path / "w")) < 3:
        counted += 1
        journal.append("usage", {"n": counted, "pad": "x" * 500})
    last_seq = journal.tail_seq
    journal.close()
    path = segment_paths(tmp_path / "w")[-1]
    head, record = list(read(tmp_path / "w"))[-2:]
    assert (head.kind, record.kind, record.seq) == (SNAPSHOT, "usage", last_seq)
    content = path.read_bytes()
    path.write_bytes(content[: record.offset] + bytes(len(content) - record.offset))
    journal = Journal.open(tmp_path / "w", segment_bytes=1 << 13, snapshot=dict)
    assert (journal.tail_seq, path.exists()) == (last_seq - 2, False)
    journal.close()
