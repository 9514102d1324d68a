"""The auditor's verifier: one file to read and to copy, which needs Python's standard library and nothing of Bursar.

    python verifier.py journal DIR --checkpoint FILE --key PUB [--begins-at SEQ --tree FILE]
    python verifier.py proof FILE --key PUB [--checkpoint FILE]
    python verifier.py consistency OLD NEW PROOF --key PUB

DIR holds one writer's segments. FILE, OLD and NEW hold signed checkpoints, one a line, and PUB the public key, which
must come from elsewhere than the journal. Exit code 0: all that was asked is proved; 1: it is not; 2: wrong usage.
"""

import argparse
import base64
import hashlib
import json
import os
import re
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

CHECKPOINT_FORMAT = "bursar-checkpoint/1"
PROOF_FORMAT = "bursar-proof/1"
CONSISTENCY_FORMAT = "bursar-consistency/1"
AMOUNTS = (
    *("input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens"),
    *("gpu_us", "list_cost_nusd", "gpu_cost_nusd"),
)
_BLOCK_LEAVES, _HASH_BYTES, _PAYLOAD_BYTES_MAX, _LINES_SHOWN = 256, 32, 32 << 20, 20
_HEADER = struct.Struct("<I32s")  # the length of the payload and the record's SHA-256
_ENVELOPE = re.compile(rb'\{"seq":(\d+),"kind":"([a-z_]+)",')
_SEGMENT = re.compile(r"\d{20}\.seg")


class Failed(Exception):
    """What was given does not prove what it should; the message says why."""


class Record(NamedTuple):
    """One record, found to follow the one before."""

    seq: int
    kind: str
    payload: bytes
    sha256: bytes


