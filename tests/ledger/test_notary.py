"""Every checkpoint is signed once over what the store has, gets out, and is never contradicted by a later one."""

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger.batch import Batch
from ledger.checkpoints import BlockFile, CheckpointLog, Leaves, LeavesMissing
from ledger.destination import StoreAway
from ledger.exports import Exporter, FolderTarget
from ledger.merkle import BLOCK_LEAVES, Tree
from ledger.notary import Notary
from ledger.records import Record
from ledger.signing import Signer, public_key_in
from ledger.verifier import check_signature, public_key_of
from tests.ledger.signed_journal import PUBLIC_KEY, SIGNER, hashes, signed


class StoreOfHashes:
    """What the notary asks a store for, in memory; `is_away` makes it fail."""

    def __init__(self, sha256s=()):
        self.sha256s = list(sha256s)
        self.rows_read = 0
        self.is_away = False

    def select(self, sql, writer, after=0, upto=0):
        if self.is_away:
            raise StoreAway("the store is away")
        if "max(seq)" in sql:
            return [(len(self.sha256s),)]
        rows = [(seq, each.hex()) for seq, each in enumerate(self.sha256s, start=1) if after < seq <= upto]
        self.rows_read += len(rows)
        return rows


class Bench:
    """A notary over a folder, that can die and be opened again."""

    def __init__(self, folder, sha256s=(), signer=SIGNER, exporters=()):
        self.folder, self.signer, self.exporters = folder, signer, exporters
        self.store = StoreOfHashes()
        self.open()
        self.ship(sha256s)

    def open(self):
        self.notary = Notary(self.folder, self.signer, Leaves(self.store.select), self.exporters)

    def reopen(self):
        self.open()
        self.store.rows_read = 0
        self.notary.resume(["w"])

    def ship(self, sha256s):
        """A batch of new records arrives in the store."""
        if sha256s:
            first = len(self.store.sha256s) + 1
            self.store.sha256s += sha256s
            self.notary.sealed(batch(first, sha256s))

    def log(self):
        return CheckpointLog(self.folder / "w.jsonl").read()

    def alarm(self):
        return self.notary.status()["alarms"].get("w", "")

    def check(self):
        """Every checkpoint is of the store's records, as RFC 6962 has them, and signed."""
        for checkpoint in self.log():
            assert checkpoint._replace(ts_us=0, signature="", key_id="") == signed(
                "w", self.store.sha256s[: checkpoint.size]
            )._replace(ts_us=0, signature="", key_id="")
            check_signature(checkpoint.as_json(), public_key_of(self.signer.public_pem))


def batch(first, sha256s, writer="w"):
    """What the shipper hands over."""
    records = [Record(seq, "control", b"", each, "", 0) for seq, each in enumerate(sha256s, start=first)]
    return Batch(writer, tuple(records))


@pytest.fixture
def folder(tmp_path):
    """Where checkpoints lie."""
    return tmp_path / "checkpoints"


def test_a_checkpoint_is_signed_for_every_batch(folder):
    bench = Bench(folder)
    for size in (1, 3, 252, 1, 700, 10):
        bench.ship(hashes(size, salt=b"%d" % size))
    assert [checkpoint.size for checkpoint in bench.log()] == [1, 4, 256, 257, 957, 967]
    bench.check()
    assert bench.notary.status()["signed"] == {"w": 967}
    blocks = BlockFile(folder / "w.tree").read(0, 99)
    assert blocks == Tree().extend(bench.store.sha256s)
    assert public_key_of((folder / f"{SIGNER.key_id}.pub").read_bytes()) == PUBLIC_KEY


def test_it_goes_on_from_its_files_and_reads_only_the_end_of_the_store(folder):
    bench = Bench(folder, hashes(10 * BLOCK_LEAVES + 7))
    bench.reopen()
    assert bench.store.rows_read == 7
    bench.ship(hashes(300, salt=b"more"))
    assert [checkpoint.size for checkpoint in bench.log()] == [2567, 2867]
    bench.check()
    assert bench.alarm() == ""


