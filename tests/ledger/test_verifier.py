"""Given a checkpoint that got out, no change, deletion, swap or cut before it passes; without one, careful ones do."""

import ast
import random
import sys
import threading
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import verifier
from ledger.journal import Journal
from ledger.merkle import Tree
from ledger.segments import segment_paths
from ledger.verifier import Failed, is_signed, public_key_of, verified_journal
from tests.ledger.signed_journal import PUBLIC_KEY, SIGNER, SignedJournal, usage

# Public key, message and the halves of the signature of RFC 8032, section 7.1, tests 1 to 3.
RFC_8032 = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155",
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da",
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac",
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Three segments of a few records each."""
    journal = SignedJournal.write(tmp_path_factory.mktemp("small") / "gateway-0", rows=12, segment_bytes=2048)
    assert len(segment_paths(journal.directory)) >= 2
    return journal


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """100,000 events and more in several segments."""
    journal = SignedJournal.write(tmp_path_factory.mktemp("large") / "gateway-0", rows=100_000, segment_bytes=4 << 20)
    assert len(segment_paths(journal.directory)) >= 5
    return journal


def refused(journal, checkpoint):
    """Why a journal does not pass."""
    with pytest.raises(Failed) as failed:
        verified_journal(journal.directory, [checkpoint.as_json()])
    return str(failed.value)


@pytest.mark.parametrize(("key", "message", "r", "s"), RFC_8032)
def test_signatures_are_those_of_rfc_8032(key, message, r, s):
    parts = bytes.fromhex(message), bytes.fromhex(r + s), bytes.fromhex(key)
    assert is_signed(*parts)
    assert not is_signed(parts[0] + b"x", *parts[1:])


@given(st.binary(max_size=300), st.binary(min_size=32, max_size=32), st.integers(0, 511), st.binary(min_size=32))
@settings(max_examples=25, deadline=None)
def test_a_signature_passes_for_its_key_and_message_only(message, secret, bit, other):
    private = Ed25519PrivateKey.from_private_bytes(secret)
    public, signature = private.public_key().public_bytes_raw(), private.sign(message)
    assert is_signed(message, signature, public)
    flipped = (int.from_bytes(signature, "big") ^ 1 << bit).to_bytes(64, "big")
    assert not is_signed(message, flipped, public)
    assert not is_signed(message, signature[:-1], public)
    assert not is_signed(message, signature, other[:32]) or other[:32] == public
    assert not is_signed(message, signature, other)


def test_a_signature_with_a_number_over_the_order_is_refused():
    private = Ed25519PrivateKey.from_private_bytes(bytes(32))
    signature = private.sign(b"m")
    order = 2**252 + 27742317777372353535851937790883648493
    larger = int.from_bytes(signature[32:], "little") + order
    assert not is_signed(b"m", signature[:32] + larger.to_bytes(32, "little"), private.public_key().public_bytes_raw())


def test_it_imports_nothing_but_the_standard_library():
    tree = ast.parse(Path(verifier.__file__).read_text())
    names = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    names |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names <= sys.stdlib_module_names


def test_a_whole_journal_passes_and_its_sums_are_those_of_its_rows(small):
    checkpoints = [small.checkpoint(size).as_json() for size in (1, 5, len(small.sha256s))]
    report = verified_journal(small.directory, checkpoints)
    assert (report.first_seq, report.last_seq, report.roots) == (1, len(small.sha256s), 3)
    assert report.last_sha256 == small.sha256s[-1].hex()
    assert report.rows == {"ok": 12}
    assert report.org_seqs == {"acme": 6, "globex": 6}
    assert report.amounts == {"input_tokens": 120, "list_cost_nusd": sum(range(12))}
    assert report.charges == {("day", "acme", 1_772_236_800, "tokens"): 120}
    assert report.notes == []


def test_every_change_of_every_byte_of_a_small_journal_is_found(small):
    checkpoint = small.checkpoint()
    draw = random.Random(1)
    changes = 0
    for path in segment_paths(small.directory):
        original = path.read_bytes()
        used = max(end for place, _, end in small.places if place == path)
        for at in range(used):
            for value in {0, original[at] ^ 1 << draw.randrange(8)} - {original[at]}:
                with small.changed(path, original[:at] + bytes([value]) + original[at + 1 :]):
                    assert refused(small, checkpoint)
                changes += 1
    assert changes > 3_000
    assert verified_journal(small.directory, [checkpoint.as_json()]).roots == 1


def test_every_record_of_a_small_journal_that_is_missing_doubled_or_swapped_is_found(small):
    checkpoint = small.checkpoint()
    for number, (path, at, end) in enumerate(small.places):
        content = path.read_bytes()
        with small.changed(path, content[:at] + content[end:]):
            assert refused(small, checkpoint)
        with small.changed(path, content[:end] + content[at:end] + content[end:]):
            assert refused(small, checkpoint)
        for other, other_at, other_end in small.places[number + 1 :]:
            if other == path:
                swapped = content[other_at:other_end] + content[end:other_at] + content[at:end]
                with small.changed(path, content[:at] + swapped + content[other_end:]):
                    assert refused(small, checkpoint)


def test_every_cut_of_a_small_journal_is_found(small):
    checkpoint = small.checkpoint()
    for path in segment_paths(small.directory):
        content = path.read_bytes()
        used = max(end for place, _, end in small.places if place == path)
        with small.without(path):
            assert refused(small, checkpoint)
        for at in range(used):
            with small.changed(path, content[:at]):
                assert refused(small, checkpoint)


def test_random_damage_to_a_hundred_thousand_events_is_found(large):
    """Of each kind a few, anywhere; the small journal has them all."""
    checkpoint = large.checkpoint()
    draw = random.Random(2)
    segments = segment_paths(large.directory)
    assert verified_journal(large.directory, [checkpoint.as_json()]).last_seq > 100_000
    for _ in range(10):
        path, at, end = draw.choice(large.places)
        content = path.read_bytes()
        byte = draw.randrange(at, end)
        changed = content[:byte] + bytes([content[byte] ^ 1 << draw.randrange(8)]) + content[byte + 1 :]
        other, other_at, other_end = draw.choice([place for place in large.places if place[0] == path])
        (a, b), (c, d) = sorted([(at, end), (other_at, other_end)])
        swapped = content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]
        for damaged in (changed, content[:at] + content[end:], content[:byte], swapped if a != c else changed):
            with large.changed(path, damaged):
                assert refused(large, checkpoint)
        assert other == path
    for path in segments:
        with large.without(path):
            assert refused(large, checkpoint)


def test_whoever_makes_every_hash_again_passes_only_where_no_checkpoint_got_out(small, tmp_path):
    checkpoint = small.checkpoint()
    for seq in range(1, len(small.sha256s) + 1):
        small.rewritten(tmp_path / "gateway-0", seq)
        assert verified_journal(tmp_path / "gateway-0").last_seq == len(small.sha256s)
        with pytest.raises(Failed, match="not the one that the checkpoint was signed for"):
            verified_journal(tmp_path / "gateway-0", [checkpoint.as_json()])


def test_records_behind_the_checkpoint_are_chained_and_said_to_be_unsigned(small):
    report = verified_journal(small.directory, [small.checkpoint(5).as_json()])
    assert (report.checkpoint_seq, report.last_seq) == (5, len(small.sha256s))
    assert f"not signed: {report.last_seq - 5} records" in "\n".join(report.lines())


def test_a_wrong_root_with_the_right_last_hash_does_not_pass(small):
    checkpoint = small.checkpoint()._replace(root="00" * 32)
    assert "root" in refused(small, checkpoint)


def test_a_torn_write_at_the_end_is_a_note_and_not_a_failure(tmp_path):
    """A killed writer leaves part of a record, and it was never acknowledged."""
    journal = SignedJournal.write(tmp_path / "gateway-0", rows=3, segment_bytes=1 << 14)
    path, at, end = journal.places[-1]
    content = path.read_bytes()
    for kept in range(at + 1, end):
        with journal.changed(path, content[:kept] + bytes(len(content) - kept)):
            report = verified_journal(journal.directory, [journal.checkpoint(3).as_json()])
            assert report.last_seq == 3
            assert len(report.notes) == 1
            assert refused(journal, journal.checkpoint())


def test_a_journal_without_its_oldest_segments_needs_to_be_expected(large):
    """With the hashes of what retention let go the root is proved, without them the chain to the signed hash."""
    checkpoint = large.checkpoint().as_json()
    blocks = Tree().extend(large.sha256s)
    first, second = segment_paths(large.directory)[:2]
    kept_from = int(second.stem)
    with large.without(first):
        with pytest.raises(Failed, match=f"records 1 to {kept_from - 1} are missing"):
            verified_journal(large.directory, [checkpoint])
        chained_only = verified_journal(large.directory, [checkpoint], begins_at=kept_from)
        assert (chained_only.first_seq, chained_only.roots) == (kept_from, 0)
        whole = verified_journal(large.directory, [checkpoint], begins_at=kept_from, blocks=blocks)
        assert whole.roots == 1
        assert whole.org_seqs == {"acme": 50_000, "globex": 50_000}
        wrong = [bytes(32), *blocks[1:]]
        with pytest.raises(Failed, match="root"):
            verified_journal(large.directory, [checkpoint], begins_at=kept_from, blocks=wrong)
        with large.without(second), pytest.raises(Failed, match="are missing"):
            verified_journal(large.directory, [checkpoint], begins_at=kept_from, blocks=blocks)


def test_a_journal_that_begins_behind_all_that_was_signed_is_not_proved(large):
    """Whatever it holds then could be anybody's, and so could the hashes beside it."""
    kept_from = int(segment_paths(large.directory)[1].stem)
    older, newest = large.checkpoint(1001).as_json(), large.checkpoint().as_json()
    with large.without(segment_paths(large.directory)[0]):
        for held in ({"checkpoints": [older]}, {"older": [older]}):
            with pytest.raises(Failed, match=f"all that was signed is before record {kept_from}"):
                verified_journal(large.directory, **held, begins_at=kept_from, blocks=[b"x" * 32] * 999)
        with pytest.raises(Failed, match=f"checkpoint at 1001 stands before record {kept_from}"):
            verified_journal(large.directory, [older, newest], begins_at=kept_from)
        report = verified_journal(large.directory, [newest], older=[older], begins_at=kept_from)
        assert report.notes == ["checkpoints of records that are not here, so not compared with any: 1"]


