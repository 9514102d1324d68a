"""Mooncake's traces: JSON lines with when a request came, its lengths and the prefix-chained ids of its blocks.

Source: kvcache-ai/Mooncake, `FAST25-release/traces`. A block is of 512 tokens; the last id covers what is left.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.workload.port import Arrival
from runtime.workload.rows import blocks_of, json_row, length, lines, timed, wrong

BLOCK_TOKENS = 512
_MEMBERS = ("timestamp", "input_length", "output_length", "hash_ids")
_MS_MAX = 1 << 50


def is_mooncake(first_row: dict[str, Any]) -> bool:
    """Whether a file whose first line is this object is such a trace, or was meant to be one."""
    return not first_row.keys().isdisjoint(_MEMBERS[1:])


class MooncakeTrace:
    """Such a file; iterating reads it anew."""

    block_tokens = BLOCK_TOKENS

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem

    def __iter__(self) -> Iterator[Arrival]:
        """Each row in order. TraceError."""
        return timed(self.path, ((number, self._arrival(number, line)) for number, line in lines(self.path)))

    def _arrival(self, number: int, line: bytes) -> Arrival:
        row = json_row(self.path, number, line, _MEMBERS)
        prompt = length(self.path, number, "input_length", row["input_length"])
        output = length(self.path, number, "output_length", row["output_length"])
        return Arrival(self._at_us(number, row["timestamp"]), prompt, output, self._ids(number, row, prompt, output))

    def _at_us(self, number: int, value: Any) -> int:
        if type(value) not in (int, float) or not 0 <= value <= _MS_MAX:
            raise wrong(self.path, number, f"timestamp is {value!r:.40}: it must be milliseconds from 0 on")
        at_us: int = round(value * 1000)
        return at_us

    def _ids(self, number: int, row: dict[str, Any], prompt: int, output: int) -> tuple[int, ...]:
        ids = row["hash_ids"]
        if not isinstance(ids, list) or not all(type(each) is int and each >= 0 for each in ids):
            raise wrong(self.path, number, "hash_ids must be a list of whole numbers from 0 on")
        least, most = blocks_of(prompt, BLOCK_TOKENS), blocks_of(prompt + output, BLOCK_TOKENS)
        if not least <= len(ids) <= most:
            raise wrong(
                self.path,
                number,
                f"has {len(ids)} hash_ids: {prompt} tokens in blocks of {BLOCK_TOKENS} take {least}"
                + (f", and with the output up to {most}" if most > least else ""),
            )
        return tuple(ids)