def test_what_came_into_the_store_while_it_was_away_is_signed_at_the_start(folder):
    bench = Bench(folder, hashes(300))
    bench.store.sha256s += hashes(500, salt=b"more")
    bench.reopen()
    assert [checkpoint.size for checkpoint in bench.log()] == [300, 800]
    bench.check()


def test_a_batch_behind_a_gap_takes_what_is_between_from_the_store(folder):
    bench = Bench(folder, hashes(300))
    bench.store.sha256s += hashes(500, salt=b"between")
    bench.ship(hashes(5, salt=b"batch"))
    bench.notary.sealed(batch(700, bench.store.sha256s[699:750]))
    assert [checkpoint.size for checkpoint in bench.log()] == [300, 805]
    bench.check()


@pytest.mark.parametrize("size", [1, 255, 256, 257, 1024, 1300])
def test_a_lost_torn_or_foreign_tree_file_is_made_again(folder, size):
    bench = Bench(folder, hashes(size))
    tree = folder / "w.tree"
    original = tree.read_bytes() if tree.exists() else b""
    for content in (b"", original[:-1], original[:-32], bytes(len(original)), b"\xff" + original, original + b"x" * 70):
        tree.write_bytes(content)
        bench.reopen()
        assert bench.alarm() == ""
        assert tree.read_bytes() == original
    bench.ship(hashes(300, salt=b"more"))
    bench.check()
    assert len(bench.log()) == 2


@pytest.mark.parametrize("changed", [0, 100, 299, 599])
def test_it_never_signs_over_a_changed_history(folder, changed):
    """Also where the tree file was changed to fit, or is gone."""
    bench = Bench(folder, hashes(600))
    honest = bench.store.sha256s[changed]
    log, tree = (folder / "w.jsonl").read_bytes(), folder / "w.tree"
    cached = tree.read_bytes()
    bench.store.sha256s[changed] = bytes(32)
    forged = b"".join(Tree().extend(bench.store.sha256s))
    for content in (forged, b""):
        tree.write_bytes(content)
        bench.reopen()
        assert "history was changed" in bench.alarm()
        bench.ship(hashes(10, salt=b"more"))
        bench.notary.close()
        assert (folder / "w.jsonl").read_bytes() == log
        bench.store.sha256s = bench.store.sha256s[:600]
    bench.store.sha256s[changed] = honest
    tree.write_bytes(cached)
    bench.reopen()
    assert bench.alarm() == ""


def test_a_checkpoint_that_someone_edited_stops_it(folder):
    bench = Bench(folder, hashes(20))
    original = (folder / "w.jsonl").read_bytes()
    for edited in (original.replace(b'"size":20', b'"size":19'), original.replace(b'"root":"', b'"root":"00')):
        (folder / "w.jsonl").write_bytes(edited)
        bench.reopen()
        assert "is not signed by key" in bench.alarm()
        assert (folder / "w.jsonl").read_bytes() == edited
    (folder / "w.jsonl").write_bytes(b"nonsense\n" + original)
    bench.reopen()
    assert "line 1 is no checkpoint" in bench.alarm()
    (folder / "w.jsonl").write_bytes(original + b'{"torn')
    bench.reopen()
    bench.ship(hashes(1, salt=b"more"))
    assert [checkpoint.size for checkpoint in bench.log()] == [20, 21]


def test_a_store_that_is_behind_is_waited_for_and_then_signed_on(folder):
    """A store that was made anew is filled again by the shipper, batch by batch."""
    bench = Bench(folder, hashes(1000))
    bench.store.sha256s = []
    bench.reopen()
    assert "the store has 0 records, but 1000 were signed" in bench.alarm()
    bench.ship(hashes(1000)[:400])
    assert "the store has 400 records" in bench.alarm()
    bench.ship(hashes(1000)[400:])
    assert bench.alarm() == ""
    bench.ship(hashes(5, salt=b"more"))
    assert [checkpoint.size for checkpoint in bench.log()] == [1000, 1005]
    bench.check()


def test_a_store_that_comes_back_with_another_history_is_refused(folder):
    bench = Bench(folder, hashes(1000))
    bench.store.sha256s = []
    bench.reopen()
    bench.ship(hashes(1000, salt=b"another"))
    assert "history was changed" in bench.alarm()
    assert [checkpoint.size for checkpoint in bench.log()] == [1000]


