"""What an auditor runs alone: a copy of the verifier on checkpoints, proofs and a journal, good ones and forged."""

import base64
import json
import shutil
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger import verifier
from ledger.journal import Journal
from ledger.merkle import BLOCK_LEAVES, Subtrees, Tree, leaf_hash
from ledger.segments import read
from ledger.signing import Signer
from ledger.verifier import Failed
from tests.ledger.signed_journal import PUBLIC_KEY, SIGNER, SignedJournal, usage


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A journal of a few segments."""
    return SignedJournal.write(tmp_path_factory.mktemp("small") / "gateway-0", rows=12, segment_bytes=2048)


class Files:
    """What an auditor is given, and the verifier to run on it: a copy, without Bursar on the path."""

    def __init__(self, folder, journal):
        self.folder, self.journal = folder, journal
        shutil.copy(verifier.__file__, folder / "verifier.py")
        (folder / "key.pub").write_bytes(SIGNER.public_pem)
        self.put("checkpoints", journal.checkpoint(4).line() + journal.checkpoint().line())

    def put(self, name, content):
        (self.folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    def run(self, code, *arguments):
        command = [sys.executable, "-I", "-S", "verifier.py", *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def subtrees(self):
        blocks = Tree().extend(self.journal.sha256s)
        return Subtrees(
            lambda first, last: blocks[first:last],
            lambda number: [
                leaf_hash(each) for each in self.journal.sha256s[number * BLOCK_LEAVES : (number + 1) * BLOCK_LEAVES]
            ],
        )

    def proof(self, seq, *, with_payload=True):
        records = list(read(self.journal.directory))
        made = {
            "format": "bursar-proof/1",
            "seq": seq,
            "path": base64.b64encode(b"".join(self.subtrees().inclusion(seq - 1, len(records)))).decode(),
            "checkpoint": self.journal.checkpoint().as_json(),
        }
        if with_payload:
            made["payload"] = records[seq - 1].payload.decode()
            made["previous_sha256"] = (records[seq - 2].sha256 if seq > 1 else bytes(32)).hex()
        else:
            made["sha256"] = records[seq - 1].sha256.hex()
        return made


@pytest.fixture
def files(small, tmp_path):
    """A folder of an auditor's."""
    return Files(tmp_path, small)


def test_an_auditor_runs_a_copy_alone_and_is_told_what_is_proved(files, small):
    said = files.run(0, "journal", str(small.directory), "--checkpoint", "checkpoints", "--key", "key.pub")
    last = len(small.sha256s)
    assert f"records 1 to {last} are whole, in order" in said
    assert f"signed: all up to record {last}; 2 of 2 roots recomputed" in said
    assert "list_cost_nusd: 66" in said
    assert "day acme 1772236800 tokens: 120" in said
    shown = json.loads(files.run(0, "journal", str(small.directory), "--json"))
    assert shown["charges"] == [["day", "acme", 1_772_236_800, "tokens", 120]]
    assert shown["checkpoint_seq"] == 0


def test_a_key_or_checkpoint_that_is_another_proves_nothing(files, small):
    other = Signer(Ed25519PrivateKey.generate())
    files.put("other.pub", other.public_pem)
    directory = str(small.directory)
    said = files.run(1, "journal", directory, "--checkpoint", "checkpoints", "--key", "other.pub")
    assert "is not signed by this key" in said
    line = small.checkpoint().as_json()
    for forged in ({**line, "size": line["size"] - 1}, {**line, "signature": "AAAA"}, {**line, "format": "x"}, {}):
        files.put("forged", forged)
        assert "NOT PROVED" in files.run(1, "journal", directory, "--checkpoint", "forged", "--key", "key.pub")
    for name, content in (
        ("empty", b""),
        ("torn", b'{"format":'),
        ("list", b"[1]"),
        ("binary", b"\xff\xfe"),
        ("deep", b"[" * 200_000),
    ):
        files.put(name, content)
        assert "NOT PROVED" in files.run(1, "journal", directory, "--checkpoint", name, "--key", "key.pub")
        assert "NOT PROVED" in files.run(1, "journal", directory, "--checkpoint", "checkpoints", "--key", name)
        assert "NOT PROVED" in files.run(1, "proof", name, "--key", "key.pub")


def test_wrong_usage_is_two(files, small, tmp_path):
    files.run(2, "journal")
    assert "--checkpoint needs --key" in files.run(2, "journal", str(small.directory), "--checkpoint", "checkpoints")
    files.run(2, "journal", str(tmp_path / "nowhere"))
    files.run(2, "proof", "nowhere.json", "--key", "key.pub")
    assert "holds no journal segment" in files.run(1, "journal", str(tmp_path))


