"""Azure's LLM inference traces of 2023 and 2024: a CSV file with when a request came and its two lengths.

Source: Azure/AzurePublicDataset, `AzureLLMInferenceDataset2023.md` and `…2024.md`. Nothing is known of prefixes.
"""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from runtime.workload.port import Arrival, TraceError
from runtime.workload.rows import length, lines, timed, wrong

TIME, PROMPT, OUTPUT = COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
# The files of 2023 have seven digits behind the point, those of 2024 six and a zone.
_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?")
_US = 1_000_000
_DIGITS_MAX = 20
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# As the port asks for a size: there are no ids whose blocks it could be of.
_BLOCK_TOKENS = 16


def is_azure(first_line: bytes) -> bool:
    """Whether a file that begins with this line is such a trace, or was meant to be one."""
    named = {name.strip() for name in first_line.decode(errors="replace").split(",")}
    return not named.isdisjoint(COLUMNS)


class AzureTrace:
    """Such a file; iterating reads it anew."""

    block_tokens = _BLOCK_TOKENS

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem

    def __iter__(self) -> Iterator[Arrival]:
        """Each row in order. TraceError."""
        return timed(self.path, self._rows())

    def _rows(self) -> Iterator[tuple[int, Arrival]]:
        rows = lines(self.path)
        number, header = next(rows, (0, b""))
        if not number:
            raise TraceError(f"{self.path} is empty")
        places = self._places(number, header)
        clock = _Clock(self.path)
        for number, line in rows:
            fields = line.decode(errors="replace").split(",")
            if len(fields) <= max(places):
                raise wrong(self.path, number, f"has {len(fields)} fields: the header has more")
            time, prompt, output = (fields[place].strip() for place in places)
            yield number, Arrival(clock.us(number, time), *self._lengths(number, prompt, output))

    def _places(self, number: int, header: bytes) -> Sequence[int]:
        named = [name.strip() for name in header.decode(errors="replace").split(",")]
        missing = [name for name in COLUMNS if name not in named]
        if missing:
            raise wrong(
                self.path, number, f"has no column {', '.join(missing)}: an Azure trace has {', '.join(COLUMNS)}"
            )
        return [named.index(name) for name in COLUMNS]

    def _lengths(self, number: int, prompt: str, output: str) -> tuple[int, int]:
        return length(self.path, number, PROMPT, _read(prompt)), length(self.path, number, OUTPUT, _read(output))


def _read(text: str) -> int | str:
    """The whole number that a text is; the text itself where it is none."""
    is_whole = len(text) <= _DIGITS_MAX and text.removeprefix("-").isdecimal()
    return int(text) if is_whole else text


class _Clock:
    """Reads moments; rows of one second follow each other, so the last one is remembered."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last = ("", "")
        self._last_us = 0

    def us(self, number: int, text: str) -> int:
        match = _MOMENT.fullmatch(text)
        if match is None:
            raise wrong(self._path, number, f"{TIME} is {text!r:.40}: it must be like 2023-11-16 18:15:46.6805900")
        second, fraction, zone = match.groups("")
        if (second, zone) != self._last:
            try:
                moment = datetime.fromisoformat(f"{second}{zone or 'Z'}")
            except ValueError as error:
                raise wrong(self._path, number, f"{TIME} is {text!r}, which is no time: {error}") from error
            self._last, self._last_us = (second, zone), int((moment - _EPOCH).total_seconds()) * _US
        return self._last_us + int(fraction[:6].ljust(6, "0"))
