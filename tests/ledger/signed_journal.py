"""A journal on disk with a checkpoint over it, and ways to damage it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ledger.checkpoints import Checkpoint
from ledger.journal import Journal
from ledger.merkle import Tree
from ledger.records import HEADER, HEADER_BYTES, chained
from ledger.segments import read, segment_paths
from ledger.sequences import Sequences
from ledger.signing import Signer
from ledger.verifier import public_key_of

SIGNER = Signer(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
PUBLIC_KEY = public_key_of(SIGNER.public_pem)


def hashes(count: int, salt: bytes = b"") -> list[bytes]:
    """Hashes such as records have."""
    return [sha256(salt + b"%d" % number).digest() for number in range(count)]


def signed(writer: str, sha256s: list[bytes], signer: Signer = SIGNER) -> Checkpoint:
    """The checkpoint of these records."""
    tree = Tree()
    tree.extend(sha256s)
    made = Checkpoint(writer, len(sha256s), tree.root().hex(), sha256s[-1].hex(), 1_772_280_000_000_000, signer.key_id)
    return made._replace(signature=signer.sign(made.message()))


def usage(number: int) -> dict[str, Any]:
    """A small row of usage."""
    return {
        "ts_us": 1_772_280_000_000_000 + number,
        "event_id": f"event-{number}",
        "request_id": f"event-{number}",
        "org": ("acme", "globex")[number % 2],
        "status": "ok",
        "input_tokens": 10,
        "list_cost_nusd": number,
        "charges": [["day", "acme", 1_772_236_800, "tokens", 10]],
    }


@dataclass
class SignedJournal:
    """The segments of one writer and where each record lies in them."""

    directory: Path

    @classmethod
    def write(
        cls, directory: Path, rows: int, segment_bytes: int, written: Callable[[int], object] = lambda number: None
    ) -> "SignedJournal":
        """A journal of so many rows of usage, snapshots apart; `written` is told of each."""
        sequences = Sequences()
        journal = Journal.open(
            directory, segment_bytes=segment_bytes, snapshot=lambda: {"org_seqs": sequences.snapshot()}
        )
        for number in range(rows):
            row = usage(number)
            sequences.append(journal, row["org"], row)
            written(number)
        journal.close()
        return cls(directory)

    def __post_init__(self) -> None:
        records = list(read(self.directory))
        self.sha256s = [record.sha256 for record in records]
        self.places = [
            (self.directory / record.segment, record.offset, record.offset + HEADER_BYTES + len(record.payload))
            for record in records
        ]

    def checkpoint(self, size: int = 0) -> Checkpoint:
        """The one signed for so many of its records, or for all."""
        return signed(self.directory.name, self.sha256s[: size or len(self.sha256s)])

    @contextmanager
    def changed(self, path: Path, content: bytes) -> Iterator[None]:
        """Has another content in one segment for a while."""
        original = path.read_bytes()
        _put(path, content)
        try:
            yield
        finally:
            _put(path, original)

    @contextmanager
    def without(self, path: Path) -> Iterator[None]:
        """Has one segment away for a while."""
        original = path.read_bytes()
        path.unlink()
        try:
            yield
        finally:
            path.write_bytes(original)

    def rewritten(self, to: Path, seq: int) -> None:
        """A copy in which one record says something else and every hash since is made again, as an insider would."""
        to.mkdir(exist_ok=True)
        previous = bytes(32)
        number = 0
        for path in segment_paths(self.directory):
            content, made, at = path.read_bytes(), b"", 0
            while int.from_bytes(content[at : at + 4], "little"):
                length, _ = HEADER.unpack_from(content, at)
                payload = content[at + HEADER_BYTES : at + HEADER_BYTES + length]
                number += 1
                body = json.loads(payload)
                if "previous_sha256" in body:
                    body["previous_sha256"] = previous.hex()
                if number == seq:
                    body["ts_us"] -= 1
                payload = json.dumps(body, separators=(",", ":")).encode()
                previous = chained(previous, payload)
                made += HEADER.pack(len(payload), previous) + payload
                at += HEADER_BYTES + length
            (to / path.name).write_bytes(made)


def _put(path: Path, content: bytes) -> None:
    """Writes a file in place: to empty it first takes a disk far longer."""
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()
