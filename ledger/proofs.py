"""Proofs: that a record is in what was signed, and that what was signed later continues what was signed before.

They are made from the block hashes in the home and a few leaves of the store, and are checked here as an auditor's
verifier will before they are handed out.
"""

import base64
import json
from pathlib import Path
from typing import Any

from ledger import verifier
from ledger.checkpoints import BlockFile, Checkpoint, CheckpointLog, Leaves
from ledger.merkle import BLOCK_LEAVES, Subtrees, leaf_hash
from ledger.records import SNAPSHOT, Record, chained
from ledger.segments import Cursor

_RECORD_BYTES_MAX = 1 << 26


class NotProvable(Exception):
    """No proof can be made; the message says why."""


class Prover:
    """Makes proofs for one writer of a home."""

    def __init__(self, home: Path, writer: str, leaves: Leaves) -> None:
        self.writer = writer
        self._home = home
        self._leaves = leaves
        self._blocks = BlockFile(home / "checkpoints" / f"{writer}.tree")

    def inclusion(self, seq: int, checkpoint: Checkpoint) -> dict[str, Any]:
        """The proof that a record is among those of a checkpoint, with its bytes while the journal has them.

        NotProvable when it is behind the checkpoint, or what is in the home or the store is not what was signed.
        """
        if checkpoint.writer != self.writer:
            raise NotProvable(f"the record is of {self.writer}, the checkpoint of {checkpoint.writer}")
        if seq > checkpoint.size:
            raise NotProvable(f"record {seq} is not signed yet: the checkpoint ends at {checkpoint.size}")
        path = self._subtrees(checkpoint.size).inclusion(seq - 1, checkpoint.size)
        number, at = divmod(seq - 1, BLOCK_LEAVES)
        sha256 = self._leaves.block(self.writer, number, checkpoint.size)[at]
        proof = {
            "format": verifier.PROOF_FORMAT,
            "seq": seq,
            **self._record(seq, sha256),
            "path": base64.b64encode(b"".join(path)).decode(),
            "checkpoint": checkpoint.as_json(),
        }
        public = verifier.public_key_of((self._home / "checkpoints" / f"{checkpoint.key_id}.pub").read_bytes())
        try:
            verifier.verified_proof(proof, public)
        except verifier.Failed as failed:
            raise NotProvable(f"{failed}: run `bursar ledger verify --store`") from failed
        return proof

    def consistency(self, old_size: int, new_size: int) -> dict[str, Any]:
        """The proof that the first `old_size` records begin the first `new_size`. NotProvable."""
        newest = newest_checkpoint(self._home, self.writer)
        if not 0 < old_size <= new_size <= newest.size:
            raise NotProvable(f"sizes must ascend from 1 to {newest.size}, the newest that was signed")
        if self._subtrees(newest.size).root(0, newest.size).hex() != newest.root:
            raise NotProvable("the records are not those that were signed: run `bursar ledger verify --store`")
        old, new = self._subtrees(old_size), self._subtrees(new_size)
        return {
            "format": verifier.CONSISTENCY_FORMAT,
            "writer": self.writer,
            "old_size": old_size,
            "old_root": old.root(0, old_size).hex(),
            "new_size": new_size,
            "new_root": new.root(0, new_size).hex(),
            "path": base64.b64encode(b"".join(new.consistency(old_size, new_size))).decode(),
        }

    def _subtrees(self, size: int) -> Subtrees:
        def leaves_of(number: int) -> list[bytes]:
            return [leaf_hash(sha256) for sha256 in self._leaves.block(self.writer, number, size)]

        return Subtrees(self._blocks.read, leaves_of)

    def _record(self, seq: int, sha256: bytes) -> dict[str, str]:
        """What the proof says of the record: its bytes, or its hash alone where retention let its segment go."""
        cursor = Cursor(self._home / "journal" / self.writer, seq - 1)
        try:
            previous, records = cursor.sha256, cursor.take(1, _RECORD_BYTES_MAX)
        finally:
            cursor.close()
        if not records or records[0].seq != seq or records[0].sha256 != sha256:
            return {"sha256": sha256.hex()}
        return {"previous_sha256": _previous(records[0], previous).hex(), "payload": records[0].payload.decode()}


def newest_checkpoint(home: Path, writer: str) -> Checkpoint:
    """The newest checkpoint of a writer in the home. NotProvable when there is none."""
    checkpoints = CheckpointLog(home / "checkpoints" / f"{writer}.jsonl").read()
    if not checkpoints:
        raise NotProvable(f"no checkpoint was signed for {writer} yet: start the ledger process")
    return checkpoints[-1]


def _previous(record: Record, cursor_sha256: bytes) -> bytes:
    """The hash before a record; the first one of the oldest segment kept says it itself."""
    if record.kind == SNAPSHOT and chained(cursor_sha256, record.payload) != record.sha256:
        return bytes.fromhex(json.loads(record.payload)["previous_sha256"])
    return cursor_sha256
