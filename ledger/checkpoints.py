"""Checkpoints: what is signed of a writer's tree, and the two files that a home keeps of each writer.

`<writer>.jsonl` holds signed checkpoints, oldest first. `<writer>.tree` holds the hashes of the tree's blocks: a cache,
because they follow from `events.sha256` of the store.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ledger.merkle import BLOCK_LEAVES, HASH_BYTES

FORMAT = "bursar-checkpoint/1"
LINES_MAX = 4_096
NEWEST_KEPT = 1_024
PAGE_LEAVES = 1 << 16
_US = 1_000_000
_NUMBERS = frozenset({"size", "ts_us"})
_THINNED_TO_S = (3_600, 86_400, 30 * 86_400)
_LEAVES_SQL = """
SELECT seq, sha256 FROM events WHERE writer = {writer:String} AND seq > {after:UInt64} AND seq <= {upto:UInt64}
ORDER BY seq
"""
_NEWEST_SQL = "SELECT max(seq) FROM events WHERE writer = {writer:String}"


class CheckpointsDamaged(Exception):
    """A file of checkpoints does not hold what was written to it."""


class LeavesMissing(Exception):
    """The store cannot give the hashes of records that a tree needs."""


class Checkpoint(NamedTuple):
    """A signed statement: that the first `size` records of a writer have this root, and the last of them this hash."""

    writer: str
    size: int
    root: str
    last_sha256: str
    ts_us: int
    key_id: str
    signature: str = ""

    def body(self) -> dict[str, Any]:
        """What is signed, as a JSON object."""
        return {"format": FORMAT, **{name: value for name, value in self._asdict().items() if name != "signature"}}

    def message(self) -> bytes:
        """The bytes that are signed: the body as JSON with sorted keys and without spaces."""
        return _canonical(self.body())

    def as_json(self) -> dict[str, Any]:
        """The checkpoint with its signature as a JSON object."""
        return {**self.body(), "signature": self.signature}

    def line(self) -> bytes:
        """The checkpoint with its signature as a line of JSON, newline included."""
        return _canonical(self.as_json()) + b"\n"


def parse(line: bytes) -> Checkpoint:
    """The checkpoint of a line of JSON; ValueError when it is none."""
    try:
        body = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(body, dict) or body.pop("format", "") != FORMAT:
        raise ValueError(f"not of format {FORMAT}")
    try:
        checkpoint = Checkpoint(**body)
    except TypeError as error:
        raise ValueError(str(error)) from None
    for name, value in body.items():
        if type(value) is not (int if name in _NUMBERS else str):
            raise ValueError(f"{name} is of another type")
    return checkpoint


class CheckpointLog:
    """The signed checkpoints of one writer in a home; bounded by thinning out the older ones.

    A later checkpoint covers all records of an earlier one, and the tree proves that the two agree. What goes with an
    earlier one is how closely it bounds in time when a record stood, so of older ones the last of each hour, day or
    month stays.
    """

    def __init__(self, path: Path, *, lines_max: int = LINES_MAX, newest_kept: int = NEWEST_KEPT) -> None:
        self.path = path
        self._lines_max = lines_max
        self._newest_kept = newest_kept
        self._count = -1

    def read(self) -> list[Checkpoint]:
        """All of them, oldest first; a torn last line does not count. CheckpointsDamaged."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
        found = []
        for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
            try:
                found.append(parse(line))
            except ValueError as error:
                raise CheckpointsDamaged(
                    f"{self.path}: line {number} is no checkpoint ({error}); put the file back from a copy"
                ) from error
        return found

    def append(self, checkpoint: Checkpoint) -> None:
        """Adds one, durably."""
        if not 0 <= self._count < self._lines_max:
            # At the first append after a start, a torn line goes too.
            kept = thinned(self.read(), self._lines_max * 3 // 4, self._newest_kept)
            write_durably(self.path, b"".join(each.line() for each in kept))
            self._count = len(kept)
        with self.path.open("ab") as file:
            file.write(checkpoint.line())
            file.flush()
            os.fdatasync(file.fileno())
        self._count += 1


def thinned(checkpoints: list[Checkpoint], lines_max: int, newest_kept: int) -> list[Checkpoint]:
    """Those that stay when there are more than `lines_max`: the newest, and of the others the last of each period."""
    kept = checkpoints
    for period_s in _THINNED_TO_S:
        if len(kept) <= lines_max:
            return kept
        older, newest = checkpoints[:-newest_kept], checkpoints[-newest_kept:]
        last_of_each = {checkpoint.ts_us // (period_s * _US): checkpoint for checkpoint in older}
        kept = [*sorted(last_of_each.values(), key=lambda each: each.size), *newest]
    return kept[-lines_max:]


class BlockFile:
    """The block hashes of one writer's tree, 32 bytes each, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, first: int, last: int) -> list[bytes]:
        """The hashes of blocks `first` to `last`, `last` excluded: fewer when the file has fewer."""
        try:
            with self.path.open("rb") as file:
                content = os.pread(file.fileno(), (last - first) * HASH_BYTES, first * HASH_BYTES)
        except FileNotFoundError:
            return []
        whole = len(content) - len(content) % HASH_BYTES
        return [content[at : at + HASH_BYTES] for at in range(0, whole, HASH_BYTES)]

    def write(self, first: int, blocks: list[bytes]) -> None:
        """Puts hashes in place from block `first` on; what stood there is replaced and what stood behind it goes."""
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.ftruncate(fd, first * HASH_BYTES)
            os.pwrite(fd, b"".join(blocks), first * HASH_BYTES)
        finally:
            os.close(fd)


class Leaves:
    """The record hashes of a store by `(writer, seq)`, read page by page."""

    def __init__(self, select: Callable[..., Iterable[Sequence[object]]]) -> None:
        """`select(sql, **parameters)` gives the rows of one reading statement, and raises what it raises."""
        self._select = select

    def newest(self, writer: str) -> int:
        """The seq of a writer's last record, 0 when it has none."""
        return max((int(str(row[0])) for row in self._select(_NEWEST_SQL, writer=writer)), default=0)

    def read(self, writer: str, after: int, upto: int) -> Iterator[list[bytes]]:
        """The `sha256` of records `after` + 1 to `upto`, in order. LeavesMissing when one is not there once."""
        while after < upto:
            end = min(upto, after + PAGE_LEAVES)
            page = []
            for seq, sha256 in self._select(_LEAVES_SQL, writer=writer, after=after, upto=end):
                after += 1
                if int(str(seq)) != after:
                    raise LeavesMissing(f"the store has record {after} of {writer} not at all, or twice")
                try:
                    page.append(bytes.fromhex(str(sha256)))
                except ValueError as error:
                    raise LeavesMissing(f"the store's record {after} of {writer} has no hash: {sha256}") from error
            if after < end:
                raise LeavesMissing(f"the store has not record {after + 1} of {writer}")
            yield page

    def block(self, writer: str, number: int, size: int) -> list[bytes]:
        """The `sha256` of the records of one block, in a tree of `size`. LeavesMissing."""
        after = number * BLOCK_LEAVES
        return [each for page in self.read(writer, after, min(size, after + BLOCK_LEAVES)) for each in page]


def write_durably(path: Path, content: bytes) -> None:
    """Replaces a file at once: readers see all of the old or all of the new."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
