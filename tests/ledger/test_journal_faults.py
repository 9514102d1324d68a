"""A disk that fills up or fails: what the journal took is not lost, and what it cannot keep it does not take."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledger.disk import SystemDisk
from ledger.journal import Journal, JournalFailed, JournalFull
from ledger.segments import read, segment_paths

BODY = {"pad": "x" * 900}
WAIT_S = 20

# Appends until the file behind its mapping is cut off under it.
CUT_OFF = """
import os, sys
from pathlib import Path
from ledger.journal import Journal
from ledger.segments import segment_paths
journal = Journal.open(Path(sys.argv[1]), segment_bytes=1 << 16, snapshot=dict)
for n in range(10):
    journal.append("usage", {"n": n, "pad": "x" * 900})
journal.sync()
print(journal.tail_seq, flush=True)
os.truncate(segment_paths(journal.directory)[-1], 8192)
while True:
    journal.append("usage", {"pad": "x" * 900})
"""


class FaultyDisk(SystemDisk):
    """A disk whose operations fail with the error number that stands for them in `faults`."""

    def __init__(self) -> None:
        self.faults: dict[str, int] = {}

    def __getattribute__(self, name: str) -> Any:
        number = object.__getattribute__(self, "__dict__").get("faults", {}).get(name)
        if number is not None:
            raise OSError(number, os.strerror(number))
        return object.__getattribute__(self, name)


def fill(journal: Journal) -> None:
    """Appends more than two segments of these tests hold."""
    for _ in range(400):
        journal.append("usage", BODY)


def eventually(condition: Callable[[], bool]) -> bool:
    deadline_s = time.monotonic() + WAIT_S
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return condition()


def seqs(directory: Path) -> list[int]:
    return [record.seq for record in read(directory)]


@pytest.mark.parametrize("operation", ["create", "allocate"])
def test_a_full_disk_denies_new_holds_and_goes_on_when_there_is_room_again(
    make_journal: Callable[..., Journal], operation: str
) -> None:
    disk = FaultyDisk()
    journal = make_journal(disk=disk)
    assert eventually(lambda: journal.room_for(10))
    disk.faults[operation] = errno.ENOSPC
    with pytest.raises(JournalFull, match="free disk space"):
        fill(journal)
    tail_seq = journal.tail_seq
    assert not journal.room_for(0)
    with pytest.raises(JournalFull):
        fill(journal)
    disk.faults.clear()
    assert eventually(lambda: journal.room_for(10)), "without a restart"
    assert journal.append("usage", BODY) == tail_seq + 2, "behind the snapshot of a new segment"
    assert seqs(journal.directory) == list(range(1, tail_seq + 3))


def test_a_disk_without_room_for_a_name_leaves_the_journal_as_it_was(make_journal: Callable[..., Journal]) -> None:
    disk = FaultyDisk()
    journal = make_journal(disk=disk)
    disk.faults["rename"] = errno.ENOSPC
    with pytest.raises(JournalFull):
        fill(journal)
    tail_seq = journal.tail_seq
    assert len(segment_paths(journal.directory)) == 1
    disk.faults.clear()
    journal.append("usage", BODY)
    assert seqs(journal.directory) == list(range(1, tail_seq + 3))


@pytest.mark.parametrize("operation", ["sync", "sync_directory", "rename", "map"])
def test_a_disk_that_fails_takes_nothing_more_until_a_restart_which_finds_everything(
    make_journal: Callable[..., Journal], operation: str
) -> None:
    disk = FaultyDisk()
    journal = make_journal(disk=disk)
    journal.append("usage", BODY)
    journal.sync()
    disk.faults[operation] = errno.EIO
    with pytest.raises(JournalFailed, match="Input/output error; nothing more is taken until a restart"):
        fill_and_sync(journal)
    tail_seq = journal.tail_seq
    with pytest.raises(JournalFailed):
        journal.append("usage", {})
    with pytest.raises(JournalFailed):
        journal.sync()
    assert not journal.room_for(0)
    disk.faults.clear()
    with pytest.raises(JournalFailed, match="nothing more is taken"):
        journal.append("usage", {})
    with pytest.raises(JournalFailed):
        journal.close()
    again = make_journal()
    assert again.tail_seq == tail_seq
    again.append("usage", BODY)
    assert seqs(again.directory) == list(range(1, again.tail_seq + 1))


def fill_and_sync(journal: Journal) -> None:
    fill(journal)
    journal.sync()


@pytest.mark.parametrize("operation", ["make_directory", "lock", "names", "open_writable", "open", "map"])
def test_a_journal_that_cannot_be_opened_says_why_and_gives_the_lock_back(tmp_path: Path, operation: str) -> None:
    Journal.open(tmp_path / "w", snapshot=dict, segment_bytes=1 << 16).close()
    disk = FaultyDisk()
    disk.faults[operation] = errno.EIO
    with pytest.raises(JournalFailed, match="Input/output error; mend the disk, then start again"):
        Journal.open(tmp_path / "w", snapshot=dict, segment_bytes=1 << 16, disk=disk)
    disk.faults.clear()
    journal = Journal.open(tmp_path / "w", snapshot=dict, segment_bytes=1 << 16, disk=disk)
    assert journal.append("usage", {}) == 2
    journal.close()


def test_a_new_journal_on_a_full_disk_is_refused(tmp_path: Path) -> None:
    disk = FaultyDisk()
    disk.faults["allocate"] = errno.ENOSPC
    with pytest.raises(JournalFull, match="free disk space"):
        Journal.open(tmp_path / "w", snapshot=dict, disk=disk)
    disk.faults.clear()
    Journal.open(tmp_path / "w", snapshot=dict, segment_bytes=1 << 16, disk=disk).close()


def test_a_full_disk_at_a_restart_keeps_what_is_there_and_takes_what_still_fits(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "w", snapshot=dict, segment_bytes=1 << 16)
    fill(journal)
    tail_seq = journal.tail_seq
    journal.close()
    disk = FaultyDisk()
    disk.faults["allocate"] = errno.ENOSPC
    journal = Journal.open(tmp_path / "w", snapshot=dict, segment_bytes=1 << 16, disk=disk)
    assert not journal.room_for(10)
    assert seqs(journal.directory) == list(range(1, tail_seq + 1))
    disk.faults.clear()
    assert eventually(lambda: journal.room_for(2))
    fill(journal)
    journal.close()


def test_blocks_stand_behind_every_byte_that_can_be_stored_into(make_journal: Callable[..., Journal]) -> None:
    """A store into a hole of a full disk would be SIGBUS, so there are no holes."""
    journal = make_journal(segment_bytes=1 << 20)
    assert eventually(lambda: journal.room_for(1))
    for path in (segment_paths(journal.directory)[0], journal.directory.with_name("gateway-0.spare")):
        found = path.stat()
        assert found.st_size == 1 << 20
        assert found.st_blocks * 512 >= found.st_size


def test_a_segment_cut_off_under_its_writer_ends_the_writer_and_loses_nothing_before_the_cut(tmp_path: Path) -> None:
    """A store beyond the end of a file is SIGBUS: the process ends there, as by a kill, and the next one goes on."""
    command = [sys.executable, "-c", CUT_OFF, str(tmp_path / "w")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path.cwd(), timeout=60)
    assert done.returncode == -signal.SIGBUS
    kept = seqs(tmp_path / "w")
    assert kept == list(range(1, len(kept) + 1))
    assert 5 < len(kept) <= int(done.stdout)
    journal = Journal.open(tmp_path / "w", snapshot=dict, segment_bytes=1 << 16)
    assert journal.append("usage", BODY) == len(kept) + 1
    journal.close()


def test_a_clock_that_goes_back_changes_times_and_nothing_else(make_journal: Callable[..., Journal]) -> None:
    clock = iter(range(2_000_000_000_000_000, 0, -60_000_000))
    journal = make_journal(now_us=lambda: next(clock))
    fill(journal)
    records = list(read(journal.directory))
    assert [record.seq for record in records] == list(range(1, journal.tail_seq + 1))
    assert {record.kind for record in records} == {"snapshot", "usage"}
    times = [json.loads(record.payload)["ts_us"] for record in records if record.kind == "usage"]
    assert times == sorted(times, reverse=True)


def test_a_short_read_is_not_the_end_of_a_file(
    make_journal: Callable[..., Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = make_journal()
    fill(journal)
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: whole(fd, min(size, 5_000), offset))
    assert seqs(journal.directory) == list(range(1, journal.tail_seq + 1))
    journal.close()
    again = make_journal()
    assert (again.tail_seq, again.cut_bytes) == (journal.tail_seq, 0)