def test_the_checkpoint_that_the_first_record_kept_follows_holds_it(large):
    kept_from = int(segment_paths(large.directory)[1].stem)
    before = large.checkpoint(kept_from - 1)
    with large.without(segment_paths(large.directory)[0]):
        report = verified_journal(large.directory, [before.as_json()], begins_at=kept_from)
        assert report.checkpoint_seq == kept_from - 1
        other = before._replace(last_sha256="00" * 32).as_json()
        with pytest.raises(Failed, match=f"record {kept_from - 1} is not the one"):
            verified_journal(large.directory, [other], begins_at=kept_from)


def test_a_row_that_is_missing_from_an_org_is_found_although_the_chain_is_whole(tmp_path):
    journal = Journal.open(tmp_path / "gateway-0", segment_bytes=1 << 14, snapshot=lambda: {"org_seqs": {}})
    for number in (1, 2, 4):
        journal.append("usage", {**usage(0), "org_seq": number})
    journal.close()
    with pytest.raises(Failed, match="row 3 of org 'acme' is missing"):
        verified_journal(tmp_path / "gateway-0")


def test_a_snapshot_that_counts_other_rows_is_found(tmp_path):
    journal = Journal.open(tmp_path / "gateway-0", segment_bytes=1 << 12, snapshot=lambda: {"org_seqs": {"acme": 9}})
    for number in range(10, 80):
        journal.append("usage", {**usage(0), "org_seq": number})
    journal.close()
    with pytest.raises(Failed, match="counts other rows"):
        verified_journal(tmp_path / "gateway-0")


def test_a_key_of_another_kind_is_refused():
    for pem in (b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", SIGNER.public_pem[:30]):
        with pytest.raises(Failed):
            public_key_of(pem)
    assert public_key_of(SIGNER.public_pem) == PUBLIC_KEY


def test_a_journal_passes_while_it_is_being_written(tmp_path):
    journal = Journal.open(tmp_path / "gateway-0", segment_bytes=1 << 18, snapshot=dict)
    done = threading.Event()

    def write():
        number = 0
        while not done.is_set():
            for _ in range(20):
                journal.append("usage", usage(number))
                number += 1
            time.sleep(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = [verified_journal(tmp_path / "gateway-0").last_seq for _ in range(12)]
    finally:
        done.set()
        writer.join()
        journal.close()
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]
