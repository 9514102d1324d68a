"""Bursar's own trace: a header line and a JSON line for each request, whose ids of blocks are written as ranges.

    {"bursar_trace":1,"name":"acme","block_tokens":16}
    {"at_us":0,"prompt_tokens":100,"output_tokens":20,"blocks":[[0,7]]}
    {"at_us":250000,"prompt_tokens":120,"output_tokens":8,"blocks":[[0,4],[7,4]]}

A range is its first id and how many there are; `blocks`, `priority` and `after` are left out where they say nothing.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from runtime.workload.port import Arrival, TraceError, Workload
from runtime.workload.rows import blocks_of, json_row, length, lines, timed, wrong

VERSION = 1
FORMAT = "bursar_trace"
BLOCK_TOKENS_MAX = 1 << 16
_NAME_CHARS_MAX = 200
_MEMBERS = ("at_us", "prompt_tokens", "output_tokens")
_AT_US_MAX = _ID_MAX = 1 << 62


def is_bursar(first_row: dict[str, Any]) -> bool:
    """Whether a file whose first line is this object is such a trace."""
    return FORMAT in first_row


class BursarTrace:
    """Such a file; iterating reads it anew. TraceError already here where its header is wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path
        number, line = next(lines(path), (0, b""))
        if not number:
            raise TraceError(f"{path} is empty")
        header = json_row(path, number, line, (FORMAT, "name", "block_tokens"))
        if header[FORMAT] != VERSION:
            raise wrong(
                path, number, f"is of version {header[FORMAT]!r:.20}, and this Bursar reads {VERSION}: export it again"
            )
        name, block_tokens = header["name"], header["block_tokens"]
        if not isinstance(name, str) or not 0 < len(name) <= _NAME_CHARS_MAX:
            raise wrong(path, number, f"name must be a text of 1 to {_NAME_CHARS_MAX} characters")
        if type(block_tokens) is not int or not 1 <= block_tokens <= BLOCK_TOKENS_MAX:
            raise wrong(path, number, f"block_tokens must be a whole number from 1 to {BLOCK_TOKENS_MAX:,}")
        self.name = name
        self.block_tokens = block_tokens

    def __iter__(self) -> Iterator[Arrival]:
        """Each row in order. TraceError."""
        return timed(self.path, self._rows())

    def _rows(self) -> Iterator[tuple[int, Arrival]]:
        rows = lines(self.path)
        next(rows)
        for index, (number, line) in enumerate(rows):
            yield number, self._arrival(index, number, line)

    def _arrival(self, index: int, number: int, line: bytes) -> Arrival:
        row = json_row(self.path, number, line, _MEMBERS)
        prompt = length(self.path, number, "prompt_tokens", row["prompt_tokens"])
        output = length(self.path, number, "output_tokens", row["output_tokens"])
        return Arrival(
            self._whole(number, "at_us", row["at_us"], 0, _AT_US_MAX),
            prompt,
            output,
            self._ids(number, row.get("blocks", []), prompt, output),
            self._whole(number, "priority", row.get("priority", 0), -_AT_US_MAX, _AT_US_MAX),
            self._after(number, row.get("after", -1), index),
        )

    def _whole(self, number: int, name: str, value: Any, least: int, most: int) -> int:
        if type(value) is not int or not least <= value <= most:
            raise wrong(self.path, number, f"{name} is {value!r:.40}: it must be a whole number from {least} to {most}")
        return value

    def _after(self, number: int, value: Any, index: int) -> int:
        if type(value) is not int or not -1 <= value < index:
            raise wrong(
                self.path, number, f"after is {value!r:.40}: it must be the index of a request above, the first being 0"
            )
        return value

    def _ids(self, number: int, ranges: Any, prompt: int, output: int) -> tuple[int, ...]:
        least, most = blocks_of(prompt, self.block_tokens), blocks_of(prompt + output, self.block_tokens)
        ids: list[int] = []
        for each in _listed(ranges):
            if not _is_range(each) or len(ids) + each[1] > most:
                raise wrong(self.path, number, f"blocks must be a list of [first id, count], at most {most} ids in all")
            ids.extend(range(each[0], each[0] + each[1]))
        if ids and len(ids) < least:
            raise wrong(self.path, number, f"has {len(ids)} ids of blocks: {prompt} tokens take {least}")
        return tuple(ids)


def _listed(ranges: Any) -> list[Any]:
    return ranges if isinstance(ranges, list) else [None]


def _is_range(each: Any) -> bool:
    if not isinstance(each, list) or len(each) != 2 or type(each[0]) is not int or type(each[1]) is not int:
        return False
    return 0 <= each[0] <= _ID_MAX and each[1] > 0


def write_trace(file: BinaryIO, workload: Workload) -> int:
    """Write a workload as such a trace, one request at a time, and return how many there were."""
    header = {FORMAT: VERSION, "name": workload.name, "block_tokens": workload.block_tokens}
    file.write(orjson.dumps(header, option=orjson.OPT_APPEND_NEWLINE))
    count = 0
    for arrival in workload:
        file.write(orjson.dumps(_row(arrival), option=orjson.OPT_APPEND_NEWLINE))
        count += 1
    return count


def _row(arrival: Arrival) -> dict[str, Any]:
    row: dict[str, Any] = {
        "at_us": arrival.at_us,
        "prompt_tokens": arrival.prompt_tokens,
        "output_tokens": arrival.output_tokens,
    }
    if arrival.blocks:
        row["blocks"] = ranges_of(arrival.blocks)
    if arrival.priority:
        row["priority"] = arrival.priority
    if arrival.after != -1:
        row["after"] = arrival.after
    return row


def ranges_of(ids: Iterable[int]) -> list[tuple[int, int]]:
    """Ids in their order as ranges of ids that follow each other: the first and how many."""
    found: list[tuple[int, int]] = []
    first, count = 0, 0
    for each in ids:
        if count and each == first + count:
            count += 1
            continue
        if count:
            found.append((first, count))
        first, count = each, 1
    return [*found, (first, count)] if count else found
