"""Segments are read in order, also while they are being written, and never past what is missing."""

import os

import pytest

from ledger.records import CorruptJournal, envelope
from ledger.segments import Cursor, read, segment_path, segment_paths


def test_a_cursor_follows_the_writer_through_rotations(make_journal):
    journal = make_journal()
    cursor = Cursor(journal.directory)
    seqs = []
    for n in range(700):
        journal.append("usage", {"pad": "x" * 900})
        if n % 7 == 0:
            seqs += [record.seq for record in cursor.take(10_000, 1 << 30)]
    seqs += [record.seq for record in cursor.take(10_000, 1 << 30)]
    assert seqs == list(range(1, journal.tail_seq + 1))
    assert cursor.take(10, 1 << 20) == []
    assert len(segment_paths(journal.directory)) > 3
    cursor.close()


def test_a_cursor_waits_for_a_journal_that_does_not_exist_yet(make_journal, tmp_path):
    cursor = Cursor(tmp_path / "journal" / "gateway-0")
    assert cursor.take(10, 1 << 20) == []
    make_journal()
    assert [record.kind for record in cursor.take(10, 1 << 20)] == ["snapshot"]
    cursor.close()


def test_take_is_bounded_in_records_and_bytes(make_journal):
    journal = make_journal()
    for _ in range(20):
        journal.append("usage", {"pad": "x" * 900})
    cursor = Cursor(journal.directory)
    assert len(cursor.take(5, 1 << 20)) == 5
    assert len(cursor.take(1, 1)) == 1
    assert [record.seq for record in cursor.take(100, 1 << 20)] == list(range(7, 22))
    cursor.close()


def test_a_cursor_stands_where_another_one_stood(make_journal):
    journal = make_journal()
    for _ in range(300):
        journal.append("usage", {"pad": "x" * 900})
    cursor = Cursor(journal.directory)
    cursor.take(200, 1 << 30)
    again = Cursor.at(journal.directory, cursor.place())
    assert again.take(500, 1 << 30) == cursor.take(500, 1 << 30)
    again.close()
    cursor.close()


def test_reading_can_begin_behind_any_record(make_journal):
    journal = make_journal()
    for _ in range(300):
        journal.append("usage", {"pad": "x" * 900})
    for after in (0, 1, 2, 150, journal.tail_seq - 1, journal.tail_seq):
        assert [record.seq for record in read(journal.directory, after)] == list(range(after + 1, journal.tail_seq + 1))


def test_half_a_record_is_not_there_yet(make_journal):
    journal = make_journal()
    journal.append("usage", {"n": 1})
    cursor = Cursor(journal.directory)
    assert len(cursor.take(10, 1 << 20)) == 2
    path = journal.directory / cursor.segment.name
    before = path.read_bytes()
    journal.append("usage", {"n": 2})
    whole = path.read_bytes()
    for end in (cursor.offset + 2, cursor.offset + 20, cursor.offset + 60):
        path.write_bytes(whole[:end] + before[end:])
        assert cursor.take(10, 1 << 20) == []
    path.write_bytes(whole)
    assert [record.seq for record in cursor.take(10, 1 << 20)] == [3]
    cursor.close()


def test_a_missing_segment_is_named_with_the_first_record_that_is_gone(make_journal):
    journal = make_journal()
    for _ in range(600):
        journal.append("usage", {"pad": "x" * 900})
    journal.sync()
    gone = segment_paths(journal.directory)[1]
    gone.unlink()
    with pytest.raises(CorruptJournal, match="is missing") as error:
        list(read(journal.directory))
    assert error.value.seq == int(gone.stem)


def test_old_segments_can_go_without_breaking_the_rest(make_journal):
    journal = make_journal()
    for _ in range(600):
        journal.append("usage", {"pad": "x" * 900})
    journal.sync()
    oldest, following = segment_paths(journal.directory)[:2]
    oldest.unlink()
    assert [record.seq for record in read(journal.directory)] == list(range(int(following.stem), journal.tail_seq + 1))


def test_a_segment_of_another_journal_does_not_pass(make_journal):
    ours, theirs = make_journal("ours"), make_journal("theirs")
    for journal in (ours, theirs):
        for _ in range(300):
            journal.append("usage", {"pad": "x" * 900})
        journal.sync()
    second = segment_paths(ours.directory)[1]
    assert second.name == segment_paths(theirs.directory)[1].name
    os.replace(segment_paths(theirs.directory)[1], second)
    with pytest.raises(CorruptJournal, match="does not follow"):
        list(read(ours.directory))


