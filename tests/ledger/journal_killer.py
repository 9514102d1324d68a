"""Kills the writer of a journal with -9 again and again, and looks each time whether all that it was told is there.

`python -m tests.ledger.journal_killer DIRECTORY KILLS SEED` prints what it saw as JSON, or ends with what was wrong.
Each writer is a child of its own, forked where everything is imported already, so that a kill costs milliseconds.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count, islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ledger.journal import Journal
from ledger.records import SNAPSHOT, Record, chained
from ledger.segments import read, replay_from_snapshot, segment_paths

SEGMENT_BYTES = 48 << 10
# How long a writer lives: from its first word, or one in so many from its start, so that kills fall into opening too.
LIFE_S_MAX = 0.012
NEWBORN_EVERY = 4
FIRST_WORD_S_MAX = 20.0
KEPT_SEGMENTS = 6
# One record in so many is larger than what the rest of a segment can hold, so that kills fall into rotations too.
LARGE_EVERY = 8
_TOLD = struct.Struct("<Q32s")


class Told(NamedTuple):
    """The last record of which `append` has returned, to a writer that may be dead by now."""

    seq: int
    sha256: bytes


@dataclass
class Seen:
    """What a series of kills met."""

    kills: int = 0
    records: int = 0
    rotations: int = 0
    torn: int = 0
    silent: int = 0


class Killer:
    """One journal, and the memory in which its writers leave word."""

    def __init__(self, directory: Path, seed: int) -> None:
        self._directory = directory
        self._dice = random.Random(seed)
        self._word = mmap.mmap(-1, 4096)
        self._last = 0
        self.seen = Seen()

    def kill(self) -> None:
        """One life of a writer, its death and the inspection of what it left."""
        self._word[:] = bytes(len(self._word))
        seed = self._dice.randrange(1 << 30)
        pid = os.fork()
        if pid == 0:
            self._write(random.Random(seed))
        if self._dice.randrange(NEWBORN_EVERY):
            deadline_s = time.monotonic() + FIRST_WORD_S_MAX
            while not self._told().seq and time.monotonic() < deadline_s:
                time.sleep(0.001)
        time.sleep(self._dice.random() * LIFE_S_MAX)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), f"the writer ended by itself: {status}"
        assert os.WTERMSIG(status) == signal.SIGKILL
        self._inspect()
        self.seen.kills += 1

    def _open(self, counted: list[int]) -> Journal:
        return Journal.open(
            self._directory,
            segment_bytes=SEGMENT_BYTES,
            snapshot=lambda: {"counted": counted[0]},
            commits_itself=os.getpid() != _PARENT,
        )

    def _write(self, dice: random.Random) -> NoReturn:
        """Append until killed; what is counted changes before its record is written, as the book does."""
        counted = [self._last]
        journal = self._open(counted)
        for turn in count():
            counted[0] += 1
            size_bytes = 4_000 if dice.randrange(LARGE_EVERY) == 0 else dice.randrange(600)
            seq = journal.append("usage", {"n": counted[0], "pad": "x" * size_bytes})
            # In turns, and the seq last: one of the two is always whole, and it is the later one.
            slot = turn % 2 * 64
            self._word[slot + 8 : slot + 40] = journal._tail_sha256
            self._word[slot : slot + 8] = seq.to_bytes(8, "little")
        raise AssertionError("unreachable")

    def _told(self) -> Told:
        told = [Told(*_TOLD.unpack_from(self._word, slot)) for slot in (0, 64)]
        return max(told)

    def _inspect(self) -> None:
        """Open the journal again: every record that was told is there, once, in one chain."""
        told = self._told()
        self.seen.silent += told.seq == 0
        journal = self._open([self._last])
        self.seen.torn += journal.cut_bytes > 0
        tail_seq = journal.tail_seq
        journal.close()
        records = list(read(self._directory))
        assert records[-1].seq == tail_seq, f"the chain ends with {records[-1].seq}, the writer goes on at {tail_seq}"
        assert tail_seq >= told.seq, f"record {told.seq} was acknowledged, the journal ends with {tail_seq}"
        by_seq = {record.seq: record for record in records}
        assert not told.seq or by_seq[told.seq].sha256 == told.sha256, f"record {told.seq} is another one"
        _check_chain(records)
        self._check_count(records)
        self.seen.records = tail_seq
        for path in segment_paths(self._directory)[:-KEPT_SEGMENTS]:
            path.unlink()
            self.seen.rotations += 1

    def _check_count(self, records: list[Record]) -> None:
        """What was counted is what was recorded: 1, 2, 3 …, and a restart goes on with the next number."""
        numbers = list(_numbers(records))
        assert all(after == before + 1 for before, after in pairwise(numbers)), "a record is lost or doubled"
        replayed = replay_from_snapshot(self._directory)
        (head,) = islice(replayed, 1)
        assert head.kind == SNAPSHOT
        counted = max([json.loads(head.payload)["counted"], *_numbers(list(replayed))])
        assert counted == (numbers[-1] if numbers else 0), "the snapshot counts a record that is not there"
        self._last = counted


def _numbers(records: list[Record]) -> Iterator[int]:
    for record in records:
        if record.kind == "usage":
            yield json.loads(record.payload)["n"]


def _check_chain(records: list[Record]) -> None:
    for before, after in pairwise(records):
        assert after.seq == before.seq + 1, f"after record {before.seq} comes {after.seq}"
        assert chained(before.sha256, after.payload) == after.sha256, f"record {after.seq} stands unbound"


def main(arguments: list[str]) -> dict[str, Any]:
    """Kill so many writers of one journal, one after the other."""
    directory, kills, seed = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    killer = Killer(directory, seed)
    for _ in range(kills):
        killer.kill()
    return asdict(killer.seen)


_PARENT = os.getpid()

if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1:])) + "\n")
