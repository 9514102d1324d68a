"""The simulated disk does what the real one does, and a power loss takes from it what no sync had reached."""

import errno
import random
from pathlib import Path
from typing import Any

import pytest

from ledger.disk import SYSTEM, Disk
from ledger.journal import Journal
from ledger.segments import Cursor, read
from tests.simulation.disk import PAGE_BYTES, Machine
from tests.simulation.faults import Killed

ROOT = Path("journal")
FILE = ROOT / "a"
SIZE_BYTES = 4 * PAGE_BYTES


def machine_of(seed: int) -> Machine:
    return Machine(random.Random(seed), lambda: 1.0, lambda process, operation: None)


def told(disk: Disk, root: Path) -> list[Any]:
    """What a series of operations answers, the errors by their numbers."""
    said: list[Any] = []
    disk.make_directory(root)
    lock = disk.lock(root)
    with pytest.raises(BlockingIOError):
        disk.lock(root)
    fd = disk.create(root / "a")
    said.append(disk.size_bytes(fd))
    disk.allocate(fd, SIZE_BYTES)
    pages = disk.map(fd, SIZE_BYTES)
    pages[5_000:5_003] = b"abc"
    said += [pages[4_999:5_005], disk.read(fd, 10, 4_998), disk.read(fd, 10, SIZE_BYTES - 3), disk.read(fd, 1, 1 << 20)]
    pages.close()
    disk.truncate(fd, 5_001)
    said += [disk.size_bytes(fd), disk.status(root / "a").size_bytes]
    disk.allocate(fd, 5_010)
    said.append(disk.read(fd, 20, 4_995))
    disk.sync(fd)
    disk.rename(root / "a", root / "b")
    disk.sync_directory(root)
    said += [disk.names(root), disk.directories(root.parent)[0].name]
    for broken in (lambda: disk.open(root / "a"), lambda: disk.status(root / "a"), lambda: disk.names(root / "none")):
        with pytest.raises(OSError) as error:
            broken()
        said.append(error.value.errno)
    reader = disk.open(root / "b")
    disk.unlink(root / "b")
    disk.unlink(root / "b")
    said += [disk.names(root), disk.read(reader, 3, 5_000), disk.directories(root / "none")]
    for each in (fd, reader, lock):
        disk.close(each)
    disk.close(disk.lock(root))
    return said


def test_it_answers_as_the_system_does(tmp_path: Path) -> None:
    assert told(machine_of(1).process("p"), ROOT / "w") == told(SYSTEM, tmp_path / "journal" / "w")


def test_what_was_synced_survives_and_of_the_rest_each_page_for_itself() -> None:
    seen = set()
    for seed in range(200):
        machine = machine_of(seed)
        disk = machine.process("p")
        disk.make_directory(ROOT)
        fd = disk.create(FILE)
        disk.allocate(fd, SIZE_BYTES)
        pages = disk.map(fd, SIZE_BYTES)
        pages[0:PAGE_BYTES] = b"s" * PAGE_BYTES
        disk.sync(fd)
        disk.sync_directory(ROOT)
        pages[PAGE_BYTES:SIZE_BYTES] = b"u" * 3 * PAGE_BYTES
        disk.die()
        machine.lose_power()
        left = bytes(machine.find(FILE).cache)
        assert left[:PAGE_BYTES] == b"s" * PAGE_BYTES
        assert len(left) == SIZE_BYTES
        shape = tuple(
            len(set(left[at : at + PAGE_BYTES])) + left[at] * 2 for at in range(PAGE_BYTES, SIZE_BYTES, PAGE_BYTES)
        )
        seen.add(shape)
    assert len(seen) > 20, "whole, lost and torn pages in every combination"


def test_a_name_that_was_not_synced_may_vanish_or_come_back() -> None:
    left = set()
    for seed in range(100):
        machine = machine_of(seed)
        disk = machine.process("p")
        disk.make_directory(ROOT)
        for name in ("kept", "unlinked"):
            disk.create(ROOT / name)
        disk.sync_directory(ROOT)
        disk.create(ROOT / "made")
        disk.unlink(ROOT / "unlinked")
        disk.die()
        machine.lose_power()
        left.add(tuple(sorted(machine.process("q").names(ROOT))))
    assert left == {("kept",), ("kept", "made"), ("kept", "unlinked"), ("kept", "made", "unlinked")}


def test_a_failed_sync_takes_pages_for_written_and_tells_everyone_once() -> None:
    struck: list[str] = []

    def strike(process: str, operation: str) -> None:
        if operation == "sync" and not struck:
            struck.append(process)
            raise OSError(errno.EIO, "failed")

    kept = 0
    for seed in range(50):
        struck.clear()
        machine = Machine(random.Random(seed), lambda: 1.0, strike)
        disk = machine.process("p")
        disk.make_directory(ROOT)
        fd, other = disk.create(FILE), disk.open(FILE)
        disk.allocate(fd, PAGE_BYTES)
        disk.map(fd, PAGE_BYTES)[0:3] = b"abc"
        for each in (fd, other):
            with pytest.raises(OSError):
                disk.sync(each)
        disk.sync(fd)
        disk.sync_directory(ROOT)
        machine.lose_power()
        kept += machine.find(FILE).cache.startswith(b"abc")
    assert 0 < kept < 50


def test_the_dead_do_nothing_more_and_hold_no_lock() -> None:
    machine = machine_of(1)
    disk = machine.process("p")
    disk.make_directory(ROOT)
    disk.lock(ROOT)
    disk.die()
    with pytest.raises(Killed):
        disk.names(ROOT)
    machine.process("q").lock(ROOT)


def test_a_full_disk_allocates_nothing() -> None:
    machine = machine_of(1)
    machine.capacity_bytes = PAGE_BYTES
    disk = machine.process("p")
    disk.make_directory(ROOT)
    fd = disk.create(FILE)
    with pytest.raises(OSError) as error:
        disk.allocate(fd, SIZE_BYTES)
    assert (error.value.errno, disk.size_bytes(fd)) == (errno.ENOSPC, 0)


@pytest.mark.parametrize("seed", range(20))
def test_what_a_failed_fsync_left_reaches_the_medium_before_who_was_not_told_of_it_ships_it(seed: int) -> None:
    machine = machine_of(seed)
    gateway = machine.process("gateway")
    journal = Journal.open(ROOT / "w", segment_bytes=1 << 20, snapshot=dict, disk=gateway, commits_itself=False)
    journal.commit()
    for number in range(50):
        journal.append("usage", {"number": number, "filling": "x" * 500})
    for file in machine.files:
        machine.sync_badly(file)
        file.errors += 1
    gateway.die()
    cursor = Cursor(ROOT / "w", disk=machine.process("ledger"))
    shipped = cursor.take(100, 1 << 20)
    assert len(shipped) > 50
    cursor.sync()
    machine.evict()
    assert list(read(ROOT / "w", disk=machine.process("auditor"))) == shipped