def test_a_failure_in_between_costs_a_checkpoint_and_no_more(folder):
    bench = Bench(folder, hashes(300))
    (folder / "w.jsonl").rename(folder / "away")
    (folder / "w.jsonl").mkdir()
    bench.ship(hashes(300, salt=b"a"))
    assert "Is a directory" in bench.alarm()
    (folder / "w.jsonl").rmdir()
    (folder / "away").rename(folder / "w.jsonl")
    bench.store.is_away = True
    bench.ship(hashes(7, salt=b"b"))
    assert bench.alarm() == "the store is away"
    bench.store.is_away = False
    bench.notary.close()
    assert bench.alarm() == ""
    assert [checkpoint.size for checkpoint in bench.log()] == [300, 607]
    bench.check()


def test_a_row_that_the_store_has_twice_or_not_is_no_leaf(folder):
    store = StoreOfHashes(hashes(10))
    twice, missing = [(1, "00"), (1, "00")], [(1, "00" * 32)]
    for answer in (twice, missing, [], [(1, "no hash")]):
        leaves = Leaves(lambda sql, answer=answer, **parameters: answer)
        with pytest.raises(LeavesMissing, match="record"):
            list(leaves.read("w", 0, 10))
    assert [each for page in Leaves(store.select).read("w", 2, 10) for each in page] == store.sha256s[2:]


def test_writers_have_trees_of_their_own(folder):
    bench = Bench(folder, hashes(5))
    bench.notary.sealed(batch(1, hashes(3, salt=b"v"), "v"))
    assert CheckpointLog(folder / "v.jsonl").read()[0].root == signed("v", hashes(3, salt=b"v")).root
    assert bench.notary.status()["signed"] == {"w": 5, "v": 3}


def test_a_new_key_goes_on_where_the_old_one_ended(folder):
    bench = Bench(folder, hashes(5))
    private = Ed25519PrivateKey.generate()
    bench.signer = Signer(private, [public_key_in(folder / f"{SIGNER.key_id}.pub")])
    bench.store.sha256s += hashes(2, salt=b"meanwhile")
    bench.reopen()
    before, same, since = bench.log()
    assert [before.key_id, same.key_id, since.key_id] == [SIGNER.key_id, bench.signer.key_id, bench.signer.key_id]
    assert (before.size, before.root) == (same.size, same.root) == (5, before.root)
    assert since.size == 7
    bench.signer = Signer(private)
    bench.reopen()
    bench.ship(hashes(5, salt=b"more"))
    assert [(each.size, each.key_id) for each in bench.log()][3:] == [(12, bench.signer.key_id)]
    assert bench.alarm() == ""


def test_what_a_strangers_key_signed_is_not_signed_over_although_the_key_lies_beside_it(folder):
    bench = Bench(folder, hashes(600))
    stranger = Signer(Ed25519PrivateKey.generate())
    (folder / f"{stranger.key_id}.pub").write_bytes(stranger.public_pem)
    bench.store.sha256s = hashes(600, salt=b"forged")
    forged = signed("w", bench.store.sha256s, stranger).line()
    (folder / "w.jsonl").write_bytes(forged)
    (folder / "w.tree").unlink()
    bench.reopen()
    bench.ship(hashes(10, salt=b"more"))
    assert f"signed by key {stranger.key_id}, not by {SIGNER.key_id}" in bench.alarm()
    assert "BURSAR_SIGNING_KEY_BEFORE" in bench.alarm()
    bench.notary.close()
    assert (folder / "w.jsonl").read_bytes() == forged


def test_a_notary_exports_what_it_signs_and_the_newest_again_at_its_start(folder, tmp_path):
    bench = Bench(folder, hashes(5), exporters=[Exporter(FolderTarget(tmp_path / "out", SIGNER.public_pem))])
    bench.notary.close()
    assert bench.notary.status()["exports"][0]["delivered"] == {"w": 5}
    bench.exporters = [Exporter(FolderTarget(tmp_path / "later", SIGNER.public_pem))]
    bench.reopen()
    bench.notary.close()
    assert (tmp_path / "later" / "w.jsonl").read_bytes() == (tmp_path / "out" / "w.jsonl").read_bytes()
