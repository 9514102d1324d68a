"""A journal whose beginning is gone is proved by what was signed of the rest, and by the store; by nothing else."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ledger.checkpoints import CheckpointLog
from ledger.client import open_ledger
from ledger.merkle import BLOCK_LEAVES, Tree
from ledger.records import HEADER, chained
from ledger.segments import segment_paths
from ledger.signing import signer_of
from tests.gateway.test_cli_audit import DONE, NO, ROWS, WRITER, journal_of, ran, url
from tests.ledger.signed_journal import SignedJournal, hashes, signed


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose journal of several segments is shipped and signed."""
    home = tmp_path / "home"
    SignedJournal.write(home / "journal" / WRITER, ROWS, segment_bytes=1 << 16)
    with open_ledger(home, url(home)) as client:
        client.flush()
    return home


def forged_beginning(home: Path, first: int) -> list[bytes]:
    """Puts one segment that begins at a record in place of all, and random hashes in place of the tree's."""
    directory = home / "journal" / WRITER
    shutil.rmtree(directory)
    directory.mkdir()
    previous, content, sha256s = os.urandom(32), b"", []
    for seq in range(first, first + 4):
        body: dict[str, Any] = {"seq": seq, "kind": "snapshot", "previous_sha256": previous.hex(), "org_seqs": {}}
        if seq > first:
            body = {"seq": seq, "kind": "usage", "org": "acme", "org_seq": seq - first, "status": "ok"}
        payload = json.dumps(body, separators=(",", ":")).encode()
        previous = chained(previous, payload)
        content += HEADER.pack(len(payload), previous) + payload
        sha256s.append(previous)
    (directory / f"{first:020d}.seg").write_bytes(content)
    return sha256s


def test_a_journal_from_which_all_that_was_signed_is_gone_is_not_proved(home: Path, tmp_path: Path) -> None:
    """Not by invented hashes of the tree, nor by whoever holds the key and signs over them."""
    ran(DONE, home, "checkpoint", "--to", str(tmp_path / "out"))
    exported = str(tmp_path / "out" / f"{WRITER}.jsonl")
    size = CheckpointLog(Path(exported)).read()[-1].size
    first = -(-size // BLOCK_LEAVES) * BLOCK_LEAVES + 1
    sha256s = forged_beginning(home, first)
    invented = hashes(first - 1)
    (home / "checkpoints" / f"{WRITER}.tree").write_bytes(b"".join(Tree().extend(invented)))
    for options in ((), ("--checkpoint", exported)):
        assert f"all that was signed is before record {first}" in ran(NO, home, "verify", *options).stderr
    forged = signed(WRITER, [*invented, *sha256s], signer_of(home, {}))
    (home / "checkpoints" / f"{WRITER}.jsonl").write_bytes(forged.line())
    said = ran(NO, home, "verify", "--checkpoint", exported).stderr
    assert f"the checkpoint at {size} stands before record {first}" in said


def test_an_exported_checkpoint_of_records_that_are_gone_is_proved_by_the_store(home: Path, tmp_path: Path) -> None:
    kept_from = int(segment_paths(home / "journal" / WRITER)[2].stem)
    older, other = tmp_path / "older", tmp_path / "other"
    made = signed(WRITER, journal_of(home).sha256s[:20], signer_of(home, {}))
    older.write_bytes(made.line())
    signer = signer_of(home, {})
    unlike = made._replace(last_sha256="00" * 32)
    for path in segment_paths(home / "journal" / WRITER)[:2]:
        path.unlink()
    assert f"stands before record {kept_from}" in ran(NO, home, "verify", "--checkpoint", str(older)).stderr
    said = ran(DONE, home, "verify", "--store", "--checkpoint", str(older)).stdout
    assert "the store's records have the roots of the first" in said
    for wrong in (
        signed(WRITER, hashes(20), signer),
        unlike._replace(signature=signer.sign(unlike.message())),
    ):
        other.write_bytes(wrong.line())
        said = ran(NO, home, "verify", "--store", "--checkpoint", str(other)).stderr
        assert "the store's first 20 records have not the root or last hash that was signed" in said
