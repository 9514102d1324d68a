"""The journal keeps what it acknowledged, in order, and knows when it cannot."""

import hashlib
import json
import threading
import time

import pytest

from domain.charges import Charge
from domain.ids import uuid7
from ledger.disk import SystemDisk
from ledger.journal import CorruptJournal, Journal, JournalFailed, JournalFull, JournalLocked
from ledger.records import GENESIS_SHA256, HEADER_BYTES
from ledger.segments import read, replay_from_snapshot, segment_paths


class QuietDisk(SystemDisk):
    """A disk that says at once that it has synced."""

    def sync(self, fd):
        pass

    def sync_directory(self, directory):
        pass


def open_quiet(directory):
    """A journal that does not wait for the disk, for tests that open hundreds."""
    return Journal.open(directory, segment_bytes=1 << 13, snapshot=dict, disk=QuietDisk())


def fill(journal, body):
    """Appends more than any journal of these tests may hold."""
    for _ in range(1 << 10):
        journal.append("usage", body)


def test_records_come_back_in_order_each_bound_to_the_one_before(make_journal, tmp_path):
    journal = make_journal()
    seqs = [journal.append("usage", {"n": n}) for n in range(50)]
    records = list(read(tmp_path / "journal" / "gateway-0"))
    assert seqs == list(range(2, 52))
    assert [record.seq for record in records] == list(range(1, 52))
    assert [json.loads(record.payload)["n"] for record in records[1:]] == list(range(50))
    previous = GENESIS_SHA256
    for record in records:
        assert hashlib.sha256(previous + record.payload).digest() == record.sha256
        previous = record.sha256


def test_a_record_keeps_the_callers_ids_and_gets_what_it_lacks(make_journal):
    journal = make_journal()
    event_id = uuid7()
    journal.append("control", {"event_id": event_id, "ts_us": 7})
    journal.append("control", {})
    given, made = [json.loads(record.payload) for record in read(journal.directory, 1)]
    assert (given["event_id"], given["ts_us"], given["kind"], given["seq"]) == (event_id, 7, "control", 2)
    assert len(made["event_id"]) == 36
    assert abs(made["ts_us"] / 1e6 - time.time()) < 5


def test_charges_are_written_as_arrays(make_journal):
    journal = make_journal()
    journal.append("usage", {"charges": (Charge("b", "c", 60, "tokens", 5),)})
    (record,) = read(journal.directory, 1)
    assert json.loads(record.payload)["charges"] == [["b", "c", 60, "tokens", 5]]


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("usage", {"seq": 1}),
        ("usage", {"kind": "x"}),
        ('us"age', {}),
        ("Usage", {}),
        ("usage", {"pad": "x" * (1 << 20)}),
    ],
)
def test_what_cannot_be_a_record_is_refused_and_changes_nothing(make_journal, kind, body):
    journal = make_journal()
    with pytest.raises(ValueError):
        journal.append(kind, body)
    assert journal.append("usage", {}) == 2


def test_the_directory_holds_nothing_but_segments(make_journal):
    journal = make_journal()
    for _ in range(400):
        journal.append("usage", {"pad": "x" * 900})
    journal.sync()
    assert {path.suffix for path in journal.directory.iterdir()} == {".seg"}
    assert len(segment_paths(journal.directory)) > 2


def test_two_writers_cannot_have_one_directory(make_journal):
    journal = make_journal()
    with pytest.raises(JournalLocked, match="another process"):
        Journal.open(journal.directory, snapshot=dict)
    assert journal.append("usage", {}) == 2


def test_a_restart_goes_on_with_seq_and_chain(tmp_path):
    for first in (2, 5, 8):
        journal = open_quiet(tmp_path / "w")
        assert [journal.append("usage", {}) for _ in range(3)] == [first, first + 1, first + 2]
        assert journal.cut_bytes == 0
        journal.close()
    assert [record.seq for record in read(tmp_path / "w")] == list(range(1, 11))


@pytest.mark.parametrize("cut", ["truncated", "never written"])
def test_a_tail_torn_at_any_byte_is_cut_and_all_before_it_kept(tmp_path, cut):
    journal = open_quiet(tmp_path / "w")
    for n in range(3):
        journal.append("usage", {"n": n})
    journal.close()
    last = list(read(tmp_path / "w"))[-1]
    path = tmp_path / "w" / last.segment
    whole = path.read_bytes()
    end = last.offset + HEADER_BYTES + len(last.payload)
    for at in range(last.offset, end):
        path.write_bytes(whole[:at] if cut == "truncated" else whole[:at] + bytes(len(whole) - at))
        assert [record.seq for record in read(tmp_path / "w")] == [1, 2, 3]
        journal = open_quiet(tmp_path / "w")
        # A final NUL of the length or the hash looks the same written and not.
        assert journal.cut_bytes <= at - last.offset
        assert journal.append("usage", {"n": "again"}) == 4
        journal.close()
        assert [record.seq for record in read(tmp_path / "w")] == [1, 2, 3, 4]


