"""The notary: signs, for each writer, the root over all of its records that are in the store, and has it exported.

It works in the ledger process, batch by batch behind the shipper. What it signed once it never signs over: when the
records no longer have the root of the last signed checkpoint, it says so and signs nothing more for that writer.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledger.batch import Batch
from ledger.checkpoints import (
    BlockFile,
    Checkpoint,
    CheckpointLog,
    CheckpointsDamaged,
    Leaves,
    LeavesMissing,
    write_durably,
)
from ledger.destination import StoreAway
from ledger.exports import Exporter
from ledger.merkle import BLOCK_LEAVES, Tree
from ledger.signing import BEFORE_ENV, Signer, is_signed

CLOSE_S = 5.0

_log = logging.getLogger("ledger.notary")


class HistoryChanged(Exception):
    """The records are not those that a checkpoint was signed for."""


@dataclass(slots=True)
class _Chronicle:
    """One writer's tree with its two files; `signed` is the size last signed, `last_sha256` that of the last leaf."""

    writer: str
    log: CheckpointLog
    blocks: BlockFile
    tree: Tree
    signed: int = 0
    last_sha256: bytes = b""

    def extend(self, sha256s: Sequence[bytes]) -> None:
        """Appends the next records, and the blocks that they complete to the file."""
        if not sha256s:
            return
        first = self.tree.size // BLOCK_LEAVES
        completed = self.tree.extend(sha256s)
        if completed:
            self.blocks.write(first, completed)
        self.last_sha256 = sha256s[-1]


