"""Each org's usage rows are numbered without gaps, whatever the journal refuses and whenever its writer dies."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger.book import Book
from ledger.journal import Journal, JournalFull
from ledger.recovery import rebuild
from ledger.segments import read, replay_from_snapshot, segment_paths
from ledger.sequences import Sequences

SEGMENT_BYTES = 1 << 14


class Writer:
    """A writer of usage rows that can die and be opened again."""

    def __init__(self, folder, orgs_max=100, **options):
        self.folder, self.orgs_max = folder, orgs_max
        self.options = {"segment_bytes": SEGMENT_BYTES, **options}
        self.open()

    def open(self):
        self.sequences = Sequences(self.orgs_max)
        is_new = not self.folder.exists()
        self.journal = Journal.open(
            self.folder, snapshot=lambda: {"org_seqs": self.sequences.snapshot()}, **self.options
        )
        if not is_new:
            rebuild(Book([], 0), replay_from_snapshot(self.folder), 0, self.sequences)

    def write(self, org, members=b""):
        row = {"status": "ok", "org": org}
        self.sequences.append(self.journal, org, row, members)
        return row.get("org_seq", 0)

    def numbers(self):
        """What is in the journal: the numbers of each org's rows in order."""
        found = {}
        for record in read(self.folder):
            if record.kind == "usage":
                body = json.loads(record.payload)
                found.setdefault(body["org"], []).append(body.get("org_seq", 0))
        return found


@given(st.lists(st.sampled_from(["acme", "globex", "initech", "die"]), max_size=200))
@settings(max_examples=30, deadline=None)
def test_numbers_have_no_gaps_over_segments_and_restarts(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("journal") / "gateway-0"
    writer = Writer(folder)
    written = {}
    for step in steps:
        if step == "die":
            writer.journal.close()
            writer.open()
        else:
            written[step] = writer.write(step, members=b'"padding":"%b"' % (b"x" * 500))
    writer.journal.close()
    assert written == {org: len(numbers) for org, numbers in writer.numbers().items()}
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in writer.numbers().values())


def test_a_snapshot_counts_the_rows_before_it_and_not_the_one_behind_it(tmp_path):
    writer = Writer(tmp_path / "gateway-0")
    while len(segment_paths(writer.folder)) < 4:
        writer.write("acme", members=b'"padding":"%b"' % (b"x" * 500))
    writer.journal.close()
    rows, snapshots = 0, 0
    for record in read(writer.folder):
        if record.kind == "snapshot":
            snapshots += 1
            assert json.loads(record.payload)["org_seqs"] == ({"acme": rows} if rows else {})
        else:
            rows += 1
    assert snapshots == 4


def test_a_row_that_the_journal_refuses_takes_no_number(tmp_path):
    writer = Writer(tmp_path / "gateway-0", bytes_max=2 * SEGMENT_BYTES)
    written = []

    def write_until_full():
        while True:
            written.append(writer.write("acme", members=b'"padding":"%b"' % (b"x" * 500)))

    with pytest.raises(JournalFull):
        write_until_full()
    assert written == list(range(1, len(written) + 1))
    assert writer.sequences.snapshot() == {"acme": len(written)}
    writer.journal.close()
    assert writer.numbers() == {"acme": written}


def test_orgs_over_the_bound_stay_without_numbers_and_take_none_from_others(tmp_path):
    writer = Writer(tmp_path / "gateway-0", orgs_max=2)
    assert [writer.write(org) for org in ("a", "b", "c", "a", "c", "b")] == [1, 1, 0, 2, 0, 2]
    writer.journal.close()
    writer.open()
    assert [writer.write(org) for org in ("c", "a")] == [0, 3]
    writer.journal.close()


def test_a_journal_from_before_there_were_numbers_begins_at_one(tmp_path):
    journal = Journal.open(tmp_path / "gateway-0", segment_bytes=SEGMENT_BYTES, snapshot=lambda: {"spent": []})
    journal.append("usage", {"status": "ok", "org": "acme"})
    journal.close()
    writer = Writer(tmp_path / "gateway-0")
    assert writer.write("acme") == 1
    writer.journal.close()
    assert writer.numbers() == {"acme": [0, 1]}