def test_a_proof_stands_for_each_record_with_and_without_its_bytes(files, small):
    for seq in range(1, len(small.sha256s) + 1):
        said = verifier.verified_proof(files.proof(seq), PUBLIC_KEY)
        sha256 = small.sha256s[seq - 1].hex()
        assert said.startswith(f"record {seq}, event ")
        assert said.endswith(f"of SHA-256 {sha256} is among the {len(small.sha256s)} signed of gateway-0")
        assert "whose bytes are not shown" in verifier.verified_proof(files.proof(seq, with_payload=False), PUBLIC_KEY)
    files.put("proof.json", files.proof(3))
    assert "record 3, event event-1," in files.run(0, "proof", "proof.json", "--key", "key.pub")
    files.run(0, "proof", "proof.json", "--key", "key.pub", "--checkpoint", "checkpoints")
    files.put("older", small.checkpoint(4).line())
    said = files.run(1, "proof", "proof.json", "--key", "key.pub", "--checkpoint", "older")
    assert "another checkpoint" in said


def test_a_proof_of_anything_else_is_refused(files, small):
    good = files.proof(3)
    payload = json.loads(good["payload"])
    wrong = [
        {**good, "seq": 4},
        {**good, "seq": 0},
        {**good, "seq": 99},
        {**good, "checkpoint": {**good["checkpoint"], "writer": "gateway-1"}},
        {**good, "previous_sha256": "00" * 32},
        {**good, "path": good["path"][:-4]},
        {**good, "path": ""},
        {**good, "format": "bursar-proof/2"},
        {**good, "payload": json.dumps({**payload, "list_cost_nusd": 0}, separators=(",", ":"))},
        {**good, "checkpoint": small.checkpoint(4).as_json()},
        {**good, "checkpoint": {**good["checkpoint"], "root": "00" * 32}},
        {**files.proof(3, with_payload=False), "sha256": small.sha256s[3].hex()},
        {**good, "previous_sha256": good["previous_sha256"][:-2]},
        {**good, "previous_sha256": ""},
        {**files.proof(3, with_payload=False), "sha256": small.sha256s[2].hex() + "00"},
        {},
    ]
    for each in wrong:
        files.put("proof.json", each)
        assert "NOT PROVED" in files.run(1, "proof", "proof.json", "--key", "key.pub")


@pytest.mark.parametrize("cut", [1, 31, 32])
def test_a_hash_of_another_length_is_no_hash(files, cut):
    """Else what a payload begins with could be said to be the end of the hash before it."""
    for name, with_payload in (("previous_sha256", True), ("sha256", False)):
        proof = files.proof(3, with_payload=with_payload)
        with pytest.raises(Failed, match=f"{name} of the proof has {32 - cut} bytes, not 32"):
            verifier.verified_proof({**proof, name: proof[name][: 64 - 2 * cut]}, PUBLIC_KEY)


def test_what_would_steer_a_terminal_is_not_printed(files, tmp_path):
    journal = Journal.open(tmp_path / "gateway-1", snapshot=dict)
    journal.append("usage", {**usage(0), "org": "a\x1b[2Jb", "org_seq": 1})
    journal.close()
    assert "last row of org a?[2Jb: 1" in files.run(0, "journal", str(tmp_path / "gateway-1"))


def test_consistency_is_proved_between_two_checkpoints_and_no_others(files, small):
    last = len(small.sha256s)
    files.put("new", small.checkpoint().line())
    for size in range(1, last + 1):
        path = b"".join(files.subtrees().consistency(size, last))
        files.put("old", small.checkpoint(size).line())
        files.put("proof", {"format": "bursar-consistency/1", "path": base64.b64encode(path).decode()})
        if size in (1, 5, last):
            said = files.run(0, "consistency", "old", "new", "proof", "--key", "key.pub")
            assert f"the {last} records of gateway-0 begin with the {size}" in said
        forked = small.checkpoint(size)._replace(root="11" * 32, signature="")
        forked = forked._replace(signature=SIGNER.sign(forked.message()))
        proof = {"format": "bursar-consistency/1", "path": base64.b64encode(path).decode()}
        with pytest.raises(Failed):
            verifier.verified_consistency(forked.as_json(), small.checkpoint().as_json(), proof)
    files.put("old", small.checkpoint(5).line())
    assert "NOT PROVED" in files.run(1, "consistency", "new", "old", "proof", "--key", "key.pub")
    files.put("new", small.checkpoint()._replace(writer="gateway-1").line())
    assert "NOT PROVED" in files.run(1, "consistency", "old", "new", "proof", "--key", "key.pub")