class Notary:
    """Signs checkpoints with one key into one folder. `status` may be called from any thread, the rest from one."""

    def __init__(
        self,
        folder: Path,
        signer: Signer | None,
        leaves: Leaves,
        exporters: Sequence[Exporter] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        """Without a signer nothing is signed: whoever has the key catches up. `now` is the Unix time in seconds."""
        self._folder = folder
        self._signer = signer
        self._leaves = leaves
        self._exporters = exporters
        self._now = now
        self._chronicles: dict[str, _Chronicle] = {}
        self._signed: dict[str, int] = {}
        self._alarms: dict[str, str] = {}
        self._condemned: set[str] = set()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if signer is not None and not (folder / f"{signer.key_id}.pub").exists():
            write_durably(folder / f"{signer.key_id}.pub", signer.public_pem)

    def resume(self, writers: Iterable[str]) -> None:
        """Takes up the trees of writers where they stand, signs what is in the store since, and exports the newest."""
        known = {path.stem for path in self._folder.glob("*.jsonl")}
        for writer in sorted({*writers, *known}):
            self._attend(writer, lambda chronicle: self._catch_up(chronicle, self._leaves.newest(chronicle.writer)))

    def sealed(self, batch: Batch) -> None:
        """Signs for the records up to the end of a batch, all of which are in the store; failures become alarms."""
        self._attend(batch.writer, lambda chronicle: self._take(chronicle, batch))

    def status(self) -> dict[str, Any]:
        """The size last signed by writer, what keeps one from being signed, and the state of the exports."""
        return {
            "key_id": self._signer.key_id if self._signer is not None else "",
            "signed": dict(self._signed),
            "alarms": dict(self._alarms),
            "exports": [exporter.status() for exporter in self._exporters],
        }

    def close(self, timeout_s: float = CLOSE_S) -> None:
        """Signs what is not signed yet and gives the exports a moment to deliver it."""
        for writer in list(self._alarms.keys() - self._condemned):
            self._attend(writer, lambda chronicle: self._catch_up(chronicle, self._leaves.newest(chronicle.writer)))
        for exporter in self._exporters:
            exporter.close(timeout_s)

    def _attend(self, writer: str, work: Callable[[_Chronicle], None]) -> None:
        """Does some work on a writer's tree. After a failure the next attempt begins with the files again."""
        if self._signer is None or writer in self._condemned:
            return
        try:
            chronicle = self._chronicles.get(writer) or self._open(writer, self._signer)
            self._chronicles[writer] = chronicle
            work(chronicle)
            self._alarms.pop(writer, None)
        except HistoryChanged as error:
            self._condemned.add(writer)
            self._alarm(writer, str(error))
        except (OSError, StoreAway, LeavesMissing, CheckpointsDamaged) as error:
            self._alarm(writer, str(error))

    def _alarm(self, writer: str, why: str) -> None:
        self._chronicles.pop(writer, None)
        if self._alarms.get(writer) != why:
            _log.error("no checkpoint is signed for %s: %s", writer, why)
        self._alarms[writer] = why

    def _open(self, writer: str, signer: Signer) -> _Chronicle:
        """The tree as its last checkpoint was signed for; LeavesMissing while the store lacks some of its records."""
        log = CheckpointLog(self._folder / f"{writer}.jsonl")
        blocks = BlockFile(self._folder / f"{writer}.tree")
        checkpoints = log.read()
        if not checkpoints:
            return _Chronicle(writer, log, blocks, Tree())
        last = checkpoints[-1]
        self._check_signature(last, log.path, signer)
        newest = self._leaves.newest(writer)
        if newest < last.size:
            raise LeavesMissing(f"the store has {newest} records, but {last.size} were signed at {_time(last)}")
        chronicle = self._as_signed(writer, log, blocks, last, blocks.read(0, last.size // BLOCK_LEAVES))
        if chronicle is None:
            chronicle = self._rebuilt(writer, log, blocks, last)
        self._signed[writer] = last.size
        for exporter in self._exporters:
            exporter.offer(last)
        if last.key_id != signer.key_id:
            # The same records, so that the key before need not be named again and an auditor can compare the two.
            chronicle.signed = 0
            self._sign(chronicle)
        return chronicle

    def _rebuilt(self, writer: str, log: CheckpointLog, blocks: BlockFile, last: Checkpoint) -> _Chronicle:
        """The same from the store alone, whose blocks take the file's place; HistoryChanged when that does not fit."""
        _log.warning("%s does not fit the last checkpoint: it is made again from the store", blocks.path)
        fresh = BlockFile(blocks.path.with_name(f"{blocks.path.name}.new"))
        chronicle = self._as_signed(writer, log, fresh, last, [])
        if chronicle is None:
            fresh.path.unlink(missing_ok=True)
            raise HistoryChanged(
                f"history was changed: its first {last.size} records have not the root that was signed at "
                f"{_time(last)}; `bursar ledger verify --store` says where"
            )
        if fresh.path.exists():
            fresh.path.replace(blocks.path)
        chronicle.blocks = blocks
        return chronicle

    def _as_signed(
        self, writer: str, log: CheckpointLog, blocks: BlockFile, last: Checkpoint, kept: list[bytes]
    ) -> _Chronicle | None:
        """The tree of the last checkpoint from some blocks and the store; None when that is another."""
        chronicle = _Chronicle(writer, log, blocks, Tree(kept), last.size)
        blocks.write(len(kept), [])
        # The last record is asked for even where a block holds it, to compare its hash.
        for page in self._leaves.read(writer, min(chronicle.tree.size, last.size - 1), last.size):
            chronicle.extend(page if chronicle.tree.size < last.size else [])
            chronicle.last_sha256 = page[-1]
        is_same = chronicle.tree.root().hex() == last.root and chronicle.last_sha256.hex() == last.last_sha256
        return chronicle if is_same else None

    @staticmethod
    def _check_signature(checkpoint: Checkpoint, path: Path, signer: Signer) -> None:
        """HistoryChanged unless the last checkpoint is signed by this key, or one that it was told to take over from.

        A public key that lies in the home says nothing: whoever put the checkpoint there can put it there too.
        """
        public = signer.trusted.get(checkpoint.key_id)
        if public is None:
            raise HistoryChanged(
                f"{path}: the last checkpoint is signed by key {checkpoint.key_id}, not by {signer.key_id}: if you "
                f"changed the key, start once with {BEFORE_ENV} naming your copy of the public key before it; if not, "
                f"someone put the file there: get it back from where checkpoints are exported"
            )
        if not is_signed(checkpoint.message(), checkpoint.signature, public):
            raise HistoryChanged(f"{path}: the last checkpoint is not signed by key {checkpoint.key_id}")

    def _take(self, chronicle: _Chronicle, batch: Batch) -> None:
        size = chronicle.tree.size
        if batch.last_seq <= size:
            return
        if batch.first_seq > size + 1:
            self._read_up_to(chronicle, batch.first_seq - 1)
        chronicle.extend([record.sha256 for record in batch.records if record.seq > size])
        self._sign(chronicle)

    def _catch_up(self, chronicle: _Chronicle, newest: int) -> None:
        self._read_up_to(chronicle, newest)
        self._sign(chronicle)

    def _read_up_to(self, chronicle: _Chronicle, seq: int) -> None:
        for page in self._leaves.read(chronicle.writer, chronicle.tree.size, seq):
            chronicle.extend(page)

    def _sign(self, chronicle: _Chronicle) -> None:
        tree, signer = chronicle.tree, self._signer
        if signer is None or tree.size == chronicle.signed:
            return
        unsigned = Checkpoint(
            writer=chronicle.writer,
            size=tree.size,
            root=tree.root().hex(),
            last_sha256=chronicle.last_sha256.hex(),
            ts_us=int(self._now() * 1e6),
            key_id=signer.key_id,
        )
        checkpoint = unsigned._replace(signature=signer.sign(unsigned.message()))
        chronicle.log.append(checkpoint)
        chronicle.signed = self._signed[chronicle.writer] = tree.size
        for exporter in self._exporters:
            exporter.offer(checkpoint)


def _time(checkpoint: Checkpoint) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(checkpoint.ts_us / 1e6))