def test_an_envelope_is_read_or_refused():
    assert envelope(b'{"seq":12,"kind":"usage","a":1}') == (12, "usage")
    for payload in (b"{}", b'{"seq":x,"kind":"usage"}', b'{"seq":1'):
        with pytest.raises(ValueError):
            envelope(payload)


def test_a_cursor_behind_the_last_record_of_a_segment_knows_its_hash(make_journal):
    """The next segment may have begun: whoever compares that hash with another must not find none."""
    journal = make_journal()
    for _ in range(300):
        journal.append("usage", {"pad": "x" * 900})
    hashes = {record.seq: record.sha256 for record in read(journal.directory)}
    for path in segment_paths(journal.directory)[1:]:
        cursor = Cursor(journal.directory, int(path.stem) - 1)
        assert (cursor.seq, cursor.sha256) == (int(path.stem) - 1, hashes[int(path.stem) - 1])
        assert cursor.take(1, 1)[0].seq == int(path.stem)
        cursor.close()


def test_a_segment_that_has_not_begun_is_not_entered(make_journal):
    """A writer killed in rotation takes it away again and goes on in the one before: a reader must still be there."""
    journal = make_journal()
    journal.append("usage", {})
    cursor = Cursor(journal.directory)
    assert len(cursor.take(10, 1 << 20)) == 2
    empty = segment_path(journal.directory, 3)
    empty.write_bytes(bytes(1 << 17))
    assert cursor.take(10, 1 << 20) == []
    fresh = Cursor(journal.directory, 2)
    assert fresh.take(10, 1 << 20) == []
    empty.unlink()
    journal.append("usage", {})
    assert [record.seq for record in (*cursor.take(10, 1 << 20), *fresh.take(10, 1 << 20))] == [3, 3]
    for each in (cursor, fresh):
        each.close()


def test_a_cursor_that_does_not_follow_stays_in_its_segment(make_journal):
    journal = make_journal()
    for _ in range(300):
        journal.append("usage", {"pad": "x" * 900})
    first, second = segment_paths(journal.directory)[:2]
    cursor = Cursor(journal.directory, segment=first, follows=False)
    assert cursor.take(1 << 20, 1 << 30)[-1].seq == int(second.stem) - 1
    assert (cursor.segment, cursor.take(10, 1 << 20)) == (first, [])
    cursor.close()


def _without(content, at, length):
    return content[:at] + bytes(length) + content[at + length :]


DAMAGES = {
    "a sector": lambda content: _without(content, 50 << 10, 512),
    "a byte": lambda content: _without(content, content.index(b"x" * 300, 50 << 10) + 10, 1),
    "the rest": lambda content: content[: 50 << 10],
    "all of it": lambda content: b"",
    "all of its bytes": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("which", [0, 1], ids=["of the first", "of one between"])
def test_what_is_lost_of_a_segment_that_others_follow_is_damage_and_no_end(make_journal, damage, which):
    journal = make_journal()
    while len(segment_paths(journal.directory)) < 3:
        journal.append("usage", {"pad": "x" * 900})
    journal.close()
    path = segment_paths(journal.directory)[which]
    content = path.read_bytes()
    assert len(content) > 60 << 10
    path.write_bytes(DAMAGES[damage](content))
    with pytest.raises(CorruptJournal, match=r"later segments exist|damaged|first record|is missing"):
        for _ in read(journal.directory):
            pass


def test_a_segment_with_a_snapshot_alone_may_be_taken_away_and_is_not_read(make_journal):
    journal = make_journal()
    while len(segment_paths(journal.directory)) < 2:
        journal.append("usage", {"pad": "x" * 900})
    journal.close()
    last = segment_paths(journal.directory)[-1]
    cursor = Cursor(journal.directory, segment=last)
    (snapshot,) = cursor.take(1, 1)
    size_bytes = cursor.offset
    cursor.close()
    with last.open("r+b") as file:
        file.truncate(size_bytes)
        file.truncate(1 << 17)
    read_seqs = [record.seq for record in read(journal.directory)]
    assert read_seqs[-1] == snapshot.seq - 1


def test_a_segment_that_was_taken_away_and_made_anew_before_it_began_is_read(make_journal, tmp_path):
    directory = tmp_path / "journal" / "gateway-0"
    directory.mkdir(parents=True)
    remains = segment_path(directory, 1)
    remains.write_bytes(bytes(1 << 17))
    cursor = Cursor(directory)
    assert cursor.take(10, 1 << 20) == []
    journal = make_journal()
    assert journal.directory == directory
    while len(segment_paths(directory)) < 2:
        journal.append("usage", {"pad": "x" * 900})
    taken = cursor.take(1 << 20, 1 << 30)
    assert [record.seq for record in taken] == list(range(1, journal.tail_seq + 1))
    cursor.close()
