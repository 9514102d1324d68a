"""How long the checks of an answer take, by the size of the answer: `python -m bench.checks [FILE…]`.

The text is that of the files, by default of this repository's documents, cut to size. A median of nine through the
process that makes the checks; the first of each kind also starts that process or imports a library.
"""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from policy.checks.pii_entities import DEFAULT, SCORE_MIN
from policy.checks.process import CheckProcess

SIZES = (80, 1024, 4096, 16_384)
TIMES = 9
PII = {"entities": list(DEFAULT), "score_min": SCORE_MIN}
SCHEMA = {"type": "object", "properties": {f"field{number}": {"type": "string"} for number in range(20)}}
DOCUMENT = json.dumps({f"field{number}": "some text" for number in range(20)})


async def measured(text: str) -> None:
    """Print a line per check and size."""
    process = CheckProcess(60.0, DEFAULT)
    given: dict[str, dict[str, Any]] = {
        "json_schema": {"texts": [["", DOCUMENT]], "schema": SCHEMA},
        "tool_calls": {
            "calls": [{"where": "", "kind": "function", "name": "add", "arguments": DOCUMENT}],
            "offered": {"function add": SCHEMA},
        },
    }
    for check in ("secrets", "pii"):
        more = PII if check == "pii" else {}
        print(f"{check} first, ms: {await _ms(lambda: process.find(check, {'texts': [], **more})):.0f}")  # noqa: B023
        for size in SIZES:
            asked = {"texts": [["", 1, text[:size]]], **more}
            print(f"{check} {size} characters, ms: {await _median_ms(lambda: process.find(check, asked)):.1f}")  # noqa: B023
    for check, asked in given.items():
        print(f"{check} first, ms: {await _ms(lambda: process.find(check, asked)):.0f}")  # noqa: B023
        print(f"{check} of 20 fields, ms: {await _median_ms(lambda: process.find(check, asked)):.1f}")  # noqa: B023
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    print(f"process, MiB: {int(resident.split()[1]) // 1024}")
    await process.close()


async def _median_ms(ask: Callable[[], Awaitable[Any]]) -> float:
    return statistics.median([await _ms(ask) for _ in range(TIMES)])


async def _ms(ask: Callable[[], Awaitable[Any]]) -> float:
    began_s = time.perf_counter()
    await ask()
    return (time.perf_counter() - began_s) * 1000


if __name__ == "__main__":
    files = [Path(name) for name in sys.argv[1:]] or sorted(Path("docs").glob("*.md"))
    asyncio.run(measured("".join(file.read_text(encoding="utf-8") for file in files)))
