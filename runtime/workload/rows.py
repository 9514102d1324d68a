"""Rows of a trace file: its lines one at a time and bounded in length, and the checks that every format shares."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson

from runtime.workload.port import Arrival, TraceError

LINE_BYTES_MAX = 1 << 20
# More than any model's context; and ids of so many blocks are still no burden.
TOKENS_MAX = 1 << 24
_COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"BZh", b"\xfd7zXZ")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers from 1, stripped, empty ones left out; one is in memory at a time."""
    number = 0
    try:
        if path.exists() and not path.is_file():
            raise TraceError(f"{path} is no file: a trace is read several times, which a pipe or a folder cannot be")
        with path.open("rb") as file:
            while line := file.readline(LINE_BYTES_MAX + 1):
                number += 1
                if number == 1:
                    line = _begun(path, line)
                if len(line) > LINE_BYTES_MAX:
                    raise wrong(path, number, f"is longer than {LINE_BYTES_MAX:,} bytes: this is no line of a trace")
                if stripped := line.strip():
                    yield number, stripped
    except OSError as error:
        raise TraceError(f"{path} cannot be read: {error.strerror or error}") from error


def _begun(path: Path, line: bytes) -> bytes:
    if line.startswith(_COMPRESSED):
        raise TraceError(f"{path} is compressed: unpack it first")
    if b"\0" in line:
        raise TraceError(f"{path} is binary: a trace is a text file")
    return line.removeprefix(_BYTE_ORDER_MARK)


def wrong(path: Path, number: int, what: str) -> TraceError:
    """That a line of a file is not what it must be."""
    return TraceError(f"{path}:{number}: {what}")


def timed(path: Path, rows: Iterable[tuple[int, Arrival]]) -> Iterator[Arrival]:
    """The arrivals of numbered lines, timed from the first of them; TraceError where time goes back or there is none.

    The first arrival is of the trace's begin; one that comes after another request is timed from that one's end.
    """
    first_us, last_us, index = 0, 0, 0
    for index, (number, arrival) in enumerate(rows, start=1):
        if arrival.after != -1:
            yield arrival
            continue
        if index == 1:
            first_us = last_us = arrival.at_us
        if arrival.at_us < last_us:
            raise wrong(
                path, number, f"comes {last_us - arrival.at_us:,} us before the row above it: sort the trace by time"
            )
        last_us = arrival.at_us
        yield arrival if not first_us else arrival._replace(at_us=last_us - first_us)
    if not index:
        raise TraceError(f"{path} has no rows: there is nothing to run")


def json_row(path: Path, number: int, line: bytes, needed: tuple[str, ...]) -> dict[str, Any]:
    """The JSON object of a line, with the members that it needs."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise wrong(path, number, f"is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise wrong(path, number, "is not a JSON object")
    missing = [name for name in needed if name not in row]
    if missing:
        raise wrong(path, number, f"has no {', '.join(missing)}")
    return row


def length(path: Path, number: int, name: str, value: Any) -> int:
    """A length in tokens: a whole number from 1 on, as a request has a prompt and generates at least one token."""
    if type(value) is not int:
        raise wrong(path, number, f"{name} is {value!r:.40}: it must be a whole number of tokens")
    if not 1 <= value <= TOKENS_MAX:
        raise wrong(path, number, f"{name} is {value}: a length is from 1 to {TOKENS_MAX:,} tokens")
    return value


def blocks_of(tokens: int, block_tokens: int) -> int:
    """How many blocks so many tokens take, the last of which they may fill in part."""
    return -(-tokens // block_tokens)
