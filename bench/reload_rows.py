"""What a hot reload of a large bundle costs the requests that go on meanwhile."""

import asyncio
import tempfile
import time
from collections.abc import Coroutine
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, Final

import uvloop

from bench.harness import Harness
from bench.row import Row
from policy.decider import Decider
from policy.embedded import EmbeddedEngine
from policy.port import PolicyInput

RULES: Final = 1_000
ROUNDS: Final = 5
TICK_S: Final = 0.001
QUIET_S: Final = 0.5

_HEAD = """package bursar.admission

import rego.v1

decision := {"allow": allow, "reasons": [], "obligations": {"priority": %d}}

default allow := false

"""
_RULE = """allow if {
	input.principal.team == "team%d"
	input.intent.model == "sim-small"
	input.intent.run.depth <= %d
}

"""


def stall(harness: Harness) -> list[Row]:
    """The longest gap between two turns of an event loop that decides and reloads, and of one that only decides."""
    quiet_ms, reload_ms = uvloop.run(_gaps())
    return [
        Row.at_most("policy_reload_stall_ms", "ms", reload_ms, 20),
        Row.at_most("policy_no_reload_stall_ms", "ms", quiet_ms, 20),
    ]


async def _gaps() -> tuple[float, float]:
    quiet, reloading = [], []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write(root, 0)
        decider = Decider(await EmbeddedEngine.open(root))
        for number in range(1, ROUNDS + 1):
            quiet.append(await _longest_gap_s(decider, asyncio.sleep(QUIET_S)))
            _write(root, number)
            reloading.append(await _longest_gap_s(decider, _reload(decider, root)))
        await decider.engine.close()
    return median(quiet) * 1000, median(reloading) * 1000


async def _reload(decider: Decider, root: Path) -> None:
    decider.swap(await EmbeddedEngine.open(root))


async def _longest_gap_s(decider: Decider, meanwhile: Coroutine[Any, Any, None]) -> float:
    """The longest time between two ticks until something is done, while one new decision after another is made."""
    before, doing = decider.engine, asyncio.create_task(meanwhile)
    longest_s, numbers = 0.0, count()
    asking = asyncio.create_task(decider.decide(_facts(next(numbers))))
    while not doing.done():
        began_s = time.perf_counter()
        if asking.done():
            await asking
            asking = asyncio.create_task(decider.decide(_facts(next(numbers))))
        await asyncio.sleep(TICK_S)
        longest_s = max(longest_s, time.perf_counter() - began_s - TICK_S)
    await doing
    await asking
    if decider.engine is not before:
        await before.close()
    return longest_s


def _facts(number: int) -> PolicyInput:
    return PolicyInput("acme", f"team{RULES - 1}", f"app{number}", (), "internal", "chat", "sim-small")


def _write(root: Path, priority: int) -> None:
    """A bundle of many rules, another revision for each priority."""
    folder = root / "bursar" / "admission"
    folder.mkdir(parents=True, exist_ok=True)
    rules = "".join(_RULE % (number, number % 5) for number in range(RULES))
    (folder / "admission.rego").write_text(_HEAD % priority + rules)