# Signatures: Ed25519 as RFC 8032 has it, points as extended coordinates (X, Y, Z, T) with x = X/Z, y = Y/Z, xy = T/Z.
Point = tuple[int, int, int, int]
_P = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_ROOT_OF_MINUS_1 = pow(2, (_P - 1) // 4, _P)
_DER_PREFIX = bytes.fromhex("302a300506032b6570032100")  # of an Ed25519 SubjectPublicKeyInfo (RFC 8410)


def _add(p: Point, q: Point) -> Point:
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % _P, (p[1] + p[0]) * (q[1] + q[0]) % _P
    c, d = 2 * p[3] * q[3] * _D % _P, 2 * p[2] * q[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _times(factor: int, p: Point) -> Point:
    found: Point = (0, 1, 1, 0)
    while factor:
        if factor & 1:
            found = _add(found, p)
        p = _add(p, p)
        factor >>= 1
    return found


def _point(encoded: bytes) -> Point | None:
    number = int.from_bytes(encoded, "little")
    sign, y = number >> 255, number & (1 << 255) - 1
    xx = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(xx, (_P + 3) // 8, _P)
    if (x * x - xx) % _P:
        x = x * _ROOT_OF_MINUS_1 % _P
    if y >= _P or (x * x - xx) % _P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = _P - x
    return x, y, 1, x * y % _P


_base_y = 4 * pow(5, -1, _P) % _P
_BASE = _point(_base_y.to_bytes(32, "little"))


def is_signed(message: bytes, signature: bytes, public_key: bytes) -> bool:
    """Whether the Ed25519 signature is that of the message by the holder of the key (RFC 8032, section 5.1.7)."""
    if len(signature) != 64 or len(public_key) != 32:
        return False
    a, r, s = _point(public_key), _point(signature[:32]), int.from_bytes(signature[32:], "little")
    if a is None or r is None or _BASE is None or s >= _ORDER:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public_key + message).digest(), "little") % _ORDER
    left, right = _times(s, _BASE), _add(r, _times(k, a))
    return (left[0] * right[2] - right[0] * left[2]) % _P == 0 == (left[1] * right[2] - right[1] * left[2]) % _P


def public_key_of(pem: bytes) -> bytes:
    """The 32 bytes of an Ed25519 public key in a PEM file; Failed for anything else."""
    lines = [line.strip() for line in pem.splitlines()]
    if lines[:1] != [b"-----BEGIN PUBLIC KEY-----"] or b"-----END PUBLIC KEY-----" not in lines:
        raise Failed("the key is no PEM file of a public key")
    der = base64.b64decode(b"".join(lines[1 : lines.index(b"-----END PUBLIC KEY-----")]))
    if len(der) != len(_DER_PREFIX) + 32 or not der.startswith(_DER_PREFIX):
        raise Failed("the key is no Ed25519 public key")
    return der[len(_DER_PREFIX) :]


def checkpoints_in(text: bytes, public_key: bytes) -> list[dict[str, Any]]:
    """The checkpoints of a file, one a line, each signed by the key; Failed when one is not."""
    found = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not found:
        raise Failed("there is no checkpoint in the file")
    for checkpoint in found:
        check_signature(checkpoint, public_key)
    return found


def check_signature(checkpoint: dict[str, Any], public_key: bytes) -> None:
    """Failed unless the checkpoint is of a known format and signed by the key."""
    if checkpoint.get("format") != CHECKPOINT_FORMAT:
        raise Failed(f"not a checkpoint of format {CHECKPOINT_FORMAT}")
    signed = {name: value for name, value in checkpoint.items() if name != "signature"}
    message = json.dumps(signed, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    if not is_signed(message, base64.b64decode(checkpoint["signature"]), public_key):
        raise Failed(f"the checkpoint at record {checkpoint['size']} is not signed by this key")


# The tree: RFC 6962, section 2.1. Leaf n is SHA-256(0x00, sha256 of record n + 1).
def _leaf(sha256: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + sha256).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


class _Tree:
    """Complete subtrees side by side, each smaller than the one before, with how many leaves they have."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self.size = 0
        self._peaks: list[tuple[int, bytes]] = []
        for block in blocks:
            self.add(block, _BLOCK_LEAVES)

    def add(self, subtree: bytes, leaves: int = 1) -> None:
        self.size += leaves
        while self._peaks and self._peaks[-1][0] == leaves:
            subtree = _node(self._peaks.pop()[1], subtree)
            leaves *= 2
        self._peaks.append((leaves, subtree))

    def root(self) -> bytes:
        found = self._peaks[-1][1]
        for _, peak in self._peaks[-2::-1]:
            found = _node(peak, found)
        return found


def split_hashes(joined: bytes) -> list[bytes]:
    """The hashes that a path or a tree file is made of; Failed when it is torn."""
    if len(joined) % _HASH_BYTES:
        raise Failed("the hashes are torn: they are not a multiple of 32 bytes")
    return [joined[at : at + _HASH_BYTES] for at in range(0, len(joined), _HASH_BYTES)]


def root_from_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root that an audit path leads to; Failed when the path has not the length it must have."""
    at, last, found = index, size - 1, leaf
    if not 0 <= at <= last:
        raise Failed(f"no audit path leads to leaf {index} of a tree of {size}")
    for sibling in path:
        if last == 0:
            raise Failed("the audit path is too long")
        if at & 1 or at == last:
            found = _node(sibling, found)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            found = _node(found, sibling)
        at, last = at >> 1, last >> 1
    if last:
        raise Failed("the audit path is too short")
    return found


def roots_from_consistency(old_size: int, new_size: int, old_root: bytes, path: Sequence[bytes]) -> tuple[bytes, bytes]:
    """The old and the new root that a consistency proof leads to; Failed when it has not the length it must have."""
    if not 0 < old_size <= new_size:
        raise Failed(f"a tree of {new_size} records does not grow out of one of {old_size}")
    hashes = [old_root, *path] if old_size & (old_size - 1) == 0 or old_size == new_size else list(path)
    at, last = old_size - 1, new_size - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    if not hashes or (old_size == new_size and path):
        raise Failed("the consistency proof has not the length it must have")
    old = new = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise Failed("the consistency proof is too long")
        if at & 1 or at == last:
            old, new = _node(sibling, old), _node(sibling, new)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            new = _node(new, sibling)
        at, last = at >> 1, last >> 1
    if last and old_size != new_size:
        raise Failed("the consistency proof is too short")
    return old, new


# The journal: segments of records, each bound to the one before by SHA-256(its sha256, payload).
def records(directory: Path, begins_at: int, notes: list[str]) -> Iterator[Record]:
    """Every record of a journal in order, from `begins_at` or earlier; Failed at the first that does not follow."""
    paths = sorted(path for path in directory.iterdir() if _SEGMENT.fullmatch(path.name))
    if not paths:
        raise Failed(f"{directory} holds no journal segment")
    following, previous = int(paths[0].stem), bytes(32) if int(paths[0].stem) == 1 else b""
    if following > begins_at:
        raise Failed(f"records {begins_at} to {following - 1} are missing: the journal begins at record {following}")
    for path in paths:
        if int(path.stem) != following:
            raise Failed(f"{path.name}: record {following} should follow, so records or whole segments are missing")
        with path.open("rb") as file:
            for record in _segment(path.name, file, following, previous, notes if path is paths[-1] else None):
                yield record
                following, previous = record.seq + 1, record.sha256


def _segment(name: str, file: BinaryIO, seq: int, previous: bytes, notes: list[str] | None) -> Iterator[Record]:
    """The records of one segment; in the last one, which has `notes`, an unfinished write may stand at the end."""
    is_first, at, looked_twice_at = True, 0, -1
    while True:
        frame = file.read(_HEADER.size)
        length, sha256 = _HEADER.unpack(frame) if len(frame) == _HEADER.size else (0, b"")
        payload = file.read(length) if length <= _PAYLOAD_BYTES_MAX else b""
        is_whole = 0 < length == len(payload)
        if is_whole and is_first and b"\0" not in payload:
            previous = _head_previous(name, seq, payload, previous)
        if not is_whole or hashlib.sha256(previous + payload).digest() != sha256:
            try:
                note = _end(f"{name}: record {seq}", frame + payload, file, is_torn=not is_whole or b"\0" in payload)
            except Failed:
                if notes is None or looked_twice_at == at:
                    raise
                # A writer that lives may have written on since: what was read before what stands behind it is old.
                looked_twice_at = at
                file.seek(0, os.SEEK_END)
                file.seek(at)
                continue
            if note and notes is None:
                raise Failed(f"{note}, but later segments exist")
            if note and notes is not None:
                notes.append(note)
            return
        envelope = _ENVELOPE.match(payload)
        if envelope is None or int(envelope[1]) != seq:
            raise Failed(f"{name}: record {seq} says that it is another")
        yield Record(seq, envelope[2].decode(), payload, sha256)
        seq, previous, is_first, at = seq + 1, sha256, False, file.tell()


def _head_previous(name: str, seq: int, payload: bytes, previous: bytes) -> bytes:
    try:
        said = bytes.fromhex(json.loads(payload)["previous_sha256"])
    except (ValueError, KeyError, TypeError):
        raise Failed(f"{name}: record {seq} does not open its segment as a snapshot") from None
    if previous and said != previous:
        raise Failed(f"{name}: record {seq} does not follow the segment before")
    return said


def _end(place: str, found: bytes, file: BinaryIO, *, is_torn: bool) -> str:
    """Failed unless nothing follows the last record, or what was being written when its writer was killed: a note."""
    behind = b""
    while not behind and (chunk := file.read(1 << 20)):
        behind = chunk.strip(b"\0")
    found = found.rstrip(b"\0")
    if behind or (found and not is_torn):
        raise Failed(f"{place} is not what was written, or its length was changed")
    return f"{place} is an unfinished write of {len(found)} bytes" if found else ""


@dataclass
class Report:
    """What a journal was found to hold; amounts are in the unit that ends their name."""

    first_seq: int = 0
    last_seq: int = 0
    last_sha256: str = ""
    checkpoint_seq: int = 0
    checkpoints: int = 0
    roots: int = 0
    unnumbered_rows: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    amounts: Counter[str] = field(default_factory=Counter)
    charges: Counter[tuple[str, str, int, str]] = field(default_factory=Counter)
    org_seqs: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def take_usage(self, record: Record) -> None:
        """Adds one row of usage; Failed when its number does not follow that of its org's row before."""
        body = json.loads(record.payload)
        org, number = body.get("org", ""), body.get("org_seq", 0)
        known = self.org_seqs.get(org, 0)
        if number or known:
            if number != known + 1:
                raise Failed(f"record {record.seq}: row {known + 1} of org {org!r} is missing, this is row {number}")
            self.org_seqs[org] = number
        else:
            self.unnumbered_rows += 1
        self.rows[body.get("status", "")] += 1
        for name in AMOUNTS:
            if name in body:
                self.amounts[name] += body[name]
        for budget, counter, window_start_s, resource, amount in body.get("charges", ()):
            self.charges[budget, counter, window_start_s, resource] += amount

    def take_snapshot(self, record: Record) -> None:
        """Compares the rows counted per org with what the writer had counted."""
        said = json.loads(record.payload).get("org_seqs")
        if said is not None and record.seq == self.first_seq:
            self.org_seqs = dict(said)
        elif said is not None and said != self.org_seqs:
            raise Failed(f"record {record.seq}: the snapshot counts other rows per org than stand before it")

    def as_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return {**vars(self), "charges": [[*key, amount] for key, amount in sorted(self.charges.items())]}

    def lines(self) -> Iterator[str]:
        """The report as lines for people."""
        yield f"records {self.first_seq} to {self.last_seq} are whole, in order and bound each to the one before"
        if self.first_seq > 1:
            yield f"records 1 to {self.first_seq - 1} are not here: their rows are in no sum below"
        if self.checkpoints:
            yield f"signed: all up to record {self.checkpoint_seq}; {self.roots} of {self.checkpoints} roots recomputed"
        unsigned = self.last_seq - self.checkpoint_seq
        if unsigned:
            yield f"not signed: {unsigned} records behind them; a later checkpoint covers these"
        yield from (f"note: {note}" for note in self.notes)
        yield f"usage rows: {dict(self.rows)}, of which without a number: {self.unnumbered_rows}"
        yield from (f"  last row of org {org}: {number}" for org, number in sorted(self.org_seqs.items()))
        yield from (f"  {name}: {amount}" for name, amount in sorted(self.amounts.items()))
        shown = [f"  {' '.join(map(str, key))}: {amount}" for key, amount in sorted(self.charges.items())]
        yield f"charges (budget, counter, window's start, resource): {len(shown)} sums"
        yield from shown[:_LINES_SHOWN]
        if len(shown) > _LINES_SHOWN:
            yield "  ... all of them with --json"


def verified_journal(
    directory: Path,
    checkpoints: Sequence[dict[str, Any]] = (),
    *,
    older: Sequence[dict[str, Any]] = (),
    begins_at: int = 1,
    blocks: Sequence[bytes] = (),
    seen: Callable[[Record], None] = lambda record: None,
) -> Report:
    """Reads a whole journal against checkpoints whose signatures were checked; Failed at the first contradiction.

    `blocks` are hashes of 256 leaves each: with those of the records that are gone, roots can be computed. What is
    signed of records that are gone says nothing of those that are kept: such a checkpoint fails, unless it is one of
    `older` and another one holds what is kept.
    """
    report = Report(checkpoints=len(checkpoints) + len(older))
    by_size: dict[int, list[dict[str, Any]]] = {}
    for checkpoint in (*checkpoints, *older):
        by_size.setdefault(checkpoint["size"], []).append(checkpoint)
    tree = None
    for record in records(directory, begins_at, report.notes):
        if not report.first_seq:
            report.first_seq = record.seq
            gone = -(-(record.seq - 1) // _BLOCK_LEAVES)
            tree = _Tree(blocks[:gone]) if len(blocks) >= gone else None
            _compare_before(record, by_size, tree, report)
        if tree is not None and record.seq > tree.size:
            tree.add(_leaf(record.sha256))
        if record.kind == "usage":
            report.take_usage(record)
        elif record.kind == "snapshot":
            report.take_snapshot(record)
        report.last_seq = record.seq
        for checkpoint in by_size.get(record.seq, ()):
            _compare(checkpoint, record, tree, report)
        seen(record)
        report.last_sha256 = record.sha256.hex()
    if by_size and max(by_size) > report.last_seq:
        raise Failed(f"the journal ends at record {report.last_seq}, a checkpoint was signed at {max(by_size)}")
    _check_beginning(checkpoints, older, report)
    return report


def _compare_before(
    first: Record, by_size: dict[int, list[dict[str, Any]]], tree: _Tree | None, report: Report
) -> None:
    """Holds the record that the first one kept says it follows to what was signed up to there."""
    if first.seq > 1:
        sha256 = bytes.fromhex(json.loads(first.payload)["previous_sha256"])
        for checkpoint in by_size.get(first.seq - 1, ()):
            _compare(checkpoint, Record(first.seq - 1, "", b"", sha256), tree, report)


def _check_beginning(checkpoints: Sequence[dict[str, Any]], older: Sequence[dict[str, Any]], report: Report) -> None:
    """Failed where what is kept begins behind all that was signed, or behind a checkpoint that nothing ties to it."""
    first = report.first_seq
    if report.checkpoints and not report.checkpoint_seq:
        raise Failed(f"all that was signed is before record {first}, the first one kept: nothing proves what is here")
    for checkpoint in checkpoints:
        if checkpoint["size"] < first - 1:
            raise Failed(
                f"the checkpoint at {checkpoint['size']} stands before record {first}, the first one kept: prove with "
                f"`bursar ledger consistency` that a later one continues it, and give the later one here"
            )
    passed_over = sum(checkpoint["size"] < first - 1 for checkpoint in older)
    if passed_over:
        report.notes.append(f"checkpoints of records that are not here, so not compared with any: {passed_over}")


def _compare(checkpoint: dict[str, Any], record: Record, tree: _Tree | None, report: Report) -> None:
    if checkpoint["last_sha256"] != record.sha256.hex():
        raise Failed(f"record {record.seq} is not the one that the checkpoint was signed for")
    if tree is not None and tree.size == record.seq:
        if tree.root().hex() != checkpoint["root"]:
            raise Failed(f"the root over {record.seq} records is not the one that was signed")
        report.roots += 1
    report.checkpoint_seq = record.seq


def verified_proof(proof: dict[str, Any], public_key: bytes) -> str:
    """What an inclusion proof proves, in a sentence; Failed when it proves nothing."""
    if proof.get("format") != PROOF_FORMAT:
        raise Failed(f"not a proof of format {PROOF_FORMAT}")
    checkpoint, seq = proof["checkpoint"], proof["seq"]
    check_signature(checkpoint, public_key)
    what = f"record {seq}, whose bytes are not shown,"
    if "payload" in proof:
        payload = proof["payload"].encode()
        envelope = _ENVELOPE.match(payload)
        if envelope is None or int(envelope[1]) != seq:
            raise Failed("the record is another than the one that the proof is for")
        what = f"record {seq}, event {json.loads(payload)['event_id']},"
        sha256 = hashlib.sha256(_hash_in(proof, "previous_sha256") + payload).digest()
    else:
        sha256 = _hash_in(proof, "sha256")
    path = split_hashes(base64.b64decode(proof["path"]))
    if root_from_path(_leaf(sha256), seq - 1, checkpoint["size"], path).hex() != checkpoint["root"]:
        raise Failed("the record is not in the tree that was signed")
    return f"{what} of SHA-256 {sha256.hex()} is among the {checkpoint['size']} signed of {checkpoint['writer']}"


def _hash_in(proof: dict[str, Any], name: str) -> bytes:
    found = bytes.fromhex(proof[name])
    if len(found) != _HASH_BYTES:
        raise Failed(f"{name} of the proof has {len(found)} bytes, not {_HASH_BYTES}")
    return found


def verified_consistency(old: dict[str, Any], new: dict[str, Any], proof: dict[str, Any]) -> str:
    """What a consistency proof proves of two checkpoints whose signatures were checked; Failed when nothing."""
    if proof.get("format") != CONSISTENCY_FORMAT:
        raise Failed(f"not a proof of format {CONSISTENCY_FORMAT}")
    if old["writer"] != new["writer"]:
        raise Failed("the checkpoints are of different writers")
    path = split_hashes(base64.b64decode(proof["path"]))
    roots = roots_from_consistency(old["size"], new["size"], bytes.fromhex(old["root"]), path)
    if (roots[0].hex(), roots[1].hex()) != (old["root"], new["root"]):
        raise Failed(f"the {new['size']} records do not begin with the {old['size']} that were signed before")
    return f"the {new['size']} records of {new['writer']} begin with the {old['size']} that were signed before"


def _run_journal(options: argparse.Namespace) -> str:
    checkpoints = []
    if options.checkpoint is not None:
        checkpoints = checkpoints_in(options.checkpoint.read_bytes(), public_key_of(options.key.read_bytes()))
    blocks = split_hashes(options.tree.read_bytes()) if options.tree is not None else []
    report = verified_journal(options.directory, checkpoints, begins_at=options.begins_at, blocks=blocks)
    return json.dumps(report.as_json(), indent=2) if options.json else "\n".join(report.lines())


def _run_proof(options: argparse.Namespace) -> str:
    key, proof = public_key_of(options.key.read_bytes()), json.loads(options.file.read_bytes())
    said = verified_proof(proof, key)
    if options.checkpoint is not None:
        own = checkpoints_in(options.checkpoint.read_bytes(), key)
        if proof["checkpoint"] not in own:
            raise Failed("the proof was made for another checkpoint than those given")
    return said


def _run_consistency(options: argparse.Namespace) -> str:
    key = public_key_of(options.key.read_bytes())
    old, new = (checkpoints_in(path.read_bytes(), key)[-1] for path in (options.old, options.new))
    return verified_consistency(old, new, json.loads(options.proof.read_bytes()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Verifies a ledger's journal, proofs and checkpoints.")
    commands = parser.add_subparsers(required=True)
    journal = commands.add_parser("journal", help="a writer's whole journal")
    journal.add_argument("directory", type=Path)
    journal.add_argument("--checkpoint", type=Path, help="signed checkpoints, one a line")
    journal.add_argument("--key", type=Path, help="the public key that signed them")
    journal.add_argument("--begins-at", type=int, default=1, help="the first record that must still be there")
    journal.add_argument("--tree", type=Path, help="<writer>.tree: hashes that stand for the records before")
    journal.add_argument("--json", action="store_true", help="print all sums as JSON")
    journal.set_defaults(run=_run_journal)
    proof = commands.add_parser("proof", help="that one record is in what was signed")
    proof.add_argument("file", type=Path)
    proof.add_argument("--checkpoint", type=Path, help="your own copies: the proof must be for one of them")
    proof.add_argument("--key", type=Path, required=True)
    proof.set_defaults(run=_run_proof)
    consistency = commands.add_parser("consistency", help="that a checkpoint continues an older one")
    for name in ("old", "new", "proof"):
        consistency.add_argument(name, type=Path)
    consistency.add_argument("--key", type=Path, required=True)
    consistency.set_defaults(run=_run_consistency)
    return parser


def _printable(text: str) -> str:
    """The text without what would steer a terminal, for names in a journal are not the auditor's."""
    return "".join(each if each.isprintable() or each == "\n" else "?" for each in text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Verifies what the arguments name and returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if getattr(options, "checkpoint", None) is not None and options.key is None:
        parser.error("--checkpoint needs --key")
    try:
        sys.stdout.write(f"{_printable(options.run(options))}\n")
    except Failed as failed:
        sys.stderr.write(f"NOT PROVED: {_printable(str(failed))}\n")
        return 1
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        sys.stderr.write(f"NOT PROVED: what was given cannot be read: {error!r}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