@pytest.mark.parametrize("nth", [2, 4])
def test_a_changed_byte_is_damage_not_a_torn_tail(tmp_path, nth):
    journal = open_quiet(tmp_path / "w")
    for n in range(4):
        journal.append("usage", {"n": n})
    journal.close()
    record = list(read(tmp_path / "w"))[nth]
    path = tmp_path / "w" / record.segment
    whole = path.read_bytes()
    for at in range(record.offset, record.offset + HEADER_BYTES + len(record.payload)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x11]) + whole[at + 1 :])
        with pytest.raises(CorruptJournal) as read_error:
            list(read(tmp_path / "w"))
        with pytest.raises(CorruptJournal) as open_error:
            open_quiet(tmp_path / "w")
        for error in (read_error.value, open_error.value):
            assert (error.file, error.offset, error.seq) == (path, record.offset, nth + 1)


def test_a_hole_left_by_a_power_loss_is_cut(tmp_path):
    journal = open_quiet(tmp_path / "w")
    for n in range(4):
        journal.append("usage", {"pad": "x" * 600, "n": n})
    journal.close()
    records = list(read(tmp_path / "w"))
    path = tmp_path / "w" / records[0].segment
    whole = bytearray(path.read_bytes())
    lost_at = records[2].offset + 200
    whole[lost_at : lost_at + 512] = bytes(512)
    path.write_bytes(whole)
    journal = open_quiet(tmp_path / "w")
    assert (journal.tail_seq, journal.cut_bytes > 0) == (2, True)
    journal.close()


def test_every_segment_opens_with_a_snapshot_and_the_chain_goes_on(make_journal):
    opened = iter(range(100))
    journal = make_journal(snapshot=lambda: {"state": next(opened)})
    for _ in range(600):
        journal.append("usage", {"pad": "x" * 900})
    heads = [record for record in read(journal.directory) if record.offset == 0]
    assert len(heads) == len(segment_paths(journal.directory)) > 3
    assert [head.kind for head in heads] == ["snapshot"] * len(heads)
    assert [json.loads(head.payload)["state"] for head in heads] == list(range(len(heads)))
    assert [int(head.segment[:20]) for head in heads] == [head.seq for head in heads]


def test_replay_begins_at_the_last_snapshot(make_journal):
    journal = make_journal()
    for _ in range(300):
        journal.append("usage", {"pad": "x" * 900})
    records = list(replay_from_snapshot(journal.directory))
    assert records[0].kind == "snapshot"
    assert [record.seq for record in records] == list(range(records[0].seq, journal.tail_seq + 1))
    assert records[0].seq == int(segment_paths(journal.directory)[-1].stem)


def test_a_rotation_cut_before_its_snapshot_is_undone(tmp_path):
    journal = open_quiet(tmp_path / "w")
    journal.append("usage", {})
    journal.close()
    (tmp_path / "w" / f"{3:020d}.seg").write_bytes(bytes(1 << 13))
    assert [record.seq for record in replay_from_snapshot(tmp_path / "w")] == [1, 2]
    journal = open_quiet(tmp_path / "w")
    assert journal.append("usage", {}) == 3
    journal.close()
    assert [record.seq for record in read(tmp_path / "w")] == [1, 2, 3]


def test_with_the_disk_full_new_holds_are_denied_and_every_open_one_still_settles(make_journal):
    journal = make_journal(segment_bytes=1 << 19, bytes_max=3 << 19)
    largest = {"pad": "x" * (8192 - 200)}
    open_holds = 0
    while journal.room_for(open_holds):
        journal.append("hold", largest)
        open_holds += 1
        journal.sync()
    assert open_holds > 50
    for _ in range(open_holds):
        journal.append("usage", largest)
    assert not journal.room_for(1 << 10)
    with pytest.raises(JournalFull, match="free disk space"):
        fill(journal, largest)
    kinds = [record.kind for record in read(journal.directory)]
    assert kinds.count("hold") == open_holds
    assert kinds.count("usage") >= open_holds


def test_room_comes_back_when_old_segments_go(make_journal):
    journal = make_journal(bytes_max=3 << 17)
    with pytest.raises(JournalFull):
        fill(journal, {"pad": "x" * 900})
    assert not journal.room_for(1)
    segment_paths(journal.directory)[0].unlink()
    deadline = time.monotonic() + 10
    while not journal.room_for(1) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert journal.room_for(1)
    assert journal.append("usage", {"pad": "x" * 900}) == journal.tail_seq


def test_appends_are_on_disk_within_the_interval_and_share_their_fsyncs(make_journal):
    journal = make_journal()
    journal.sync()
    before = journal.fsyncs_total
    for _ in range(500):
        journal.append("usage", {})
    deadline = time.monotonic() + 5
    while journal.fsyncs_total == before and time.monotonic() < deadline:
        time.sleep(0.001)
    assert 1 <= journal.fsyncs_total - before < 100


def test_threads_may_append_together(make_journal):
    journal = make_journal()
    threads = [
        threading.Thread(target=lambda: [journal.append("usage", {"pad": "x" * 300}) for _ in range(300)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(read(journal.directory))) == journal.tail_seq >= 1201


def test_a_closed_journal_takes_nothing_and_can_be_opened_again(make_journal):
    journal = make_journal()
    journal.close()
    with pytest.raises(JournalFailed, match="closed"):
        journal.append("usage", {})
    assert make_journal().append("usage", {}) == 2
